"""The plugin under the parts of vLLM that do not run on a CPU: scheduling ahead, and the V2 model runner.

Its two faces are driven here step by step, with vLLM's own message types, as `gpu_model_runner` and `gpu/model_runner`
drive them. That is the interface as read in vLLM 0.31, not those runners: they need Triton.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entrl.engines.recording import TopHOptions, request_options
from entrl.engines.records import STORE, RecordError, match, take
from entrl.maths.truncation import entropy_and_kept_mass, top_h_keep

pytestmark = pytest.mark.vllm

VOCABULARY, TEMPERATURE = 40, 0.7


@pytest.fixture(autouse=True)
def _empty_store():
    yield
    assert (len(STORE), STORE.tokens) == (0, 0), "a test left records behind"


def params(key=None, top_h=None, **settings):
    from vllm import SamplingParams

    asked = None if key is None and top_h is None else request_options(key or "", record=key is not None, top_h=top_h)
    return SamplingParams(**({"temperature": TEMPERATURE, "extra_args": asked} | settings))


def logits_after(ids):
    """A stand-in model: any prefix has logits of its own, before temperature."""
    seed = hash(tuple(ids)) % 2**31
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def expected(prompt, ids, top_h=None):
    """Entropy and kept mass at every position of a completion."""
    z_TV = torch.stack([logits_after([*prompt, *ids[:t]]) for t in range(len(ids))]) / TEMPERATURE
    keep_TV = None if top_h is None else top_h_keep(z_TV, top_h.alpha, rule=top_h.rule)
    entropy_T, kept_T = entropy_and_kept_mass(z_TV, keep_TV)
    return entropy_T.tolist(), kept_T.tolist()


def agrees(record, prompt, ids, top_h=None):
    entropy, kept = expected(prompt, ids, top_h)
    assert record.entropies == pytest.approx(entropy, abs=1e-5)
    assert record.kept_mass == pytest.approx(kept, abs=1e-5)


# ---- V1


def config(*, ahead=False, named=None):
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=ahead),
        model_config=SimpleNamespace(logits_processors=named),
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=False),
    )


def recorder_v1(settings=None):
    from entrl.engines.sampler import EntropyRecorder

    return EntropyRecorder(settings or config(), torch.device("cpu"), False)


def update(size, added=(), removed=(), moved=()):
    from vllm.v1.sample.logits_processor import BatchUpdate

    return BatchUpdate(batch_size=size, added=list(added), removed=list(removed), moved=list(moved))


def step(recorder, rows, change=None):
    """One engine step over (prompt, output) rows; returns the logits the plugin left, temperature applied."""
    recorder.update_state(change)
    z_BV = torch.stack([logits_after([*prompt, *(i for i in output if i >= 0)]) for prompt, output in rows])
    return recorder.apply(z_BV / TEMPERATURE)


def test_one_class_serves_both_runners():
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2

    from entrl.engines.sampler import EntropyRecorder, RecorderV1, RecorderV2

    assert issubclass(EntropyRecorder, V1)
    assert issubclass(EntropyRecorder, V2)
    assert isinstance(recorder_v1(), RecorderV1)
    assert isinstance(EntropyRecorder(config(), states(2)), RecorderV2)


def test_the_installed_plugin_is_accepted_by_both_loaders():
    """V2's loader refuses to start the engine over an installed plugin of the other interface."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_plugins
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_plugins

    from entrl.engines.sampler import EntropyRecorder

    assert EntropyRecorder in _load_logitsprocs_plugins()
    assert EntropyRecorder in _load_v2_logitsprocs_plugins()


def test_logits_nobody_asked_about_are_handed_back_untouched():
    recorder = recorder_v1()
    z_BV = torch.randn(2, VOCABULARY)
    recorder.update_state(update(2, added=[(0, params(), [1], []), (1, params(temperature=0.0), [2], [])]))
    before = z_BV.clone()
    assert recorder.apply(z_BV) is z_BV
    assert torch.equal(z_BV, before)


