"""What a request may ask the sampler for, and how its records are kept, told apart, lost and taken. No vLLM."""

import json
import subprocess
import sys

import pytest

from entrl.engines import records
from entrl.engines.recording import RequestOptions, TopHOptions, read_options, request_options
from entrl.engines.records import RecordError, RecordStore, SamplerRecord, match, match_all, unpack


def sequence(store, key, prompt, ids, *, values=None, output=None):
    """A finished sequence: value t is written when ids[:t] are known."""
    trace = store.open(key, prompt, output)
    for t in range(len(ids)):
        trace.follow(ids[:t])
        trace.write(t, values[t] if values else float(t), 1.0 - t / 100)
    return trace


# ---- options


def test_options_survive_both_ways_they_travel():
    top_h = TopHOptions(alpha=0.3, rule="reference", top_n=50)
    sent = request_options("rollout-7", top_h=top_h)
    assert isinstance(sent["entrl"], str), "vllm_xargs carries no nested objects"
    want = RequestOptions(record=True, key="rollout-7", top_h=top_h)
    assert read_options(sent) == want
    assert read_options({"entrl": json.loads(sent["entrl"])}) == want
    assert read_options(request_options("k")) == RequestOptions(record=True, key="k")


@pytest.mark.parametrize("extra_args", [None, {}, {"other": 1}, {"entrl": {}}, {"entrl": {"record": False}}])
def test_asking_for_nothing(extra_args):
    assert read_options(extra_args) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("{", "is text but not JSON"),
        (7, "entrl must be an object with the keys record, key, top_h, got 7"),
        ({"recrod": True}, "entrl has the unknown keys 'recrod'"),
        ({"record": True}, "entrl record needs a key"),
        ({"record": 1, "key": "k"}, "record must be true or false, got 1"),
        ({"record": True, "key": 3}, "key must be text, got 3"),
        ({"top_h": 0.4}, "entrl top_h must be an object"),
        ({"top_h": {}}, "top_h needs alpha"),
        ({"top_h": {"alpha": 0.4, "topn": 3}}, "top_h has the unknown keys 'topn'"),
        ({"top_h": {"alpha": 2}}, r"alpha must be a number in \(0, 1\], got 2"),
        ({"top_h": {"alpha": True}}, "alpha must be a number"),
        ({"top_h": {"alpha": "0.4"}}, "alpha must be a number"),
        ({"top_h": {"alpha": 0.4, "rule": "hf"}}, "rule must be one of paper, reference, got 'hf'"),
        ({"top_h": {"alpha": 0.4, "top_n": 0}}, "top_n must be an integer >= 1"),
    ],
)
def test_a_wrong_wish_is_named(asked, message):
    with pytest.raises(ValueError, match=message):
        read_options({"entrl": asked})


# ---- keeping and taking


def test_a_record_has_one_id_less_than_values_and_is_completed_by_its_match():
    store = RecordStore(1000)
    sequence(store, "k", [1, 2], [10, 11, 12])
    (record,) = store.take("k")
    assert record.token_ids == [10, 11]
    assert record.entropies == [0.0, 1.0, 2.0]
    assert record.prompt_ids == [1, 2]
    found = match([record], [10, 11, 12])
    assert found.token_ids == [10, 11, 12]
    assert found.kept_mass == pytest.approx([1.0, 0.99, 0.98])


def test_taking_twice_or_never_recorded_says_so():
    store = RecordStore(1000)
    sequence(store, "k", [1], [10])
    store.take("k")
    for key in ("k", "other"):
        with pytest.raises(RecordError, match=f"nothing was recorded under '{key}'"):
            store.take(key)
    assert store.tokens == 0


def test_siblings_are_told_apart_by_their_ids():
    store = RecordStore(1000)
    sequence(store, "k", [1], [10, 11, 12], values=[0.5, 0.6, 0.7])
    sequence(store, "k", [1], [10, 21, 22], values=[0.5, 0.6, 0.9])
    taken = store.take("k")
    assert match(taken, [10, 21, 22]).entropies == pytest.approx([0.5, 0.6, 0.9])
    assert match(taken, [10, 11, 99]).entropies == pytest.approx([0.5, 0.6, 0.7]), "the last id decides nothing"
    with pytest.raises(RecordError, match=r"none of 2 records of this prompt belongs to the completion \[10, 31, 32\]"):
        match(taken, [10, 31, 32])


