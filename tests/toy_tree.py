"""A language of two letters and an end, small enough to add up every rollout there can be: what branching tests share.

`python tests/toy_tree.py` prints the tables of docs/branching.md.

A completion is a tuple of tokens 0, 1 (letters) and 2 (end), at most LENGTH long. The policy has its own logits for
every prefix, so the gradient has a number for each of them and no approximation can hide.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from entrl.maths.branching import (
    BranchOptions,
    Fork,
    branch_tree,
    makes_the_window,
    plan_forks,
    tree_advantages,
    validated_windows,
    window_quantiles,
)

END = 2
Text = tuple[int, ...]


@dataclass
class Language:
    """Policy and rewards. `certain` first letters are (almost) not chosen at all, so windows come after them."""

    seed: int = 0
    length: int = 4
    certain: int = 0
    ends: bool = True  # False: every text has `length` letters
    late_reward: bool = False  # the last letter decides, not the first that is not certain
    policy: dict[Text, Tensor] = field(default_factory=dict)  # prefix -> probabilities of 0, 1, END

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for size in range(self.length):
            for prefix in itertools.product((0, 1), repeat=size):
                logits = 1.5 * torch.randn(3, generator=generator, dtype=torch.float64)
                logits[END] -= 1.0 if self.ends else torch.inf
                if size < self.certain:
                    logits = torch.tensor([6.0, 0.0, -torch.inf], dtype=torch.float64)
                self.policy[prefix] = logits.softmax(-1)
        self.cache: dict = {}
        self.nodes = {prefix: i for i, prefix in enumerate(self.policy)}
        self.texts = self._texts(())
        self.index = {text: i for i, text in enumerate(self.texts)}
        noise = torch.rand(len(self.texts), generator=generator, dtype=torch.float64)
        letters = torch.tensor([self._letter(text) for text in self.texts], dtype=torch.float64)
        self.rewards = letters + 0.5 * noise
        self.chances = torch.stack([self.chance(text) for text in self.texts])
        self.scores = torch.stack([self._score(text) for text in self.texts])
        self.lengths = torch.tensor([float(len(text)) for text in self.texts], dtype=torch.float64)

    def _texts(self, prefix: Text) -> list[Text]:
        if len(prefix) == self.length or (prefix and prefix[-1] == END):
            return [prefix]
        return [
            text for token in (0, 1, END) if self.policy[prefix][token] > 0 for text in self._texts((*prefix, token))
        ]

    def _letter(self, text: Text) -> float:
        if self.late_reward:
            return float(text[-1] == 1)
        return float(text[self.certain] == 1) if len(text) > self.certain else 0.0

    def chance(self, text: Text, start: int = 0) -> Tensor:
        """Probability of a text's tokens from `start` on."""
        out = torch.ones((), dtype=torch.float64)
        for t in range(start, len(text)):
            out = out * self.policy[text[:t]][text[t]]
        return out

    def _score(self, text: Text, weights: list[float] | None = None) -> Tensor:
        """Flat gradient of ln pi(text) with respect to all logits; weights: one per token."""
        out = torch.zeros(len(self.nodes), 3, dtype=torch.float64)
        for t in range(len(text)):
            weight = 1.0 if weights is None else weights[t]
            out[self.nodes[text[:t]]] -= weight * self.policy[text[:t]]
            out[self.nodes[text[:t]], text[t]] += weight
        return out.flatten()

    def entropies(self, text: Text) -> Tensor:
        if text not in self.cache:
            self.cache[text] = self._entropies(text)
        return self.cache[text]

    def _entropies(self, text: Text) -> Tensor:
        rows = torch.stack([self.policy[text[:t]] for t in range(len(text))])
        return -torch.xlogy(rows, rows).sum(-1)

    def gradient(self) -> Tensor:
        """Of the mean reward, exactly."""
        return (self.chances * self.rewards) @ self.scores

    def continuations(self, prefix: Text) -> list[tuple[float, Text]]:
        return [(float(self.chance(t, len(prefix))), t) for t in self.texts if t[: len(prefix)] == prefix]


class Rollout(NamedTuple):
    """One rollout of a prompt that can happen: how likely, its completions (roots, forks, copies) and their tree."""

    chance: float
    texts: list[Text]
    root: list[int]
    weight: list[float]
    distinct: int  # completions that are no copies
    fork: list[int]


