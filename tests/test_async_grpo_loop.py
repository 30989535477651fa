"""The rollout loop's bookkeeping: signals, versions, rows. The server's answers are written down here; the engine is
met in test_async_grpo_server.py. Marked `vllm` because the loop needs aiohttp, which comes with vLLM.
"""

import asyncio
import multiprocessing as mp
import pickle
import queue

import numpy as np
import pytest
import torch
from accelerate import PartialState
from async_setup import conversations
from entrl_rewards.pear import reward as pear
from trl.experimental.async_grpo.async_rollout_worker import _AsyncRolloutLoop

from entrl.controllers.w_reinforce import WReinforce
from entrl.engines.async_loop import EntropyRolloutLoop
from entrl.engines.faults import RolloutError, StaleVersion
from entrl.engines.trails import ROWS_PER_GROUP, UNKNOWN, TrailedMetrics
from entrl.trainers.shared.rewards import guarded, needed_signals
from entrl_lab.nursery.tokenizer import character_tokenizer

pytestmark = pytest.mark.vllm

GROUP = 4
LORA = "trl-policy"


class Server:
    """Answers a loop's requests: token i of the n-th answer has log-prob -(n + i / 8) and entropy n + i / 8."""

    def __init__(self, loop, tokenizer, *, texts=("<think>1</think>2",), before=lambda n: None, spoil=lambda n, a: a):
        self.tokenizer, self.texts, self.before, self.spoil = tokenizer, texts, before, spoil
        self.requests = []
        loop._transport = self

    async def answer(self, path, payload):
        n = len(self.requests)
        self.requests.append(payload)
        await asyncio.sleep(0)
        self.before(n)
        ids = [*self.tokenizer.encode(self.texts[n % len(self.texts)]), self.tokenizer.eos_token_id]
        values = [n + i / 8 for i in range(len(ids))]
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-v for v in values]}}
        if "vllm_xargs" in payload:
            choice["entrl"] = {"entropies": values, "kept_mass": [1.0] * len(ids)}
        return self.spoil(n, {"model": payload["model"], "choices": [choice]})


def make_loop(
    monkeypatch, rewards, *, cls=EntropyRolloutLoop, lora=LORA, inflight=GROUP, version=1, tools=None, **kwargs
):
    """A loop in this process, and the queue it fills; its HTTP calls go to `loop._transport`."""

    async def post(self, path, payload, timeout, max_retries=3):
        return await self._transport.answer(path, payload)

    PartialState()  # accelerate's logger wants it; the child process makes one as well
    monkeypatch.setattr(_AsyncRolloutLoop, "_post", post)
    context = mp.get_context("spawn")
    tokenizer = character_tokenizer()
    if cls is _AsyncRolloutLoop or tools:
        tokenizer.response_template = {}
    loop = cls(
        model_name="base",
        lora_name=lora,
        dataset=conversations(),
        reward_funcs=rewards,
        processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        rollout_buffer=queue.Queue(),
        model_version_value=context.Value("i", version),
        heartbeat_value=context.Value("d", 0.0),
        failed_event=context.Event(),
        exception_info_queue=queue.Queue(),
        metrics_queue=queue.Queue(),
        num_generations=GROUP,
        max_inflight_tasks=inflight,
        max_tokens=24,
        tools=tools,
        **kwargs,
    )
    return loop, tokenizer


def run_until(loop, samples):
    """Let the loop work until so many samples are queued, or it fails."""

    async def watch():
        stop = asyncio.Event()
        work = asyncio.create_task(loop._run_loops(stop))
        while loop.rollout_buffer.qsize() < samples and not work.done():
            await asyncio.sleep(0.005)
        stop.set()
        await work

    asyncio.run(watch())
    return [loop.rollout_buffer.get() for _ in range(samples)]


def metrics_of(loop, name):
    """(sum, count) of a rate the loop pushed."""
    total = [0.0, 0.0]
    while not loop._metrics_queue.empty():
        for key, value in loop._metrics_queue.get().items():
            if key == name:
                total = [total[0] + value[0], total[1] + value[1]]
    return total


def bump(loop):
    loop._model_version_value.value += 1


# ---- signals