def test_a_completion_shorter_than_its_record_is_cut_to_its_length():
    """An engine that schedules ahead samples once more after the stop."""
    store = RecordStore(1000)
    sequence(store, "k", [1], [10, 11, 12])
    taken = store.take("k")
    assert match(taken, [10, 11]).entropies == [0.0, 1.0]
    assert match(taken, []).entropies == []


def test_equal_completions_of_two_prompts_need_their_prompts():
    store = RecordStore(1000)
    sequence(store, "k", [1], [10, 11], values=[0.1, 0.2])
    sequence(store, "k", [2], [10, 11], values=[0.3, 0.4])
    taken = store.take("k")
    with pytest.raises(RecordError, match="come from 2 prompts"):
        match(taken, [10, 11])
    found = match_all(taken, [[10, 11], [10, 11]], [[2], [1]])
    assert [r.entropies for r in found] == [pytest.approx([0.3, 0.4]), pytest.approx([0.1, 0.2])]
    with pytest.raises(RecordError, match="none of 0 records of this prompt"):
        match(taken, [10, 11], [3])
    with pytest.raises(ValueError, match="2 completions but 1 prompts"):
        match_all(taken, [[10], [11]], [[1]])


def test_values_of_an_unfinished_prefill_do_not_count():
    """The engine's list has not grown past position 0, so what was computed there was thrown away."""
    store, output = RecordStore(1000), []
    trace = store.open("k", [1], output)
    trace.write(0, 7.0, 1.0)
    assert len(trace) == 0
    trace.write(0, 0.5, 1.0)  # the last part of the prompt
    output.append(10)
    trace.follow(output)
    trace.write(1, 9.0, 1.0)  # the batch is gone before this token was drawn
    trace.freeze()
    output.append(11)  # whatever happens to the list later
    (record,) = store.take("k")
    assert (record.token_ids, record.entropies) == ([], [0.5])


def test_an_aborted_prefill_leaves_nothing():
    store, output = RecordStore(1000), []
    store.open("k", [1], output).write(0, 7.0, 1.0)
    assert store.take("k") == []


def test_a_preempted_sequence_goes_on_in_one_record():
    store, output = RecordStore(1000), [10, 11]
    first = sequence(store, "k", [1], [10, 11], values=[0.1, 0.2], output=output)
    sequence(store, "k", [2], [10, 11], values=[0.8, 0.9])  # another prompt, the same ids
    first.freeze()
    second = store.open("k", [1], output)
    second.adopt(output)
    second.write(2, 0.3, 1.0)
    output.append(12)
    taken = store.take("k")
    assert [r.entropies for r in taken] == [pytest.approx([0.8, 0.9]), pytest.approx([0.1, 0.2, 0.3])]
    assert match(taken, [10, 11, 12], [1]).entropies == pytest.approx([0.1, 0.2, 0.3])
    assert store.tokens == 0


def test_resuming_does_not_take_a_longer_siblings_record_away():
    store = RecordStore(1000)
    sibling = sequence(store, "k", [1], [10, 11, 12, 13], values=[0.1, 0.2, 0.3, 0.4])
    sibling.freeze()
    store.open("k", [1], [10, 11]).adopt([10, 11])
    assert sorted(len(r.entropies) for r in store.take("k")) == [2, 4]


def test_a_beginning_taken_too_early_is_a_hole_not_a_number():
    store, output = RecordStore(1000), [10, 11]
    sequence(store, "k", [1], [10, 11], output=output).freeze()
    store.take("k")
    resumed = store.open("k", [1], output)
    resumed.adopt(output)
    resumed.write(2, 0.3, 1.0)
    output.append(12)
    with pytest.raises(RecordError, match="has no value at position 0"):
        match(store.take("k"), [10, 11, 12])


