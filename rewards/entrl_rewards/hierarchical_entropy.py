"""ARES: spend reasoning where problems are hard. Accuracy plus a term in the number of high-entropy windows.

    r = 1[right] + term_d(n - target_d)       d = easy, medium, hard by the share of right answers in the group
    n = windows of w tokens whose mean entropy reaches the threshold, behind a trigger word where triggers are given

The term presses right answers to easy problems for windows beyond what easy problems are used to, keeps medium ones
near theirs, pays right answers to hard ones for searching, and pays wrong answers to harder problems for a surplus.
The tables are in `hierarchical_formulas`, thresholds and windows in `entrl.maths.windows`, buckets in
`entrl.maths.difficulty`.

    mode="fixed"   default: the repairs below
    mode="code"    the authors' functions; with `evaluate_before_buckets` in the order their released run calls them,
                   before any bucket exists, so that every prompt counts as easy with target 0
    mode="paper"   the printed equation, wrong answers alone; its lambda is 0 as printed, so the target comes from the
                   batches before (`external`: lambda sees the target before this batch, the count the one after) or
                   lambda is learnt (`dual_ascent`: the code's step on the mean soft cost of all completions, where
                   the code takes each prompt's last one)

Source:  arXiv 2510.08457; shawn0728/ARES at 146620e, re-derived from a description and checked on its own numbers
Differs: (fixed) buckets, targets and threshold are known before the reward is computed and do not depend on how
    groups lie on ranks; targets are an EMA; one entropy estimator for threshold and count; triggers are tested on the
    sampled token; alpha stays put (the published one walks at random); a wrong answer without a surplus earns 0; no
    wrong answer outranks a right one. (code) what is counted: every window, by exact entropies, and in the first batch
    against no threshold. The published run counted windows behind 174 trigger words, tested on the most likely token,
    by the top 10 log-probs, and took its first threshold from a validation run. What comes nearest, with our words and
    rows that bring token_topk_logprobs and token_topk_ids: triggers="en", argmax_trigger, entropy_source="topk",
    topk_estimate="bucket", threshold_estimate="dropped"
Needs:   EntropyGRPOTrainer: token_entropies (or token_topk_logprobs), group_index, gather; tokenizer with triggers

Documented answers. Verdict not known: None, and the row says nothing about difficulty. Empty completion: no window.
alpha=0 is accuracy alone, with difficulty still published for controllers (`row_columns`) and logged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from entrl.maths.difficulty import BUCKETS, Targets
from entrl.maths.signals import pad_rows
from entrl.maths.windows import (
    HighEntropyWindows,
    ThresholdEMA,
    high_entropy_windows,
    in_window_mask,
    row_quantiles,
    running_tail_means,
    trigger_mask,
    window_means,
)
from entrl_rewards.correctness import ACCURACY, Gated, Verifier, columns_of, judge
from entrl_rewards.entropy_source import SIGNAL_OF, EntropySource, TopKEstimate, token_entropy_rows
from entrl_rewards.groups import shuffle_within
from entrl_rewards.hierarchical_formulas import entropy_term, ordered, paper_reward
from entrl_rewards.hierarchical_options import fill_in
from entrl_rewards.hierarchical_state import (
    NO_THRESHOLD,
    Facts,
    Standing,
    State,
    bucket_metrics,
    inversions,
)
from entrl_rewards.triggers import trigger_ids, trigger_words

Mode = Literal["fixed", "code", "paper"]
Gather = Callable[[list[float]], list[float]]  # the floats of every rank, in one list


@dataclass(frozen=True, kw_only=True)
class HierarchicalEntropy(Gated):
    """The reward as EntropyGRPOTrainer calls it. Options left at None take the value of `mode`."""

    __name__: ClassVar[str] = "hierarchical_entropy"
    published_columns: ClassVar[tuple[str, ...]] = ("difficulty", "correct", "high_entropy")

    mode: Mode = "fixed"
    alpha: float | None = None  # size of the term; the published range in which order holds ends at 0.41
    window: int = 4  # tokens
    following: bool | None = None  # the window is the tokens after the trigger; False: it begins with it
    triggers: str | Sequence[str] | None = None  # "en", "en+zh", a list of words; None: every window
    argmax_trigger: bool = False  # test the most likely token, not the sampled one (needs token_topk_ids)
    percentile: float = 0.95  # of a completion's window means; the batch median of it is the threshold
    threshold: float | None = None  # nats; None: follows the policy
    threshold_decay: float = 0.99
    threshold_lag: bool | None = None  # count with the threshold of the step before
    entropy_source: EntropySource = "exact"
    topk_estimate: TopKEstimate = "mid"  # the sharpened tail
    threshold_estimate: TopKEstimate | None = None  # None: the same as for counting; published: "dropped"
    topk_k: int | None = None
    vocab_size: int | None = None
    target_decay: float | None = None
    rounded_target: bool | None = None
    alpha_rate: float | None = None  # published 0.05
    alpha_range: tuple[float, float] = (0.0, 2.0)
    centred: bool | None = None
    ordering_guard: bool | None = None
    wrong_bonus: Mapping[str, float] | None = None  # share of the cap per difficulty
    lambda_mode: Literal["off", "external", "dual_ascent"] | None = None
    evaluate_before_buckets: bool = False  # the published order: every prompt easy, target 0
    correctness: Verifier = ACCURACY
    # NEGATIVE CONTROL, not a method: each completion is judged by the count of another one of its group with the same
    # verdict, so a group's rewards are the same numbers with the link between text and windows cut.
    shuffle_counts_in_group: bool = False
    shuffle_seed: int = 0

    row_columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _state: State = field(init=False, repr=False, compare=False)
    _trigger_ids: dict[int, frozenset[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_range", tuple(self.alpha_range))
        if isinstance(self.triggers, list):
            object.__setattr__(self, "triggers", tuple(self.triggers))
        if self.triggers is not None:
            trigger_words(self.triggers)  # a misspelt language should not wait for the first rollout
        fill_in(self)
        state = State(
            threshold=ThresholdEMA(decay=self.threshold_decay),
            targets=Targets(decay=self._of("target_decay"), rounded=self._of("rounded_target")),
            alpha=[self._of("alpha")] * len(BUCKETS),
        )
        object.__setattr__(self, "_state", state)

    def _of(self, name: str) -> Any:
        """An option that its mode has filled in."""
        return getattr(self, name)

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver; top-k log-probs and ids come as keys of the rows."""
        source = () if self.entropy_source == "topk" else (SIGNAL_OF[self.entropy_source],)
        words = ("tokenizer",) if self.triggers is not None else ()
        return (*source, "token_mask", "group_index", "gather", *words)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without."""
        judged = columns_of(self.correctness)
        return (*judged, "token_topk_ids") if self.argmax_trigger else judged

    @property
    def needs_whole_groups(self) -> bool:
        return self.shuffle_counts_in_group

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        group_index: list[int] | None = None,
        token_mask: Sequence[Any] | None = None,
        gather: Gather | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: Any = None,
        training: bool = True,
        **signals: Any,
    ) -> list[float | None]:
        if group_index is None:
            raise TypeError("hierarchical_entropy needs group_index, which stock TRL does not pass: EntropyGRPOTrainer")
        judged = {"completion_ids": completion_ids, "log_metric": log_metric, "trainer_state": trainer_state}
        verdicts = judge(self.correctness, completions=completions, **judged, **signals)
        own = own_tokens(completion_ids, token_mask)
        windows = self._windows(completion_ids, own, gather, training, signals)
        lengths = [int(own_T.sum()) for own_T in own]
        mine = [
            Facts(int(g), -1.0 if v is None else float(v), int(n), float(c), int(t))
            for g, v, n, c, t in zip(
                group_index, verdicts, windows.count_B.tolist(), windows.soft_cost_B.tolist(), lengths, strict=True
            )
        ]
        everyone = gathered(mine, gather)
        standing = self._state.see(
            everyone,
            alpha_rate=self._of("alpha_rate"),
            alpha_range=self.alpha_range,
            lambda_mode=self._of("lambda_mode"),
            keep=training,
        )
        counts = self._counts(mine, step=int(getattr(trainer_state, "global_step", 0) or 0))
        rewards = [
            None if fact.known is None else self.reward_of(standing.bucket[fact.group], fact.known, n, standing)
            for fact, n in zip(mine, counts, strict=True)
        ]
        self.row_columns.clear()
        self.row_columns.update(
            difficulty=[standing.bucket[f.group] for f in mine],
            correct=[int(f.verdict) for f in mine],
            high_entropy=self._inside(windows, own),
        )
        if log_metric is not None:
            self._log(log_metric, everyone, standing, mine, rewards, gather)
        return rewards

    def reward_of(self, bucket: int, correct: bool, n: float, standing: Standing | None = None) -> float:
        """Reward of a completion with n counted windows, in a group of this bucket.

        standing: targets, alphas and lambdas in force; None = those of the state.
        """
        target, alpha, weight = self._state.targets.values[bucket], self._state.alpha[bucket], 0.0
        if standing is not None:
            target, alpha, weight = standing.target[bucket], standing.alpha[bucket], standing.weight[bucket]
        if self.evaluate_before_buckets:  # what the published batch manager fills in where the fields are missing
            bucket, target, alpha = 0, 0.0, self._of("alpha")
        if target is None:
            raise ValueError(f"no {BUCKETS[bucket]} prompt was seen yet, so there is no target; call the reward first")
        if self.mode == "paper":
            return paper_reward(bucket, correct, n - target, weight)
        bonus = self._of("wrong_bonus")
        shares = [bonus[name] for name in BUCKETS]
        term = entropy_term(bucket, correct, n, target, alpha, centred=self._of("centred"), wrong_shares=shares)
        reward = float(correct) + term
        return ordered(reward, correct) if self._of("ordering_guard") else reward

    def _windows(
        self,
        completion_ids: list[list[int]],
        own: list[Tensor],
        gather: Gather | None,
        training: bool,
        signals: dict[str, Any],
    ) -> HighEntropyWindows:
        """Windows over each completion's own tokens, which lie side by side."""
        entropy_BT, mask_BT = self._entropies(completion_ids, own, signals, self.topk_estimate)
        trigger_BT = None
        if self.triggers is not None:
            texts = signals.get("token_topk_ids") if self.argmax_trigger else completion_ids
            if texts is None:
                raise TypeError(
                    "argmax_trigger needs token_topk_ids (per completion (T, K), most likely first), which no trainer "
                    "here delivers: add that key to the rows, or leave argmax_trigger out"
                )
            first = [torch.as_tensor(row)[:, 0] if self.argmax_trigger else torch.tensor(row) for row in texts]
            ids_BT, _ = pad_rows([row.long()[m] for row, m in zip(first, own, strict=True)], value=-1)
            trigger_BT = trigger_mask(ids_BT, self._ids(signals.get("tokenizer")))
        line_BT = entropy_BT
        if self.threshold_estimate is not None and self.entropy_source == "topk":
            line_BT, _ = self._entropies(completion_ids, own, signals, self.threshold_estimate)
        threshold = self._threshold(line_BT, mask_BT, gather, training)
        return high_entropy_windows(
            entropy_BT,
            mask_BT,
            threshold=threshold,
            window=self.window,
            following=self._of("following"),
            trigger_BT=trigger_BT,
        )

    def _entropies(
        self, completion_ids: list[list[int]], own: list[Tensor], signals: dict[str, Any], estimate: TopKEstimate
    ) -> tuple[Tensor, Tensor]:
        rows = token_entropy_rows(
            self.entropy_source, completion_ids, signals, estimate=estimate, k=self.topk_k, vocab_size=self.vocab_size
        )
        return pad_rows([row[m] for row, m in zip(rows, own, strict=True)])

    def _threshold(self, entropy_BT: Tensor, mask_BT: Tensor, gather: Gather | None, training: bool) -> float:
        """The line in force for this batch; in training the batch moves it, before it is used or (lag) afterwards."""
        if self.threshold is not None:
            return self.threshold
        if self.mode == "code":
            mean_BT, full_BT = running_tail_means(entropy_BT, mask_BT, self.window), mask_BT
        else:
            mean_BT, full_BT = window_means(entropy_BT, mask_BT, self.window, following=self._of("following"))
        values = row_quantiles(mean_BT, full_BT, self.percentile).tolist()
        values = gather(values) if gather else values
        before = self._state.threshold.value
        moving = self._state.threshold if training else ThresholdEMA(decay=self.threshold_decay, value=before)
        after = moving.update(values)
        line = before if self._of("threshold_lag") or (not training and before is not None) else after
        return NO_THRESHOLD if line is None else line

    def _ids(self, tokenizer: Any) -> frozenset[int]:
        if tokenizer is None:
            raise TypeError(
                "hierarchical_entropy with triggers needs a tokenizer to find their ids: EntropyGRPOTrainer"
            )
        if id(tokenizer) not in self._trigger_ids:
            assert self.triggers is not None
            self._trigger_ids[id(tokenizer)] = trigger_ids(tokenizer, trigger_words(self.triggers))
        return self._trigger_ids[id(tokenizer)]

    def _counts(self, facts: Sequence[Facts], *, step: int) -> list[int]:
        counts = [f.count for f in facts]
        if not self.shuffle_counts_in_group:
            return counts
        class_BN = torch.tensor([[f.group, int(f.verdict)] for f in facts])
        source_B = shuffle_within(class_BN, seeds=(self.shuffle_seed, step))
        return [counts[i] for i in source_B.tolist()]

    def _inside(self, windows: HighEntropyWindows, own: list[Tensor]) -> list[Tensor]:
        """Per completion a 1-D bool, one per token (a tool's included): inside a counted window."""
        inside_BT = in_window_mask(windows.start_BT, self.window, following=self._of("following"))
        rows = []
        for inside_T, own_T in zip(inside_BT, own, strict=True):
            row = torch.zeros(len(own_T), dtype=torch.bool)
            row[own_T] = inside_T[: int(own_T.sum())]
            rows.append(row)
        return rows

    def _log(
        self,
        log_metric: Callable[[str, float], None],
        everyone: Sequence[Facts],
        standing: Standing,
        mine: Sequence[Facts],
        rewards: Sequence[float | None],
        gather: Gather | None,
    ) -> None:
        metrics = bucket_metrics(everyone, standing, "ares")
        if self.evaluate_before_buckets:  # what is in force: see `reward_of`
            for name in BUCKETS:
                metrics |= {f"ares/{name}/target": 0.0, f"ares/{name}/alpha": self._of("alpha")}
        line = self.threshold if self.threshold is not None else self._state.threshold.value
        if line is not None:
            metrics["ares/threshold"] = line
        paid = [r if r is not None else 0.0 for r in rewards]
        turned = inversions(
            [f.group for f in everyone], [f.known for f in everyone], gather(paid) if gather else list(paid)
        )
        if turned is not None:
            metrics["ares/wrong_above_right"] = turned
        if self._of("lambda_mode") != "off":
            metrics |= {f"ares/{name}/lambda": w for name, w in zip(BUCKETS, standing.weight, strict=True)}
        for name, value in metrics.items():
            log_metric(name, value)

    def state_dict(self) -> dict[str, Any]:
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.load_state_dict(state)


def own_tokens(completion_ids: Sequence[Sequence[int]], token_mask: Sequence[Any] | None) -> list[Tensor]:
    """1-D bool per completion: the tokens that the model wrote; all of them where nobody says otherwise."""
    if token_mask is None:
        return [torch.ones(len(ids), dtype=torch.bool) for ids in completion_ids]
    return [torch.as_tensor(mask, dtype=torch.bool) for mask in token_mask]


def gathered(facts: Sequence[Facts], gather: Gather | None) -> list[Facts]:
    """The facts of every rank; as they are without a `gather`."""
    if gather is None:
        return list(facts)
    flat = gather([float(x) for fact in facts for x in fact])
    rows = zip(*(flat[i :: len(Facts._fields)] for i in range(len(Facts._fields))), strict=True)
    return [Facts(int(g), v, int(n), c, int(t)) for g, v, n, c, t in rows]


reward = HierarchicalEntropy()
