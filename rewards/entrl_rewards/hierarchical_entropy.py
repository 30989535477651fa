"""ARES: spend reasoning where problems are hard. Accuracy plus a term in the number of high-entropy windows.

    r = 1[right] + term_d(n - target_d)       d = easy, medium, hard by the share of right answers in the group
    n = windows of w tokens whose mean entropy reaches the threshold, behind a trigger word where triggers are given

The term presses right answers to easy problems for windows beyond what easy problems are used to, keeps medium ones
near theirs, pays right answers to hard ones for searching, and pays wrong answers to harder problems for a surplus.
The tables are in `hierarchical_formulas`, what a mode stands for in `hierarchical_options`, windows and threshold in
`hierarchical_windows`, buckets in `entrl.maths.difficulty`.

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
    rows that bring token_topk_logprobs and token_topk_ids: triggers="en" and, in `expert`, argmax_trigger,
    entropy_source="topk", topk_estimate="bucket", threshold_estimate="dropped"
Needs:   EntropyGRPOTrainer: token_entropies (or token_topk_logprobs), group_index, gather; tokenizer with triggers

Documented answers. Verdict not known: None, and the row says nothing about difficulty. Empty completion: no window.
alpha=0 is accuracy alone, with difficulty still published for controllers (`row_columns`) and logged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from entrl.maths.difficulty import BUCKETS
from entrl_rewards.correctness import judge
from entrl_rewards.groups import shuffle_within
from entrl_rewards.hierarchical_formulas import EASY, entropy_term, ordered, paper_reward
from entrl_rewards.hierarchical_options import HierarchicalOptions, check_options
from entrl_rewards.hierarchical_state import Facts, Standing, State, bucket_metrics, gathered, inversions
from entrl_rewards.hierarchical_windows import count_windows, inside_windows
from entrl_rewards.trainer_signals import Gather, LogMetric, optimiser_step, own_tokens
from entrl_rewards.triggers import trigger_words


@dataclass(frozen=True, kw_only=True)
class HierarchicalEntropy(HierarchicalOptions):
    """The reward as EntropyGRPOTrainer calls it; its options are those of `HierarchicalOptions`."""

    __name__: ClassVar[str] = "hierarchical_entropy"
    published_columns: ClassVar[tuple[str, ...]] = ("difficulty", "correct", "high_entropy")

    row_columns: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _state: State = field(default_factory=State, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.triggers is not None:
            trigger_words(self.triggers)  # a misspelt language should not wait for the first rollout
        check_options(self)
        self._state.start(self.rules, threshold_decay=self.expert.threshold_decay)

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals the trainer must deliver; top-k log-probs and ids come as keys of the rows."""
        words = ("tokenizer",) if self.triggers is not None else ()
        return (*self.expert.entropy_needs, "token_mask", "group_index", "gather", *words)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data set columns training cannot do without."""
        return (*super().columns, "token_topk_ids") if self.expert.argmax_trigger else super().columns

    @property
    def needs_whole_groups(self) -> bool:
        return self.expert.shuffle_counts_in_group

    def __call__(
        self,
        *,
        completions: list[Any],
        completion_ids: list[list[int]],
        group_index: list[int] | None = None,
        token_mask: Sequence[Any] | None = None,
        gather: Gather | None = None,
        log_metric: LogMetric | None = None,
        trainer_state: Any = None,
        training: bool = True,
        **signals: Any,
    ) -> list[float | None]:
        if group_index is None:
            raise TypeError("hierarchical_entropy needs group_index, which stock TRL does not pass: EntropyGRPOTrainer")
        judged = {"completion_ids": completion_ids, "log_metric": log_metric, "trainer_state": trainer_state}
        verdicts = judge(self.correctness, completions=completions, **judged, **signals)
        own, state = own_tokens(completion_ids, token_mask), self._state
        windows = count_windows(self, state, completion_ids, own, signals, gather=gather, training=training)
        found = zip(group_index, verdicts, windows.count_B.tolist(), windows.soft_cost_B.tolist(), own, strict=True)
        mine = [
            Facts(int(g), -1.0 if v is None else float(v), int(n), float(c), int(own_T.sum()))
            for g, v, n, c, own_T in found
        ]
        everyone = gathered(mine, gather)
        standing = state.see(everyone, self.rules, alpha_range=self.expert.alpha_range, keep=training)
        counts = self._counts(mine, step=optimiser_step(trainer_state))
        rewards = [
            None if fact.known is None else self.reward_of(standing.bucket[fact.group], fact.known, n, standing)
            for fact, n in zip(mine, counts, strict=True)
        ]
        self.row_columns.clear()
        self.row_columns.update(
            difficulty=[standing.bucket[f.group] for f in mine],
            correct=[int(f.verdict) for f in mine],
            high_entropy=inside_windows(self, windows, own),
        )
        if log_metric is not None:
            for name, value in self._metrics(everyone, standing, rewards, gather).items():
                log_metric(name, value)
        return rewards

    def reward_of(self, bucket: int, correct: bool, n: float, standing: Standing | None = None) -> float:
        """Reward of a completion with n counted windows, in a group of this bucket.

        standing: targets, alphas and lambdas in force; None = those of the state.
        """
        now = self._state.standing() if standing is None else standing
        target, alpha = now.target[bucket], now.alpha[bucket]
        if self.expert.evaluate_before_buckets:  # what the published batch manager fills in for missing fields
            bucket, target, alpha = EASY, 0.0, self.rules.alpha
        if target is None:
            raise ValueError(f"no {BUCKETS[bucket]} prompt was seen yet, so there is no target; call the reward first")
        if self.mode == "paper":
            return paper_reward(bucket, correct, n - target, now.weight[bucket])
        shares = [self.rules.wrong_bonus[name] for name in BUCKETS]
        term = entropy_term(bucket, correct, n, target, alpha, centred=self.rules.centred, wrong_shares=shares)
        reward = float(correct) + term
        return ordered(reward, correct) if self.rules.ordering_guard else reward

    def _counts(self, facts: Sequence[Facts], *, step: int) -> list[int]:
        counts = [f.count for f in facts]
        if not self.expert.shuffle_counts_in_group:
            return counts
        class_BN = torch.tensor([[f.group, int(f.verdict)] for f in facts])
        source_B = shuffle_within(class_BN, seeds=(self.expert.shuffle_seed, step))
        return [counts[i] for i in source_B.tolist()]

    def _metrics(
        self, everyone: Sequence[Facts], standing: Standing, rewards: Sequence[float | None], gather: Gather | None
    ) -> dict[str, float]:
        metrics = bucket_metrics(everyone, standing, "ares")
        if self.expert.evaluate_before_buckets:  # what is in force: see `reward_of`
            for name in BUCKETS:
                metrics |= {f"ares/{name}/target": 0.0, f"ares/{name}/alpha": self.rules.alpha}
        line = self.threshold if self.threshold is not None else self._state.threshold.value
        if line is not None:
            metrics["ares/threshold"] = line
        paid = [r if r is not None else 0.0 for r in rewards]
        groups, verdicts = [f.group for f in everyone], [f.known for f in everyone]
        turned = inversions(groups, verdicts, gather(paid) if gather else paid)
        if turned is not None:
            metrics["ares/wrong_above_right"] = turned
        if self.rules.lambda_mode != "off":
            metrics |= {f"ares/{name}/lambda": w for name, w in zip(BUCKETS, standing.weight, strict=True)}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return self._state.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.load_state_dict(state)


reward = HierarchicalEntropy()