def test_a_sequence_whose_records_were_taken_keeps_writing_into_nothing():
    store = RecordStore(1000)
    trace = sequence(store, "k", [1], [10])
    store.take("k")
    trace.write(1, 0.5, 1.0)
    assert (len(store), store.tokens) == (0, 0)


def test_untrusted_records_are_refused_with_their_reason():
    store = RecordStore(1000)
    sequence(store, "k", [1], [10]).problem = "no ids"
    with pytest.raises(RecordError, match="cannot be trusted: no ids"):
        store.take("k")


def test_the_oldest_key_goes_when_there_is_no_room_and_its_loss_is_told():
    store = RecordStore(12)
    for key in ("a", "b", "c"):
        sequence(store, key, [1, 2], [10, 11, 12])  # 5 tokens each with the prompt
    assert (store.tokens, store.dropped, len(store)) == (10, 1, 2)
    with pytest.raises(RecordError, match=r"'a' were dropped: this process holds at most 12 tokens.*dropped 1 keys"):
        store.take("a")
    assert len(store.take("b")) == len(store.take("c")) == 1
    assert store.tokens == 0
    sequence(store, "a", [1], [10])
    assert len(store.take("a")) == 1, "a key that is used again is not lost any more"


def test_one_key_beyond_all_room_is_dropped_while_it_is_written():
    store = RecordStore(4)
    sequence(store, "k", [1], list(range(10)))
    with pytest.raises(RecordError, match=r"raise ENTRL_RECORDS_MAX_TOKENS"):
        store.take("k")
    assert store.tokens == 0


def test_many_lost_keys_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr(records, "REMEMBERED_DROPS", 3)
    store = RecordStore(1)
    for i in range(10):
        sequence(store, f"k{i}", [], [1, 2])
    with pytest.raises(RecordError, match="'k9' were dropped"):
        store.take("k9")
    with pytest.raises(RecordError, match="nothing was recorded under 'k0'"):
        store.take("k0")


def test_values_still_on_their_way_are_waited_for():
    store = RecordStore(10)
    trace = store.open("k", [], None)

    class Late:
        def drain(self):
            trace.write(0, 0.25, 1.0)

    late = Late()
    store.drain_from(late)
    assert store.take("k")[0].entropies == [0.25]


def test_the_limit_is_read_from_the_environment():
    code = "from entrl.engines.records import STORE; print(STORE.max_tokens)"
    for value, answer in (
        ("123", "123"),
        ("many", "must be a number of tokens, got 'many'"),
        ("0", "at least one token"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"ENTRL_RECORDS_MAX_TOKENS": value, "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer in run.stdout + run.stderr


# ---- over the wire


def reply(key, *rows, error=""):
    return {"key": key, "records": [vars(SamplerRecord(*row)) for row in rows], "error": error}


def test_answers_are_plain_json_and_leave_out_a_prompt_all_share():
    store = RecordStore(1000)
    sequence(store, "one", [1], [10, 11])
    sequence(store, "one", [1], [10, 12])
    sequence(store, "two", [1], [10, 11])
    sequence(store, "two", [2], [10, 11])
    answers = json.loads(json.dumps([records._answer(key, store.take) for key in ("one", "two", "none")]))
    assert [r["prompt_ids"] for a in answers for r in a["records"]] == [[], [], [1], [2]]
    assert "nothing was recorded under 'none'" in answers[2]["error"]
    found = unpack([answers[:2], None])
    assert match(found["one"], [10, 12], [1]).entropies == [0.0, 1.0], "a prompt may be given where none is needed"


def test_only_the_engine_that_ran_a_request_knows_its_key():
    there, elsewhere = reply("k", ([], [0.5], [1.0])), reply("k", error="nothing was recorded")
    assert unpack([[elsewhere], None, [there]])["k"][0].entropies == [0.5]
    with pytest.raises(RecordError, match="nothing was recorded"):
        unpack([[elsewhere], [elsewhere]])
    with pytest.raises(RecordError, match="worker-extension-cls"):
        unpack([None, None])


def test_the_module_needs_no_vllm():
    code = "import sys; sys.modules['vllm'] = None; import entrl.engines.records, entrl.maths.truncation"
    subprocess.run([sys.executable, "-c", code], check=True)