class Setting(NamedTuple):
    """How forks are chosen and drawn. plan: the two roots' entropies -> forks; recheck: hold them to the window."""

    options: BranchOptions
    threshold: float
    size: int
    recheck: bool = True
    plan: Callable[[list[Tensor]], list[Fork]] | None = None
    own_threshold: bool = False  # of this rollout's own roots, which is not allowed

    def forks(self, entropies: list[Tensor]) -> tuple[list[Fork], float]:
        threshold = self.threshold
        if self.own_threshold:
            quantiles = window_quantiles(entropies, window=self.options.window, quantile=self.options.quantile)
            threshold = float(quantiles.nanmedian())
        if self.plan is not None:
            return self.plan(entropies), threshold
        slots = self.size - self.options.roots
        return plan_forks(entropies, threshold=threshold, slots=slots, options=self.options), threshold


class Outcome(NamedTuple):
    chance: float
    text: Text | None  # None: every attempt failed


def fork_outcomes(
    language: Language, fork: Fork, parent: Text, setting: Setting, threshold: float
) -> tuple[list[Outcome], float]:
    """Every way a fork can end, and the tokens that drawing it costs on average."""
    key = (fork, parent, setting.options, setting.recheck, threshold)
    if key not in language.cache:
        language.cache[key] = _fork_outcomes(language, fork, parent, setting, threshold)
    return language.cache[key]


def _fork_outcomes(
    language: Language, fork: Fork, parent: Text, setting: Setting, threshold: float
) -> tuple[list[Outcome], float]:
    options = setting.options
    every = language.continuations(parent[: fork.at])
    if options.at == "window_end" or not setting.recheck:
        return [Outcome(p, text) for p, text in every], sum(p * (len(text) - fork.at) for p, text in every)
    entropies, window = language.entropies(parent), options.window

    def makes(text: Text) -> bool:
        drawn = language.entropies(text)[fork.at : fork.at + window]
        return makes_the_window(fork, entropies, drawn, threshold=threshold, window=window)

    good = [(p, text) for p, text in every if makes(text)]
    accept = sum(p for p, _ in good)
    reached = 1 - (1 - accept) ** options.attempts
    outcomes = [Outcome(p * reached / accept, text) for p, text in good]
    if reached < 1:
        outcomes.append(Outcome(1 - reached, None))
    piece = sum(p * min(len(text) - fork.at, window) for p, text in every)
    rest = sum(p * max(len(text) - fork.at - window, 0) for p, text in good)
    return outcomes, piece * reached / accept + rest * reached / accept


def every_rollout(language: Language, setting: Setting) -> tuple[list[Rollout], float]:
    """All rollouts of a prompt with two roots, and the mean number of tokens drawn for one."""
    assert setting.options.roots == 2
    found, tokens = [], 0.0
    for first, second in itertools.product(range(len(language.texts)), repeat=2):
        roots = [language.texts[first], language.texts[second]]
        chance = float(language.chances[first] * language.chances[second])
        forks, threshold = setting.forks([language.entropies(text) for text in roots])
        drawn = [fork_outcomes(language, fork, roots[fork.root], setting, threshold) for fork in forks]
        tokens += chance * (sum(len(text) for text in roots) + sum(cost for _, cost in drawn))
        for outcome in itertools.product(*(outcomes for outcomes, _ in drawn)):
            grown = [(fork, o.text) for fork, o in zip(forks, outcome, strict=True) if o.text is not None]
            tree = branch_tree(2, [fork for fork, _ in grown], setting.size)
            texts = roots + [text for _, text in grown]
            texts += [texts[i] for i in tree.parent[len(texts) :]]
            happens = chance
            for o in outcome:
                happens *= o.chance
            found.append(Rollout(happens, texts, tree.root, tree.weight, 2 + len(grown), tree.fork))
    return found, tokens


class Moments(NamedTuple):
    mean: Tensor  # of the gradient estimate of one prompt
    variance: float  # trace of its covariance


def moments(language: Language, rollouts: list[Rollout], coefficients: list[list[float]]) -> Moments:
    """Of the estimate sum_i c_i grad ln pi(text_i), over every rollout."""
    chance = torch.tensor([r.chance for r in rollouts], dtype=torch.float64)
    index = torch.tensor([[language.index[t] for t in r.texts] for r in rollouts])
    estimate = torch.zeros(len(rollouts), language.scores.size(1), dtype=torch.float64)
    factor = torch.tensor(coefficients, dtype=torch.float64)
    for i in range(index.size(1)):
        estimate += factor[:, i, None] * language.scores[index[:, i]]
    return _moments(chance, estimate)