def test_rewards_get_the_signals_they_name(monkeypatch):
    seen = {}

    def reward(
        completions, token_entropies, token_logprobs, token_mask, group_index, prompt_ids, truncated, log_metric,
        trainer_state, **rest,
    ):  # fmt: skip
        for name, value in locals().items():
            seen.setdefault(name, value)  # of the first group
        log_metric("mine", 3.0)
        return [float(i) for i in range(len(completions))]

    signals = frozenset(needed_signals(reward)) | {"log_metric", "trainer_state"}
    loop, tokenizer = make_loop(
        monkeypatch, guarded([reward]), signals=signals, record=True, version=4, sync_steps=5
    )  # fmt: skip
    server = Server(loop, tokenizer)
    samples = run_until(loop, GROUP)
    ids = [*tokenizer.encode("<think>1</think>2"), tokenizer.eos_token_id]
    assert seen["completions"][0] == [{"role": "assistant", "content": "<think>1</think>2"}]  # the thinking is in it
    answers = [int(h[0]) for h in seen["token_entropies"]]  # in the order they came back
    assert sorted(answers) == list(range(GROUP))
    for i, n in enumerate(answers):
        expected = torch.tensor([n + t / 8 for t in range(len(ids))])
        torch.testing.assert_close(seen["token_entropies"][i], expected)
        torch.testing.assert_close(seen["token_logprobs"][i], -expected)
        assert seen["token_mask"][i].tolist() == [True] * len(ids)
        assert seen["prompt_ids"][i] == server.requests[n]["prompt"]
    assert seen["group_index"] == [0] * GROUP
    assert seen["truncated"] == [False] * GROUP
    assert seen["trainer_state"].global_step == 15  # version 4 was sent after 3 syncs of 5 steps each
    assert metrics_of(loop, "mine")[0] >= 3.0
    assert [s.metrics["rewards/reward"] for s in samples] == [0, 1, 2, 3]


def test_a_reward_that_names_nothing_gets_what_trl_gives(monkeypatch):
    def reward(completions, prompts, completion_ids):  # no **kwargs: anything else would be an error
        return [float(len(ids)) for ids in completion_ids]

    loop, tokenizer = make_loop(monkeypatch, [reward])
    server = Server(loop, tokenizer)
    assert len(run_until(loop, GROUP)) == GROUP
    assert "vllm_xargs" not in server.requests[0]  # nobody asked for entropies


def test_rewards_get_the_answers_by_the_trainers_tags(monkeypatch):
    from entrl.maths.phases import ThinkTags

    seen = {}

    def reward(completions, answer_texts, **_):
        seen.update({c[-1]["content"]: a for c, a in zip(completions, answer_texts, strict=True)})
        return [float(len(a)) for a in answer_texts]

    loop, tokenizer = make_loop(
        monkeypatch,
        guarded([reward]),
        signals=frozenset({"answer_texts"}),
        think_tags=ThinkTags.from_tokenizer(character_tokenizer(), open="[", close="]"),
    )
    server = Server(loop, tokenizer)
    server.texts = ["[hm]7", "[hm", "5", "a]b]12"]
    run_until(loop, GROUP)
    assert seen == {"[hm]7": "7", "[hm": "", "5": "5", "a]b]12": "12"}


def test_pear_pays_by_the_samplers_entropies(monkeypatch):
    signals = frozenset(needed_signals(pear)) & {"token_entropies", "token_mask", "truncated"}
    from entrl.maths.phases import ThinkTags

    tags = ThinkTags.from_tokenizer(character_tokenizer())
    rewards = guarded([_always_right()], think_tags=tags, gather=list, training=True)
    loop, tokenizer = make_loop(monkeypatch, rewards, signals=signals, record=True)
    Server(loop, tokenizer)
    samples = run_until(loop, GROUP)
    # Ids: <think> 1 </think> 2 END; entropies n + 0, 1/8, 2/8, 3/8, 4/8. Thinking is <think> and 1, mean n + 1/16; the
    # answer 2 and END, mean n + 7/16: larger, so the penalty is 0 and every completion is paid in full.
    assert [s.metrics["rewards/pear"] for s in samples] == [1.0] * GROUP
    assert all(isinstance(pickle.loads(pickle.dumps(s)).metrics, TrailedMetrics) for s in samples)


def _always_right():
    from entrl_rewards.pear import Pear

    return Pear(correctness=_right)


def _right(completions, **_):
    return [1.0] * len(completions)


def test_a_column_named_like_a_signal_is_refused(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], signals=frozenset({"truncated"}))
    loop.dataset = loop.dataset.add_column("truncated", [0] * len(loop.dataset))
    loop._dataset_iter = iter(loop.dataset)
    Server(loop, tokenizer)
    with pytest.raises(ValueError, match="have the names of token signals"):
        run_until(loop, GROUP)


