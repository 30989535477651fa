"""TRL's asynchronous rollout loop, with what its rewards and its trainer are not told: entropies, kept mass, versions.

The loop lives in a process of its own, beside the trainer: it sends prompts to one vLLM server, scores each group and
queues the samples. No method body of TRL's is copied. The overrides meet it in four places:

    _generate_one      one conversation: its calls are noted in a context variable, of which each task has its own
    _post              one HTTP call: asks for the sampler's entropies, names the adapter version, reads both back
    _score_group       one group: signals go to the rewards that name them; every training row gets its `Trail`
    session            the server's key, where it asks for one

**Versions.** TRL stamps a group with the version at its creation and names the version of the moment in each request,
so one group may mix versions and its stamp is their lower bound. With LoRA here, every call of a group names the
version of the group's first call (`pin_versions`), which the server still holds while it is not too stale; each
sample is stamped with the version that wrote it. Where full weights are synced there is no name to ask for or to check:
the version is read before and after the call, and a sample whose two readings differ counts as mixed.

Source:  the seams are those of trl/experimental/async_grpo/async_rollout_worker.py, TRL 1.16
Needs:   `entrl serve` (or its flags) on the other side; see docs/async.md
"""

import contextvars
import inspect
import uuid
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from trl.experimental.async_grpo.async_rollout_worker import (
    RolloutGroup,
    RolloutSample,
    TrainingSequence,
    _AsyncRolloutLoop,
)

from entrl.engines.faults import RolloutError, StaleVersion
from entrl.engines.recording import request_options
from entrl.engines.trails import (
    ROWS_PER_GROUP,
    UNKNOWN,
    Call,
    CalledIds,
    Conversation,
    Trail,
    TrailedMetrics,
    joined,
    training_rows,
)
from entrl.maths.phases import ThinkTags, answer_text

COMPLETIONS = "/v1/completions"
# Signals a reward may name; the same words as `entrl.trainers.shared.rewards.SIGNALS`.
PER_COMPLETION = (
    "token_entropies",
    "token_logprobs",
    "token_mask",
    "group_index",
    "prompt_ids",
    "truncated",
    "answer_texts",
)
EXTRAS = ("log_metric", "trainer_state")  # passed where a reward names them, as TRL's GRPOTrainer does


_CONVERSATION: contextvars.ContextVar[Conversation | None] = contextvars.ContextVar("entrl_conversation", default=None)