def _moments(chance: Tensor, estimate: Tensor) -> Moments:
    mean = chance @ estimate
    return Moments(mean, float(chance @ (estimate - mean).square().sum(-1)))


class Tree(NamedTuple):
    """Moments of one root's tree over its forks: T = sum w r s, S = sum w s, V = sum w r."""

    T: Tensor
    S: Tensor
    V: float
    TT: float
    SS: float
    VV: float
    TS: float
    VT: Tensor
    VS: Tensor


def _tree(language: Language, root: Text, forks: list[Fork], setting: Setting, threshold: float) -> Tree:
    key = (root, tuple(forks), setting.options, setting.recheck, threshold, "tree")
    if key not in language.cache:
        chances, T, S, V = [], [], [], []
        drawn = [fork_outcomes(language, fork, root, setting, threshold)[0] for fork in forks]
        for outcome in itertools.product(*drawn):
            grown = [(f._replace(root=0), o.text) for f, o in zip(forks, outcome, strict=True) if o.text is not None]
            weight = torch.tensor(branch_tree(1, [f for f, _ in grown], 1 + len(grown)).weight, dtype=torch.float64)
            index = torch.tensor([language.index[t] for t in [root, *(t for _, t in grown)]])
            happens = 1.0
            for o in outcome:
                happens *= o.chance
            chances.append(happens)
            scores, rewards = language.scores[index], language.rewards[index]
            T.append((weight * rewards) @ scores)
            S.append(weight @ scores)
            V.append(weight @ rewards)
        p, T, S, V = torch.tensor(chances, dtype=torch.float64), torch.stack(T), torch.stack(S), torch.stack(V)
        products = [float(p @ x) for x in (T.square().sum(1), S.square().sum(1), V.square(), (T * S).sum(1))]
        language.cache[key] = Tree(p @ T, p @ S, float(p @ V), *products, (p * V) @ T, (p * V) @ S)
    return language.cache[key]


def two_roots(language: Language, setting: Setting) -> tuple[Moments, float]:
    """Moments of our estimate and its tokens, from those of each root's tree: given the roots, the trees' forks are
    independent. The formula of `entrl.maths.branching` written down again, for languages too large to list every
    rollout."""
    mean, square, tokens = torch.zeros_like(language.scores[0]), 0.0, 0.0
    for first, second in itertools.product(range(len(language.texts)), repeat=2):
        roots = [language.texts[first], language.texts[second]]
        chance = float(language.chances[first] * language.chances[second])
        forks, threshold = setting.forks([language.entropies(text) for text in roots])
        a, b = (_tree(language, roots[i], [f for f in forks if f.root == i], setting, threshold) for i in (0, 1))
        mean += chance / 2 * (a.T + b.T - b.V * a.S - a.V * b.S)
        square += (chance / 4) * float(
            a.TT + b.TT + b.VV * a.SS + a.VV * b.SS
            + 2 * (a.T @ b.T - b.V * a.TS - a.VT @ b.S - b.VT @ a.S - a.V * b.TS + a.VS @ b.VS)
        )  # fmt: skip
        costs = [fork_outcomes(language, fork, roots[fork.root], setting, threshold)[1] for fork in forks]
        tokens += chance * (sum(len(text) for text in roots) + sum(costs))
    return Moments(mean, square - float(mean.square().sum())), tokens


# Ways to turn a rollout into coefficients of its completions' scores


def ours(language: Language, rollouts: list[Rollout]) -> list[list[float]]:
    """`tree_advantages` of all rollouts at once, under TRL's mean over rows."""
    size = len(rollouts[0].texts)
    advantages = tree_advantages(
        torch.stack([language.rewards[language.index[t]] for r in rollouts for t in r.texts]),
        torch.arange(len(rollouts)).repeat_interleave(size),
        torch.tensor([x for r in rollouts for x in r.root]),
        torch.tensor([x for r in rollouts for x in r.weight], dtype=torch.float64),
        scale="none",
    )
    return (advantages.view(-1, size) / size).tolist()