# ---- versions


def version_of_request(payload):
    return int(payload["model"].removeprefix(f"{LORA}-v"))


def generated_versions(server, samples):
    """Per sample the versions its prompt's requests really named, by its log-probs' tag."""
    return [version_of_request(server.requests[int(-s.old_log_probs[s.completion_mask == 1][0])]) for s in samples]


@pytest.mark.xfail(
    strict=True, reason="TRL 1.16 names the newest version in each request, whatever its group began with"
)
def test_trl_generates_a_group_with_one_version(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], cls=_AsyncRolloutLoop, inflight=2)
    server = Server(loop, tokenizer, before=lambda n: bump(loop))
    versions = generated_versions(server, run_until(loop, GROUP))
    assert len(set(versions)) == 1


@pytest.mark.xfail(strict=True, reason="TRL 1.16 stamps a group when it is created, not with what generated it")
def test_trl_stamps_samples_with_the_version_that_wrote_them(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], cls=_AsyncRolloutLoop, inflight=2)
    server = Server(loop, tokenizer, before=lambda n: bump(loop))
    samples = run_until(loop, GROUP)
    assert [s.model_version for s in samples] == generated_versions(server, samples)


def test_a_pinned_group_has_one_version_and_says_which(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], inflight=2)
    server = Server(loop, tokenizer, before=lambda n: bump(loop))
    samples = run_until(loop, 2 * GROUP)
    for group in (samples[:GROUP], samples[GROUP:]):
        assert len(set(generated_versions(server, group))) == 1
        assert [s.model_version for s in group] == generated_versions(server, group)
        for s in group:
            assert s.metrics.trail.versions[s.completion_mask == 1].tolist() == [s.model_version] * int(
                s.completion_mask.sum()
            )
    assert metrics_of(loop, "rollout/mixed_version_groups")[0] == 0
    assert not loop._pins or max(loop._pins) >= 2  # finished groups are forgotten


def test_without_pins_every_sample_still_says_who_wrote_it(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], inflight=2, pin_versions=False)
    server = Server(loop, tokenizer, before=lambda n: bump(loop))
    samples = run_until(loop, GROUP)
    assert len({s.model_version for s in samples}) > 1
    assert [s.model_version for s in samples] == generated_versions(server, samples)
    assert metrics_of(loop, "rollout/mixed_version_groups")[0] >= 1


def test_full_weights_cannot_say_what_wrote_a_completion_during_a_sync(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], lora=None)
    Server(loop, tokenizer, before=lambda n: bump(loop) if n == 1 else None)
    samples = run_until(loop, GROUP)
    found = [set(s.metrics.trail.versions[s.completion_mask == 1].tolist()) for s in samples]
    assert {UNKNOWN} in found
    assert metrics_of(loop, "rollout/mixed_version_groups")[0] >= 1


def test_an_answer_of_another_version_stops_the_run(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right])
    Server(loop, tokenizer, spoil=lambda n, a: a | {"model": f"{LORA}-v0"} if n == 2 else a)
    with pytest.raises(StaleVersion, match="answered as 'trl-policy-v0' to a request for 'trl-policy-v1'"):
        run_until(loop, GROUP)


class NotFound(Exception):
    status = 404


def test_an_unloaded_version_is_asked_again_as_the_newest(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, [_right], inflight=1, version=1)

    def gone(n, answer):
        if version_of_request({"model": answer["model"]}) == 1 and loop.model_version > 1:
            raise NotFound
        return answer

    async def once(coro_factory, *, label, max_attempts=1):  # TRL retries any HTTP error after a pause
        while True:
            try:
                return await coro_factory()
            except NotFound:
                await asyncio.sleep(0)

    loop._retry = once
    server = Server(loop, tokenizer, before=lambda n: bump(loop) if n == 1 else None, spoil=gone)
    samples = run_until(loop, GROUP)
    # The answer to request 1 is lost with version 1; it is asked again as request 2, of version 2.
    assert [s.model_version for s in samples] == [1, 2, 2, 2]
    assert version_of_request(server.requests[1]) == 1


