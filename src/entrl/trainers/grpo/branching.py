"""Growing branched rollouts with a trainer's own sampler: roots, forks of their prefixes, copies; exactly G a prompt.

The rules are `entrl.maths.branching`'s. Here: in which calls of the sampler they happen, what is kept of each, that
every rank makes the same calls, and the threshold and mean lengths that one rollout hands to the next.

    call 1           the roots, whole. In the first rollout, which has no threshold yet, all G completions are roots
    calls 2 .. 1+a   window_start: the first w tokens of every fork, those that make no window again (a attempts)
    last call        the rest of each accepted fork; window_end: the forks, from their last window token on

Completions are token-exact: a fork's ids are its root's first ids followed by new ones, and so are its log-probs and
what the sampler recorded, which the sampler said of these very tokens under the same policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import OneRank, Ranks
from entrl.maths.branching import (
    BranchOptions,
    Costs,
    Fork,
    branch_tree,
    makes_the_window,
    plan_forks,
    window_quantiles,
)
from entrl.maths.windows import ThresholdEMA
from entrl.trainers.grpo.continuations import Calls, Entropies, Generate, Piece
from entrl.trainers.grpo.vllm import SampledRow

LENGTH_DECAY = 0.9  # of the mean lengths a token budget foresees with; lengths move faster than thresholds


class BranchedRollout(NamedTuple):
    """One row per completion, G in a row per prompt.

    columns: "branch_root" (int64, root within the prompt), "branch_parent" (int64, row within the prompt it continues
        or repeats, -1: a root), "branch_fork" (int64, position of its first own token, -1: none),
        "branch_weight" (float32, sums to 1 over a root), "branch_copied" (bool)
    generated_tokens: sampled on this rank, rejected and cut tokens included
    metrics: over all ranks
    """

    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None
    records: list[SampledRow] | None
    columns: dict[str, Tensor]
    generated_tokens: int
    metrics: dict[str, float]


@dataclass
class _Branch:
    """A fork on its way: its prompt, the root it leaves, and the completion once its window was accepted."""

    prompt: int
    fork: Fork
    root: Piece
    root_entropies: Tensor
    row: Piece | None = None


@dataclass
class _Tally:
    """What one rank counts in one rollout; sums over the ranks become the metrics."""

    prompts: float = 0.0
    roots: float = 0.0
    root_tokens: float = 0.0
    planned: float = 0.0
    accepted: float = 0.0
    windows_drawn: float = 0.0
    fork_tokens: float = 0.0  # sampled for forks, rejected windows included
    kept_tokens: float = 0.0  # of them, in a completion
    foreseen: float = 0.0
    reused_tokens: float = 0.0  # prefixes of accepted forks
    copies: float = 0.0
    padding_tokens: float = 0.0

    def over(self, ranks: Ranks, device: torch.device | str) -> "_Tally":
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        sums = ranks.sum(torch.tensor(list(vars(self).values()), dtype=dtype, device=device))
        return _Tally(**dict(zip(vars(self), sums.tolist(), strict=True)))

    def metrics(self, threshold: float | None) -> dict[str, float]:
        tokens = self.root_tokens + self.fork_tokens + self.padding_tokens
        out = {
            "branch/roots": self.roots / self.prompts,
            "branch/forks": self.accepted / self.prompts,
            "branch/copies": self.copies / self.prompts,
            "branch/generated_tokens": tokens / self.prompts,
            "branch/reused_tokens": self.reused_tokens / self.prompts,
            "branch/discarded_share": (self.fork_tokens - self.kept_tokens + self.padding_tokens) / max(tokens, 1.0),
        }
        if threshold is not None:
            out["branch/threshold"] = threshold
        if self.planned:
            out["branch/accepted_share"] = self.accepted / self.planned
        if self.windows_drawn:
            out["branch/windows_drawn"] = self.windows_drawn / self.planned  # per fork, the accepted one included
        return out


@dataclass
class Branching:
    """Branched rollouts for one trainer. Its state belongs into the checkpoint.

    threshold: of window means, nats, from earlier rollouts' roots on all ranks. costs: mean lengths of the same.
    """

    options: BranchOptions
    threshold: ThresholdEMA = field(init=False)
    costs: Costs | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.threshold = ThresholdEMA(decay=self.options.ema)

    def rollout(
        self,
        prompt_ids: Sequence[Sequence[int]],
        size: int,
        *,
        generate: Generate,
        entropies: Entropies,
        max_new_tokens: int,
        end_ids: Sequence[int],
        ranks: Ranks | None = None,
        device: torch.device | str = "cpu",
    ) -> BranchedRollout:
        """Completions for this rank's rows.

        prompt_ids: one entry per row, each prompt `size` (G) times in a row; as many rows on every rank.
        generate: (prompts, most new tokens) -> `Drawn`, sampling from the policy; called equally often, with equally
            many prompts, on every rank. entropies: (prompts, completions) -> 1-D nats per completion, of the policy.
        end_ids: the tokens at which the sampler stops. Raises ValueError where groups are not whole.
        """
        prompts = self._prompts(prompt_ids, size)
        ranks = ranks or OneRank()
        calls = Calls(generate, entropies, ranks, filler=prompts[0])
        tally = _Tally(prompts=len(prompts))
        threshold = self.threshold.value
        count = size if threshold is None else self.options.roots
        each = [prompt for prompt in prompts for _ in range(count)]
        roots = calls.draw(each, [max_new_tokens] * len(each))
        root_entropies = calls.score(each, roots)
        tally.roots, tally.root_tokens = len(roots), calls.generated

        branches: list[_Branch] = []
        if threshold is not None:
            for p in range(len(prompts)):
                mine = slice(p * count, (p + 1) * count)
                branches += self._branches(p, roots[mine], root_entropies[mine], size - count, threshold)
            self._grow(prompts, branches, calls, tally, threshold, max_new_tokens, frozenset(end_ids))
        tally.padding_tokens = calls.padding
        rows, columns = self._assemble(prompts, roots, count, branches, size, tally)

        told = tally.over(ranks, device)
        self._learn(root_entropies, told, ranks, device)
        metrics = told.metrics(threshold)
        logprobs = [row.logprobs for row in rows if row.logprobs is not None]
        records = [row.record for row in rows if row.record is not None]
        return BranchedRollout(
            completion_ids=[row.ids for row in rows],
            logprobs=logprobs if len(logprobs) == len(rows) else None,
            records=records if len(records) == len(rows) else None,
            columns=columns,
            generated_tokens=calls.generated + calls.padding,
            metrics=metrics,
        )

    def _prompts(self, prompt_ids: Sequence[Sequence[int]], size: int) -> list[list[int]]:
        if size < self.options.roots:
            raise ValueError(
                f"branch_roots={self.options.roots} exceeds num_generations={size}; roots are among the completions"
            )
        if not prompt_ids or len(prompt_ids) % size:
            raise ValueError(
                f"{len(prompt_ids)} rows on this rank are not whole groups of {size}; make "
                "per_device_train_batch_size x steps_per_generation a multiple of num_generations"
            )
        for first in range(0, len(prompt_ids), size):
            if any(list(row) != list(prompt_ids[first]) for row in prompt_ids[first : first + size]):
                raise ValueError(f"rows {first} to {first + size - 1} should repeat one prompt and do not")
        return [list(row) for row in prompt_ids[::size]]

    def _branches(
        self, prompt: int, roots: list[Piece], entropies: list[Tensor], slots: int, threshold: float
    ) -> list[_Branch]:
        forks = plan_forks(entropies, threshold=threshold, slots=slots, options=self.options, costs=self.costs)
        return [_Branch(prompt, f, roots[f.root], entropies[f.root]) for f in forks]

    def _grow(
        self,
        prompts: list[list[int]],
        branches: list[_Branch],
        calls: Calls,
        tally: _Tally,
        threshold: float,
        max_new_tokens: int,
        end_ids: frozenset[int],
    ) -> None:
        """Draw the forks; a branch whose window was never made again keeps `row` None."""
        before = calls.generated
        window = self.options.window
        if self.options.at == "window_start":
            pending = branches
            for _ in range(self.options.attempts):
                asked = [prompts[b.prompt] + b.root.ids[: b.fork.at] for b in pending]
                pieces = calls.draw(asked, [window] * len(pending))
                scores = calls.score(asked, pieces)
                tally.windows_drawn += len(pieces)
                for branch, piece, entropy in zip(pending, pieces, scores, strict=True):
                    if makes_the_window(
                        branch.fork, branch.root_entropies, entropy, threshold=threshold, window=window
                    ):
                        branch.row = branch.root.head(branch.fork.at).followed_by(piece)
                pending = [b for b in pending if b.row is None]
        else:
            for branch in branches:
                branch.row = branch.root.head(branch.fork.at)
        open_ended = [b for b in branches if b.row is not None and not _ended(b, end_ids, max_new_tokens)]
        asked = [prompts[b.prompt] + b.row.ids for b in open_ended if b.row is not None]
        limits = [max_new_tokens - len(b.row.ids) for b in open_ended if b.row is not None]
        for branch, piece in zip(open_ended, calls.draw(asked, limits), strict=True):
            assert branch.row is not None
            branch.row = branch.row.followed_by(piece)
        tally.planned, tally.fork_tokens = len(branches), calls.generated - before
        length = 0.0 if self.costs is None else self.costs.length
        for branch in branches:
            tally.foreseen += Costs(length=length).fork(branch.fork.at, window)
            if branch.row is not None:
                tally.accepted += 1
                tally.reused_tokens += branch.fork.at
                tally.kept_tokens += len(branch.row.ids) - branch.fork.at

    def _assemble(
        self,
        prompts: list[list[int]],
        roots: list[Piece],
        count: int,
        branches: list[_Branch],
        size: int,
        tally: _Tally,
    ) -> tuple[list[Piece], dict[str, Tensor]]:
        """Exactly `size` rows per prompt, in the tree's order, and its columns."""
        grown: list[list[_Branch]] = [[] for _ in prompts]
        for branch in branches:
            if branch.row is not None:
                grown[branch.prompt].append(branch)
        rows: list[Piece] = []
        trees = []
        for p, mine in enumerate(grown):
            tree = branch_tree(count, [b.fork for b in mine], size)
            # plan_forks goes root by root and along each root, which is the tree's order
            whole = roots[p * count : (p + 1) * count] + [b.row for b in mine if b.row is not None]
            rows += whole + [whole[i] for i in tree.parent[len(whole) :]]
            tally.copies += sum(tree.copied)
            trees.append(tree)
        columns = {
            "branch_root": torch.tensor([x for t in trees for x in t.root]),
            "branch_parent": torch.tensor([x for t in trees for x in t.parent]),
            "branch_fork": torch.tensor([x for t in trees for x in t.fork]),
            "branch_weight": torch.tensor([x for t in trees for x in t.weight]),
            "branch_copied": torch.tensor([x for t in trees for x in t.copied]),
        }
        return rows, columns

    def _learn(self, root_entropies: list[Tensor], told: _Tally, ranks: Ranks, device: torch.device | str) -> None:
        """Threshold and lengths of the next rollout, from this one's roots on all ranks: independent draws."""
        options = self.options
        mine = window_quantiles(root_entropies, window=options.window, quantile=options.quantile)
        self.threshold.update(ranks.gather(mine.to(device)).tolist())
        length = told.root_tokens / max(told.roots, 1.0)
        if self.costs is None:
            self.costs = Costs(length=length)
            return
        overrun = self.costs.overrun
        if told.foreseen:
            overrun = _towards(overrun, told.fork_tokens / told.foreseen)
        self.costs = Costs(length=_towards(self.costs.length, length), overrun=overrun)

    def state_dict(self) -> dict[str, Any]:
        costs = None if self.costs is None else {"length": self.costs.length, "overrun": self.costs.overrun}
        return {"threshold": self.threshold.state_dict(), "costs": costs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self.costs = None if state["costs"] is None else Costs(**state["costs"])


def _ended(branch: _Branch, end_ids: frozenset[int], max_new_tokens: int) -> bool:
    """True where an accepted fork needs no further token; its prefix never ends, a root's window follows it."""
    assert branch.row is not None
    ids = branch.row.ids
    return len(ids) >= max_new_tokens or (len(ids) > branch.fork.at and ids[-1] in end_ids)


def _towards(old: float, new: float) -> float:
    return LENGTH_DECAY * old + (1 - LENGTH_DECAY) * new