def _values(language: Language, rollout: Rollout) -> list[float]:
    return [float(language.rewards[language.index[t]]) for t in rollout.texts]


def unweighted(language: Language, rollouts: list[Rollout]) -> list[list[float]]:
    """Every completion counts alike, minus the mean of all: what TRL does with rows it knows nothing of."""
    out = []
    for rollout in rollouts:
        rewards = _values(language, rollout)
        mean = sum(rewards) / len(rewards)
        out.append([(x - mean) / len(rewards) for x in rewards])
    return out


def even_leaves(language: Language, rollouts: list[Rollout]) -> list[list[float]]:
    """Each of a root's n leaves counts 1/n: right only if n did not depend on what the root went on to write."""
    out = []
    for rollout in rollouts:
        rewards = _values(language, rollout)
        leaves = [rollout.root[: rollout.distinct].count(root) for root in (0, 1)]
        value = [0.0, 0.0]
        for i in range(rollout.distinct):
            value[rollout.root[i]] += rewards[i] / leaves[rollout.root[i]]
        row = [0.0] * len(rewards)
        for i in range(rollout.distinct):
            root = rollout.root[i]
            row[i] = (rewards[i] - value[1 - root]) / leaves[root] / 2
        out.append(row)
    return out


def own_root_baseline(language: Language, rollouts: list[Rollout]) -> list[list[float]]:
    """Our weights, but the baseline is the mean of all other completions, those of the own root included."""
    out = []
    for rollout in rollouts:
        rewards = _values(language, rollout)
        total, size = sum(rewards), len(rewards)
        rows = zip(rewards, rollout.weight, strict=True)
        out.append([w / 2 * (x - (total - x) / (size - 1)) for x, w in rows])
    return out


def token_sharers(language: Language, rollouts: list[Rollout]) -> Moments:
    """Each token counts one over the number of completions that share it; tokens after the fork count whole."""
    chance = torch.tensor([r.chance for r in rollouts], dtype=torch.float64)
    estimate = torch.zeros(len(rollouts), language.scores.size(1), dtype=torch.float64)
    for number, rollout in enumerate(rollouts):
        rewards = _values(language, rollout)
        texts, root = rollout.texts[: rollout.distinct], rollout.root
        starts = [0 if at < 0 else at for at in rollout.fork[: rollout.distinct]]
        value = [0.0, 0.0]
        for i in range(rollout.distinct):
            value[root[i]] += rewards[i] / root[: rollout.distinct].count(root[i])
        for i, text in enumerate(texts):
            weights = []
            for t in range(len(text)):
                if t < starts[i]:  # a prefix it took from its root
                    users = 1 + sum(1 for j in range(2, len(texts)) if root[j] == root[i] and starts[j] > t)
                elif i < 2:
                    users = 1 + sum(1 for j in range(2, len(texts)) if root[j] == i and starts[j] > t)
                else:
                    users = 1
                weights.append(1 / users)
            key = (text, tuple(weights))
            if key not in language.cache:
                language.cache[key] = language._score(text, weights)
            estimate[number] += (rewards[i] - value[1 - root[i]]) / 2 * language.cache[key]
    return _moments(chance, estimate)