def test_a_server_that_lost_the_newest_version_stops_the_run(monkeypatch):
    def gone(n, answer):
        raise NotFound

    loop, tokenizer = make_loop(monkeypatch, [_right])
    Server(loop, tokenizer, spoil=gone)
    with pytest.raises(RolloutError, match="does not know adapter trl-policy-v1, the newest published"):
        run_until(loop, GROUP)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("entrl"), "asked for entropies and sent none"),
        (lambda c: c["entrl"]["entropies"].pop(), "entropies for"),
        (lambda c: c["logprobs"]["token_logprobs"].pop(), "log-probs for"),
    ],
)
def test_an_answer_that_lacks_something_stops_the_run(monkeypatch, spoil, message):
    def cut(n, answer):
        spoil(answer["choices"][0])
        return answer

    loop, tokenizer = make_loop(monkeypatch, [_right], record=True)
    Server(loop, tokenizer, spoil=cut)
    with pytest.raises(RolloutError, match=message):
        run_until(loop, GROUP)


# ---- rows


def look_up(key: str) -> str:
    """Looks a key up.

    Args:
        key: what to look up

    Returns:
        What was found.
    """
    return "found"


def test_columns_follow_the_turns_of_a_conversation(monkeypatch):
    """Two calls with a tool between them: every number must stay with its token, context must hold none."""
    loop, tokenizer = make_loop(monkeypatch, [_right], record=True, tools=[look_up], pin_versions=False)
    turns = iter(range(10**6))

    def parse(ids, **_):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        calls = [{"type": "function", "function": {"name": "look_up", "arguments": {"key": "k"}}}]
        return {"role": "assistant", "content": text} | ({"tool_calls": calls} if next(turns) % 2 == 0 else {})

    loop.tokenizer.parse_response = parse
    loop.num_generations = 1
    loop.max_inflight_tasks = 1
    server = Server(loop, tokenizer, texts=("ask", "answer"), before=lambda n: bump(loop) if n == 1 else None)
    (sample,) = run_until(loop, 1)
    trail, trained = sample.metrics.trail, sample.completion_mask == 1
    np.testing.assert_allclose(trail.entropies[trained], -sample.old_log_probs[trained])
    assert (trail.entropies[~trained] == 0).all()
    first = int(trained.argmax())
    assert trail.prompt_tokens == first == len(server.requests[0]["prompt"])
    wrote = [version_of_request(server.requests[int(h)]) for h in trail.entropies[trained]]
    assert trail.versions[trained].tolist() == wrote
    assert sample.model_version == min(wrote)


def test_groups_without_spread_are_told_apart(monkeypatch):
    def by_length(completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    for texts, informative in ((("1",), False), (("1", "12"), True)):
        loop, tokenizer = make_loop(monkeypatch, [by_length])
        Server(loop, tokenizer, texts=texts)
        samples = run_until(loop, GROUP)
        assert [s.metrics.trail.informative for s in samples] == [informative] * GROUP
        assert [s.metrics.trail.row_id for s in samples] == list(range(GROUP))
    assert ROWS_PER_GROUP > GROUP


def test_advantage_controllers_act_where_groups_are_scored(monkeypatch):
    def all_right(completions, **_):
        return [1.0] * len(completions)

    loop, tokenizer = make_loop(monkeypatch, [all_right], advantage_hooks=[WReinforce(weight_positive=0.1)])
    Server(loop, tokenizer)
    samples = run_until(loop, GROUP)
    assert [s.advantage for s in samples] == pytest.approx([0.1] * GROUP)
    assert all(s.metrics.trail.informative for s in samples)  # no spread, and yet a gradient


class Remembering:
    """A reward with a state: how many groups it has seen."""

    __name__ = "remembering"

    def __init__(self):
        self.groups = 0

    def __call__(self, completions, **_):
        self.groups += 1
        return [0.0] * len(completions)

    def state_dict(self):
        return {"groups": self.groups}

    def load_state_dict(self, state):
        self.groups = state["groups"]


def test_a_rewards_state_travels_with_its_group_and_comes_back(monkeypatch):
    loop, tokenizer = make_loop(monkeypatch, guarded([Remembering()]), reward_state=[{"groups": 6}])
    Server(loop, tokenizer)
    samples = run_until(loop, 2 * GROUP)
    assert [s.metrics.trail.reward_state for s in samples[:GROUP]] == [[{"groups": 7}], None, None, None]
    assert samples[GROUP].metrics.trail.reward_state == [{"groups": 8}]


def test_the_key_reaches_every_request(monkeypatch):
    loop, _ = make_loop(monkeypatch, [_right], api_key="secret")

    class Session:
        def __init__(self):
            self.headers = {}

    loop.session = Session()
    assert loop.session.headers == {"Authorization": "Bearer secret"}