def test_rows_swap_move_and_are_replaced():
    from vllm.v1.sample.logits_processor import MoveDirectionality

    recorder, a, b, c = recorder_v1(), ([1], []), ([2], []), ([3], [])
    step(recorder, [a, b, c], update(3, added=[(i, params("k"), *r) for i, r in enumerate((a, b, c))]))
    for row, token in ((a, 10), (b, 20), (c, 30)):
        row[1].append(token)
    step(recorder, [c, b, a], update(3, moved=[(0, 2, MoveDirectionality.SWAP)]))
    for row, token in ((a, 11), (b, 21), (c, 31)):
        row[1].append(token)
    # c ends and a slides into its gap: vLLM reports the move alone. Then b's row is given to d.
    step(recorder, [a, b], update(2, moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    a[1].append(12)
    b[1].append(22)
    d = ([4], [])
    step(recorder, [a, d], update(2, added=[(1, params("k"), *d)]))
    a[1].append(13)
    d[1].append(40)
    taken = take("k")
    assert len(taken) == 4
    for prompt, ids in (a, b, c, d):
        agrees(match(taken, ids, prompt), prompt, ids)


def test_a_request_preempted_within_its_prompt_keeps_no_value_of_it():
    """The stand-in gives mid-prompt logits another entropy; the sequence that resumes shares the engine's list."""
    from vllm.v1.sample.logits_processor import MoveDirectionality

    recorder, a, b = recorder_v1(), ([1, 2, 3], []), ([5], [])
    step(recorder, [([1], []), b], update(2, added=[(0, params("k"), *a), (1, params(), *b)]))
    step(recorder, [b], update(1, moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    step(recorder, [b, a], update(2, added=[(1, params("k"), *a)]))
    a[1].append(10)
    (record,) = take("k")
    agrees(record, [1, 2, 3], [10])


def test_top_h_cuts_only_the_rows_that_asked():
    top_h = TopHOptions(alpha=0.5)
    recorder, rows = recorder_v1(), [([1], []), ([2], []), ([3], [])]
    asked = [params(top_h=top_h), params(), params("k", top_h)]
    z_BV = step(recorder, rows, update(3, added=[(i, p, *r) for i, (p, r) in enumerate(zip(asked, rows, strict=True))]))
    whole_BV = torch.stack([logits_after(prompt) for prompt, _ in rows]) / TEMPERATURE
    keep_BV = top_h_keep(whole_BV, 0.5)
    keep_BV[1] = True
    assert torch.equal(z_BV, whole_BV.masked_fill(~keep_BV, -torch.inf))
    assert not bool(keep_BV[2].all())
    rows[2][1].append(7)
    agrees(take("k")[0], [3], [7], top_h)


def test_an_engine_that_schedules_ahead_shows_an_installed_plugin_no_ids():
    recorder, row = recorder_v1(config(ahead=True)), ([1], [])
    step(recorder, [row], update(1, added=[(0, params("k"), *row)]))
    row[1].append(-1)
    step(recorder, [row])
    with pytest.raises(RecordError, match=r"async_scheduling=False.*or name the plugin"):
        take("k")


def test_an_engine_that_schedules_ahead_shows_a_named_plugin_all_but_the_last_id():
    named = "entrl.engines.sampler:EntropyRecorder"
    recorder, row = recorder_v1(config(ahead=True, named=[named])), ([1], [])
    step(recorder, [row], update(1, added=[(0, params("k"), *row)]))
    for token in (10, 11, 12):
        row[1].append(-1)  # a place holder until the next step's sampler needs it
        row[1][-1] = token
        step(recorder, [row])
    row[1].append(-1)  # what is drawn beyond the stop is never looked up
    (record,) = take("k")
    assert len(record.entropies) == 4
    agrees(match([record], [10, 11, 12]), [1], [10, 11, 12])


def test_place_holders_that_are_never_filled_are_no_ids():
    recorder, row = recorder_v1(), ([1], [])
    step(recorder, [row], update(1, added=[(0, params("k"), *row)]))
    row[1].append(-1)
    step(recorder, [row])
    with pytest.raises(RecordError, match="shows an installed plugin no token ids"):
        take("k")


def test_prompts_given_as_embeddings_are_refused():
    recorder = recorder_v1()
    recorder.update_state(update(1, added=[(0, params("k"), None, [])]))
    with pytest.raises(RecordError, match="prompt was given as embeddings"):
        take("k")


# ---- V2


def states(slots, length=64):
    return SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.zeros(slots, dtype=np.int32)),
        prefill_len=SimpleNamespace(np=np.zeros(slots, dtype=np.int32)),
        all_token_ids=SimpleNamespace(gpu=torch.zeros(slots, length, dtype=torch.int32)),
    )


class RunnerV2:
    """What `gpu/model_runner.py` tells a plugin: slots for requests, and a batch layout in every step."""

    def __init__(self):
        from entrl.engines.sampler import EntropyRecorder

        self.states = states(4)
        self.recorder = EntropyRecorder(config(), self.states)
        self.z_BV = None

    def add(self, slot, prompt, output, wish):
        ids = [*prompt, *output]
        self.states.prompt_len.np[slot] = len(prompt)
        self.states.prefill_len.np[slot] = len(ids)
        self.states.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return self.recorder.add_request(slot, wish)

    def step(self, *batch, extra_rows=0):
        """batch: (slot, all ids so far), the ids computed up to now."""
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

        slots = np.array([slot for slot, _ in batch], dtype=np.int32)
        mapping = torch.from_numpy(slots)
        context = LogitsContext(
            expanded_idx_mapping=mapping,
            idx_mapping=mapping,
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros(len(batch), dtype=torch.int32),
            input_ids=torch.tensor([ids[-1] for _, ids in batch], dtype=torch.int32),
            pos=torch.tensor([len(ids) - 1 for _, ids in batch]),
            seq_lens_upper_bound_np=np.array([len(ids) for _, ids in batch], dtype=np.int32),
        )
        z_BV = torch.stack([logits_after(ids) for _, ids in batch] + [torch.zeros(VOCABULARY)] * extra_rows)
        return self.recorder.apply(z_BV, context)


def test_v2_records_through_partial_prompts_preemption_and_reused_slots():
    runner = RunnerV2()
    assert runner.add(0, [1, 2, 3], [], params("k")) is True
    assert runner.add(1, [1, 2, 3], [], params("k")) is True  # a sibling
    assert runner.add(2, [9], [], params()) is False
    runner.step((0, [1, 2]), (1, [1, 2, 3]), (2, [9]))  # slot 0 is within its prompt
    runner.step((1, [1, 2, 3, 20]), (0, [1, 2, 3]), (2, [9, 30]))  # rows are reordered every step
    runner.step((0, [1, 2, 3, 10]), (1, [1, 2, 3, 20, 21]))
    runner.step((0, [1, 2, 3, 10, 11]))  # slot 1 ended with a token nobody looks up
    assert runner.add(1, [5], [], params("other")) is True  # its slot goes to another request
    assert runner.add(3, [1, 2, 3], [10, 11, 12], params("k")) is True  # slot 0 was preempted and comes back
    runner.step((1, [5]), (3, [1, 2, 3, 10]))  # the beginning is computed again, in parts
    runner.step((3, [1, 2, 3, 10, 11, 12]))
    runner.step((3, [1, 2, 3, 10, 11, 12, 13]))
    taken = take("k")
    agrees(match(taken, [20, 21, 22]), [1, 2, 3], [20, 21, 22])
    agrees(match(taken, [10, 11, 12, 13, 14]), [1, 2, 3], [10, 11, 12, 13, 14])
    agrees(take("other")[0], [5], [40])


def test_v2_named_beside_the_entry_point_records_once():
    runner = RunnerV2()
    from entrl.engines.sampler import EntropyRecorder

    settings = config()
    runner.recorder, second = EntropyRecorder(settings, runner.states), EntropyRecorder(settings, runner.states)
    assert second.add_request(0, params("k")) is False
    assert runner.add(0, [1, 2], [], params("k")) is True
    runner.step((0, [1, 2]))
    (record,) = take("k")
    agrees(match([record], [7]), [1, 2], [7])


def test_v2_sees_logits_before_temperature_and_cuts_them_as_after_it():
    top_h = TopHOptions(alpha=0.5)
    runner = RunnerV2()
    runner.add(0, [1], [], params(top_h=top_h))
    runner.add(1, [2], [], params("k", top_h, top_k=3))
    z_BV = runner.step((1, [2]), (0, [1]))
    whole_BV = torch.stack([logits_after([2]), logits_after([1])])
    keep_BV = top_h_keep(whole_BV / TEMPERATURE, 0.5)
    assert torch.equal(z_BV, whole_BV.masked_fill(~keep_BV, -torch.inf))
    keep_BV &= torch.zeros_like(keep_BV).scatter(-1, whole_BV.topk(3).indices, True)
    entropy_B, kept_B = entropy_and_kept_mass(whole_BV / TEMPERATURE, keep_BV)
    (record,) = take("k")
    assert record.entropies == pytest.approx([float(entropy_B[0])], abs=1e-6)
    assert record.kept_mass == pytest.approx([float(kept_B[0])], abs=1e-6)


def test_v2_under_speculative_decoding_records_nothing_and_never_forgets_a_cut():
    runner = RunnerV2()
    runner.add(0, [1], [], params("k"))
    runner.step((0, [1]), extra_rows=2)
    with pytest.raises(RecordError, match="decodes speculatively"):
        take("k")
    runner.add(0, [1], [], params(top_h=TopHOptions(alpha=0.5)))
    with pytest.raises(RuntimeError, match="top_h under speculative decoding"):
        runner.step((0, [1]), extra_rows=2)


def test_rows_worked_on_in_parts_give_what_they_give_together(monkeypatch):
    from entrl.engines.records import RecordStore
    from entrl.engines.sampler import Row, measure
    from entrl.maths import truncation

    store, rows = RecordStore(100), []
    for b in (b for b in range(11) if b != 4):
        wish, top_h = params(top_p=0.9 if b % 2 else 1.0), TopHOptions(alpha=0.5) if b % 3 else None
        rows.append((b, Row(wish, top_h, store.open("k", [], None) if b < 9 else None)))
    z_BV = torch.randn(11, VOCABULARY) * 3
    answers = []
    for size in (1, 3 * VOCABULARY, 2**20):
        monkeypatch.setattr(truncation, "CHUNK_CPU", size)
        left_BV = z_BV.clone()
        answers.append((*measure(left_BV, rows, scaled=False), left_BV))
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))