def best_windows(setting: Setting) -> Setting:
    """Fork at a root's highest windows instead of its first ones: a choice that looks at the whole root."""

    def plan(entropies: list[Tensor]) -> list[Fork]:
        window, at_end = setting.options.window, setting.options.at == "window_end"
        forks = []
        for root, row in enumerate(entropies):
            starts = validated_windows(row, threshold=setting.threshold, window=window)
            starts.sort(key=lambda t: -float(row[t : t + window].mean()))
            for start in sorted(starts[: (setting.size - 2) // 2]):
                forks.append(Fork(root, start + window - 1 if at_end else start, start, 0))
        return forks

    return setting._replace(plan=plan)


def plain(language: Language, size: int) -> tuple[Moments, float]:
    """`size` independent completions with the mean of the others as baseline, in closed form, and their tokens."""
    chances, rewards, scores = language.chances, language.rewards, language.scores
    value = chances @ rewards
    centred = rewards - value
    mean = (chances * rewards) @ scores
    # g = 1/n sum (r_i - v) s_i - 1/(n(n-1)) sum_{i != j} (r_j - v) s_i : the pairs are uncorrelated with the singles
    single = float(chances @ ((centred[:, None] * scores).square().sum(-1))) - float(mean.square().sum())
    spread, fisher = float(chances @ centred.square()), float(chances @ scores.square().sum(-1))
    pairs = spread * fisher + float(mean.square().sum())
    return Moments(mean, single / size + pairs / (size * (size - 1))), size * float(chances @ language.lengths)


def settings(
    language: Language, *, at: str, window: int = 2, attempts: int = 2, size: int = 4, below: float = 0.55
) -> Setting:
    """Two roots among `size` completions; the share `below` of a text's windows misses the threshold."""
    options = BranchOptions(roots=2, at=at, window=window, attempts=attempts)  # pyright: ignore[reportArgumentType]
    means = [
        (float(p), float(h[t : t + window].mean()))
        for p, text in zip(language.chances, language.texts, strict=True)
        for h in [language.entropies(text)]
        for t in range(len(h) - window + 1)
    ]
    means.sort(key=lambda x: x[1])
    left = sum(p for p, _ in means) * below
    for chance, threshold in means:
        left -= chance
        if left <= 0:
            return Setting(options, threshold, size=size)
    raise AssertionError


def misses(language: Language, found: Moments) -> tuple[float, float]:
    """(length along the true gradient, length across it), both in shares of the true gradient: (1, 0) is right."""
    true = language.gradient()
    along = float(found.mean @ true / true.square().sum())
    return along, float((found.mean - along * true).norm() / true.norm())


TABLE = (
    ("up to 4 tokens, w = 2, G = 4", Language(), "window_end", {}),
    ("up to 4 tokens, w = 2, G = 4", Language(), "window_start", {}),
    ("3 tokens, w = 1, G = 4", Language(length=3, ends=False), "window_end", {"window": 1, "below": 0.4}),
    ("3 tokens, w = 1, G = 6", Language(length=3, ends=False), "window_end", {"window": 1, "size": 6, "below": 0.4}),
)


def main() -> None:
    print("| language | fork at | estimator | along | across |\n|---|---|---|---|---|")
    for label, language, at, options in TABLE:
        for name, found in ways(language, settings(language, at=at, **options)):
            along, across = misses(language, found)
            print(f"| {label} | {at} | {name} | {along:.4f} | {across:.4f} |")

    print("\n| language | fork at | tokens | variance | plain at these tokens | ratio |\n|---|---|---|---|---|---|")
    for name, language in (
        ("first letter decides", Language(length=5)),
        ("last letter decides", Language(length=5, late_reward=True)),
        ("last decides, 2 certain letters first", Language(length=5, certain=2, late_reward=True)),
    ):
        for at in ("window_end", "window_start"):
            found, tokens = two_roots(language, settings(language, at=at))
            number = tokens / float(language.chances @ language.lengths)
            rival = _between(number, [plain(language, n)[0].variance for n in range(2, 6)])
            ratio = found.variance / rival
            print(f"| {name} | {at} | {tokens:.2f} | {found.variance:.4f} | {rival:.4f} | {ratio:.2f} |")


def ways(language: Language, setting: Setting) -> list[tuple[str, Moments]]:
    """Our estimate and what else one might do, each over every rollout."""
    rollouts, _ = every_rollout(language, setting)
    out = [("ours", moments(language, rollouts, ours(language, rollouts)))]
    for name, way in (
        ("every completion alike, TRL's group mean", unweighted),
        ("1/n for each of a root's n leaves", even_leaves),
        ("our weights, baseline with leaves of the own root", own_root_baseline),
    ):
        out.append((name, moments(language, rollouts, way(language, rollouts))))
    out.append(("tokens weighted 1/(completions that share them)", token_sharers(language, rollouts)))
    others = [
        ("ours, at the root's highest windows", best_windows(setting)),
        ("ours, threshold of the same rollout", setting._replace(own_threshold=True)),
    ]
    if setting.options.at == "window_start":
        others.append(("ours, forks not held to the window", setting._replace(recheck=False)))
    for name, other in others:
        rollouts, _ = every_rollout(language, other)
        out.append((name, moments(language, rollouts, ours(language, rollouts))))
    return out


def _between(number: float, variances: list[float]) -> float:
    """Variance of `number` plain completions, linear between whole numbers from 2 on."""
    low = int(number)
    return variances[low - 2] + (number - low) * (variances[low - 1] - variances[low - 2])


if __name__ == "__main__":
    main()