class EntropyRolloutLoop(_AsyncRolloutLoop):
    """`_AsyncRolloutLoop` whose rewards may name token signals and whose samples say which policy wrote them.

    Arguments are TRL's, plus
        signals: what some reward names, of `PER_COMPLETION` and `EXTRAS`
        record: ask the server for entropies and kept mass
        pin_versions: one adapter version per group (LoRA only)
        sync_steps: optimiser steps between two versions, for `trainer_state.global_step`
        advantage_hooks: controllers whose `on_rollout` replaces a group's advantages; they travel to this process
        reward_state: what `state_dict()` of each reward returned when the run was saved
        api_key: of the server; None = it asks for none
        think_tags: by which the answers of completions are found; None where the tokenizer cannot spell them
    """

    def __init__(
        self,
        *,
        signals: frozenset[str] = frozenset(),
        record: bool = False,
        pin_versions: bool = True,
        sync_steps: int = 1,
        advantage_hooks: Sequence[Any] = (),
        reward_state: list[Any] | None = None,
        api_key: str | None = None,
        think_tags: ThinkTags | None = None,
        **trl_kwargs: Any,
    ) -> None:
        plain = not trl_kwargs.get("tools") and trl_kwargs.get("environment_factory") is None
        if plain:
            # Without a template it knows, TRL refuses: it could not parse tool calls. There are none.
            trl_kwargs["processing_class"].response_template = {}
        super().__init__(**trl_kwargs)
        if plain:
            self.tokenizer.parse_response = _whole_text  # pyright: ignore[reportAttributeAccessIssue]
        self.signals, self.record, self.pin_versions = signals, record, pin_versions
        self.sync_steps, self.advantage_hooks, self.api_key = sync_steps, list(advantage_hooks), api_key
        self.think_tags = think_tags
        self._pins: dict[int, int] = {}
        for reward, state in zip(self.reward_funcs, reward_state or [], strict=False):
            if state is not None:
                stateful(reward).load_state_dict(state)

    def run(self) -> None:
        try:
            super().run()
        finally:
            # Samples nobody will train are not worth the 15 s that TRL gives this process to hand them over.
            for one in (self.rollout_buffer, self._metrics_queue):
                if hasattr(one, "cancel_join_thread"):
                    one.cancel_join_thread()

    # One conversation, one call

    async def _generate_one(
        self, prompt: Any, tool_dict: dict[str, Callable], tools: list[Callable], group_id: int = 0
    ) -> tuple[list[dict[str, str]], list[int], list[TrainingSequence], int, int, float | None]:
        conversation = Conversation(group_id)
        _CONVERSATION.set(conversation)  # of this task alone
        completion, ids, *rest = await super()._generate_one(prompt, tool_dict, tools, group_id=group_id)
        return completion, CalledIds(ids, conversation), *rest  # pyright: ignore[reportReturnType]

    async def _post(self, path: str, payload: dict, timeout: float, max_retries: int = 3) -> dict:
        conversation = _CONVERSATION.get()
        if path != COMPLETIONS or conversation is None:
            return await super()._post(path, payload, timeout, max_retries)
        before = self._version_of(conversation.group_id)
        asked = {"min_p": 0.0, **payload}  # a server fills what is left out from the model's generation_config.json
        if self.lora_name is not None:
            asked["model"] = f"{self.lora_name}-v{before}"
        if self.record:
            asked["vllm_xargs"] = request_options(f"async-{uuid.uuid4().hex}")
        try:
            answer = await super()._post(path, asked, timeout, max_retries)
        except Exception as error:
            if getattr(error, "status", None) != 404 or self.lora_name is None:
                raise
            # Unloaded while the request waited: the completion would be too stale to train on. TRL tries again.
            if before == self.model_version:
                raise RolloutError(
                    f"{self.vllm_server_url} does not know adapter {asked['model']}, the newest published; it was "
                    "restarted, or started with too few --max-loras. Start it again and resume from a checkpoint"
                ) from error
            self._pins[conversation.group_id] = self.model_version
            raise
        version = before if self.lora_name is not None or self.model_version == before else UNKNOWN
        conversation.calls.append(self._call(asked, answer, version))
        return answer

    def _version_of(self, group_id: int) -> int:
        if self.lora_name is None or not self.pin_versions:
            return self.model_version
        return self._pins.setdefault(group_id, self.model_version)

    def _call(self, asked: dict[str, Any], answer: dict[str, Any], version: int) -> Call:
        if self.lora_name is not None and answer.get("model") != asked["model"]:
            raise StaleVersion(
                f"{self.vllm_server_url} answered as {answer.get('model')!r} to a request for {asked['model']!r}; "
                "nothing was trained on it. Look at who else loads adapters there"
            )
        choice = answer["choices"][0]
        ids, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        extra = choice.get("entrl")
        if self.record and extra is None:
            raise RolloutError(
                f"{self.vllm_server_url} was asked for entropies and sent none: the sampler plugin or the middleware "
                "is missing. Start it with `entrl serve`, or set sampler_entropies=False (no reward may need them then)"
            )
        columns = (extra["entropies"], extra["kept_mass"]) if extra is not None else (None, None)
        for name, column in zip(("log-probs", "entropies", "kept masses"), (log_probs, *columns), strict=True):
            if column is not None and len(column) != len(ids):
                raise RolloutError(f"{self.vllm_server_url} sent {len(column)} {name} for {len(ids)} tokens")
        return Call(
            prompt_ids=list(asked["prompt"]),
            output_ids=list(ids),
            log_probs=list(log_probs),
            entropies=columns[0],
            kept_mass=columns[1],
            version=version,
        )

    @property
    def session(self) -> Any:
        return self._session

    @session.setter
    def session(self, session: Any) -> None:
        """TRL opens the session inside `_run_loops`; its default headers are where a key reaches every request."""
        self._session = session
        if session is not None and self.api_key is not None:
            session.headers["Authorization"] = f"Bearer {self.api_key}"

    # One group

    async def _score_group(self, group: RolloutGroup) -> list[RolloutSample]:
        conversations = [ids.conversation for ids in group.completions_ids if isinstance(ids, CalledIds)]
        assert len(conversations) == len(group.completions_ids)
        group.completions_ids = [list(ids) for ids in group.completions_ids]
        self._pins.pop(group.group_id, None)
        self._note_versions(group, conversations)
        signals = self._signals(group, conversations)
        if clash := set(signals) & set(group.reward_kwargs):
            raise ValueError(f"data set columns {sorted(clash)} have the names of token signals; rename them")
        group.reward_kwargs |= signals
        return self._with_trails(group, conversations, await super()._score_group(group))

    def _note_versions(self, group: RolloutGroup, conversations: list[Conversation]) -> None:
        versions = {call.version for c in conversations for call in c.calls}
        for name, true in (
            ("rollout/mixed_version_groups", len(versions) > 1 or UNKNOWN in versions),
            ("rollout/late_stamp_groups", any(v > group.model_version for v in versions)),
        ):
            self._rates[name][0] += true
            self._rates[name][1] += 1

    def _signals(self, group: RolloutGroup, conversations: list[Conversation]) -> dict[str, Any]:
        calls = [c.calls for c in conversations]
        ends = (*self.eos_token_ids, self.tokenizer.pad_token_id)
        columns: dict[str, Callable[[], Any]] = {
            "token_entropies": lambda: [joined(c, "entropies") for c in calls],
            "token_logprobs": lambda: [joined(c, "log_probs") for c in calls],
            # A tool's tokens never enter the completion's ids here: they are context of the next call.
            "token_mask": lambda: [torch.ones(len(i), dtype=torch.bool) for i in group.completions_ids],
            "group_index": lambda: [group.group_id] * len(calls),
            "prompt_ids": lambda: [list(c[0].prompt_ids) for c in calls],
            "truncated": lambda: [not i or i[-1] not in ends for i in group.completions_ids],
            "answer_texts": lambda: [self._answer(s, c) for s, c in zip(group.completions, calls, strict=True)],
            "log_metric": lambda: self._log_metric,
            "trainer_state": lambda: SimpleNamespace(global_step=max(group.model_version - 1, 0) * self.sync_steps),
        }
        return {name: columns[name]() for name in (*PER_COMPLETION, *EXTRAS) if name in self.signals}

    def _answer(self, said: Any, calls: Sequence[Call]) -> str:
        """What the last call answers: its prompt holds everything before it, a tool's words included."""
        if said and said[-1].get("tool_calls"):
            return ""  # a call whose result was not seen
        return answer_text(calls[-1].output_ids, self.think_tags, self.tokenizer, prompt_ids=calls[-1].prompt_ids)

    def _log_metric(self, name: str, value: float) -> None:
        """What a reward logs, averaged over groups until the trainer logs."""
        self._rates[name][0] += float(value)
        self._rates[name][1] += 1

    def _with_trails(
        self, group: RolloutGroup, conversations: list[Conversation], samples: list[RolloutSample]
    ) -> list[RolloutSample]:
        """TRL's samples, each with its trail, the version that wrote it, and the advantage controllers want."""
        owners = [i for i, sequences in enumerate(group.completions_sequences) for _ in sequences]
        assert len(owners) == len(samples)
        rewards = [s.metrics["reward"] for s in samples]
        scored = [r for r in rewards if r == r]
        informative = bool(scored) and max(scored) > min(scored)
        advantages = self._replaced_advantages(group, samples)
        if advantages is not None:  # a controller may give a whole group one advantage that is not 0 (W-REINFORCE)
            informative = informative or any(advantages)
        ends = (*self.eos_token_ids, self.tokenizer.pad_token_id)
        rows_of = [training_rows(c, self._fork_threshold_tokens) for c in conversations]
        taken = [0] * len(conversations)
        for row, (sample, owner) in enumerate(zip(samples, owners, strict=True)):
            columns = rows_of[owner][taken[owner]]
            taken[owner] += 1
            ids = group.completions_ids[owner]
            versions = [call.version for call in conversations[owner].calls]
            sample.model_version = min(versions) if UNKNOWN not in versions else group.model_version
            if advantages is not None:
                sample.advantage = advantages[row]
            sample.metrics = TrailedMetrics(
                sample.metrics,
                Trail(
                    versions=columns["versions"],
                    entropies=columns["entropies"],
                    kept_mass=columns["kept_mass"],
                    row_id=group.group_id * ROWS_PER_GROUP + row,
                    informative=informative,
                    prompt_tokens=len(conversations[owner].calls[0].prompt_ids),
                    index=owner,
                    truncated=not ids or ids[-1] not in ends,
                    reward_state=self._reward_state() if row == 0 else None,
                ),
            )
        return samples

    def _replaced_advantages(self, group: RolloutGroup, samples: list[RolloutSample]) -> list[float] | None:
        if not self.advantage_hooks or not samples:
            return None
        rewards_N = torch.tensor([s.metrics["reward"] for s in samples])
        advantages_N = torch.tensor([s.advantage for s in samples])
        groups_N = torch.full((len(samples),), group.group_id, dtype=torch.int64)
        for controller in self.advantage_hooks:
            replaced = controller.on_rollout(rewards_N, groups_N, advantages_N)
            advantages_N = advantages_N if replaced is None else replaced
        return advantages_N.tolist()

    def _reward_state(self) -> list[Any] | None:
        states = [r.state_dict() if (r := stateful(f)) is not None else None for f in self.reward_funcs]
        return states if any(states) else None


def _whole_text(*_: Any, **__: Any) -> Any:
    """Instead of a template's parser, whose refusal makes TRL decode the completion as it is, without special tokens.

    A template would move the thinking out of the text that rewards read; `GRPOTrainer` leaves it in where there are no
    tools, and a reward should not have to know which trainer calls it.
    """
    raise ValueError("no tools, so nothing to parse")


def stateful(reward: Any) -> Any:
    """The reward behind its guard where it has a state to save, else None."""
    reward = getattr(reward, "reward", reward)
    return reward if hasattr(reward, "state_dict") and hasattr(reward, "load_state_dict") else None


def extras_named(reward: Any) -> frozenset[str]:
    """Which of `EXTRAS` a reward takes by name, or swallows with **kwargs."""
    try:
        parameters = inspect.signature(getattr(reward, "reward", reward)).parameters
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(set(parameters) & set(EXTRAS))
