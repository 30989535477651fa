"""Growing branched rollouts: exactly G rows a prompt, prefixes token for token, the law of what is drawn, equal calls
on every rank."""

import threading

import pytest
import torch
from tiny_model import options as config
from toy_tree import END, Language, settings

from entrl.maths.branching import BranchOptions, tree_advantages
from entrl.trainers.grpo.branching import Branching
from entrl.trainers.grpo.continuations import Drawn
from entrl.trainers.grpo.vllm import SampledRow
from entrl.trainers.refusals.part_options import branch_options, branching_problems

PROMPT = [9, 9]


class Toy:
    """A sampler of the toy language, and what it was asked."""

    def __init__(self, language, *, seed=0, records=False, logprobs=False):
        self.language, self.records, self.logprobs = language, records, logprobs
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = []

    def generate(self, prompts, limit):
        self.calls.append((len(prompts), limit))
        texts = [list(p[len(PROMPT) :]) for p in prompts]
        starts = [len(t) for t in texts]
        for _ in range(limit):
            going = [i for i, t in enumerate(texts) if len(t) < self.language.length and (not t or t[-1] != END)]
            if not going:
                break
            chances = torch.stack([self.language.policy[tuple(texts[i])] for i in going])
            for i, token in zip(going, chances.multinomial(1, generator=self.generator)[:, 0].tolist(), strict=True):
                texts[i].append(token)
        new = [t[s:] for t, s in zip(texts, starts, strict=True)]
        told = [self.language.entropies(tuple(t))[s:].tolist() for t, s in zip(texts, starts, strict=True)]
        rows = [
            SampledRow(token_ids=n, entropies=h, kept_mass=[1.0] * len(n), version=3)
            for n, h in zip(new, told, strict=True)
        ]
        return Drawn(new, told if self.logprobs else None, rows if self.records else None)

    def entropies(self, prompts, completions):
        heads = [p[len(PROMPT) :] for p in prompts]
        return [
            self.language.entropies(tuple(h + c))[len(h) :] if len(h + c) <= self.language.length else torch.zeros(1)
            for h, c in zip(heads, completions, strict=True)
        ]


def grow(language, setting, *, prompts, seed=0, ranks=None, toy=None, branching=None, **given):
    toy = toy or Toy(language, seed=seed, **given)
    if branching is None:
        branching = Branching(setting.options)
        branching.threshold.value = setting.threshold
    out = branching.rollout(
        [PROMPT] * (prompts * setting.size),
        setting.size,
        generate=toy.generate,
        entropies=toy.entropies,
        max_new_tokens=language.length,
        end_ids=[END],
        ranks=ranks,
    )
    return out, toy


@pytest.mark.parametrize("at", ["window_end", "window_start"])
def test_the_estimate_of_rollouts_is_the_gradient(at):
    """Many drawn rollouts against the exact gradient; what the sampler drew, not the enumeration, is under test."""
    language = Language(length=4)
    setting = settings(language, at=at)
    prompts, size = 3000, setting.size
    out, _ = grow(language, setting, prompts=prompts)
    index = torch.tensor([language.index[tuple(ids)] for ids in out.completion_ids])
    groups = torch.arange(prompts).repeat_interleave(size)
    weights, roots = out.columns["branch_weight"], out.columns["branch_root"]
    advantages = tree_advantages(language.rewards[index], groups, roots, weights, scale="none")
    estimates = (advantages[:, None] * language.scores[index]).view(prompts, size, -1).mean(1)
    error = estimates.std(0) / prompts**0.5
    z = ((estimates.mean(0) - language.gradient()) / error.clamp(min=1e-9))[error > 0]
    assert out.metrics["branch/forks"] > 0.3
    assert z.abs().max() < 4.5
    # the same rows without weights and trees would be seen
    rows = language.rewards[index].view(prompts, size)
    naive = ((rows - rows.mean(1, keepdim=True)).view(-1, 1) * language.scores[index]).view(prompts, size, -1).mean(1)
    assert ((naive.mean(0) - language.gradient()) / naive.std(0).clamp(min=1e-9) * prompts**0.5).abs().max() > 6


@pytest.mark.parametrize("at", ["window_end", "window_start"])
@pytest.mark.parametrize("size", [4, 7])
def test_rows_are_whole_groups_of_roots_forks_and_copies(at, size):
    language = Language(length=4)
    setting = settings(language, at=at, size=size)
    out, _ = grow(language, setting, prompts=30, records=True, logprobs=True)
    tree = {name.removeprefix("branch_"): column.view(30, size) for name, column in out.columns.items()}
    assert len(out.completion_ids) == 30 * size
    rows = [out.completion_ids[p * size : (p + 1) * size] for p in range(30)]
    entropies = [[language.entropies(tuple(t)).tolist() for t in mine] for mine in rows]
    kinds = {"root": 0, "fork": 0, "copy": 0}
    for p in range(30):
        for i in range(size):
            parent, at_token = int(tree["parent"][p, i]), int(tree["fork"][p, i])
            if parent < 0:
                kinds["root"] += 1
                assert int(tree["root"][p, i]) == i < 2
            elif bool(tree["copied"][p, i]):
                kinds["copy"] += 1
                assert rows[p][i] == rows[p][parent]
            else:
                kinds["fork"] += 1
                assert rows[p][i][:at_token] == rows[p][parent][:at_token]
                assert len(rows[p][i]) > at_token
    assert kinds["root"] == 60
    assert min(kinds.values()) > 0
    for root in range(2):
        assert torch.allclose((tree["weight"] * (tree["root"] == root)).sum(1), torch.ones(30))
    # the sampler's own numbers travel with the tokens they were said of (the toy reports entropies as log-probs)
    assert out.logprobs == [h for mine in entropies for h in mine]
    assert [r.token_ids for r in out.records] == out.completion_ids
    assert [r.entropies for r in out.records] == out.logprobs
    assert {r.version for r in out.records} == {3}


def test_forks_make_their_window_where_their_root_did():
    language = Language(length=4)
    setting = settings(language, at="window_start")
    out, _ = grow(language, setting, prompts=200)
    forks = [i for i, f in enumerate(out.columns["branch_fork"].tolist()) if f >= 0]
    assert len(forks) > 50
    for i in forks:
        start = int(out.columns["branch_fork"][i])
        assert language.entropies(tuple(out.completion_ids[i]))[start : start + 2].mean() >= setting.threshold


@pytest.mark.parametrize(("at", "limits"), [("window_end", [4, 3]), ("window_start", [4, 2, 2, 2])])
def test_calls_are_few_and_short(at, limits):
    """The roots; for a fork held to its window, only the window per attempt; the rest in one call."""
    language = Language(length=4)
    _, toy = grow(language, settings(language, at=at), prompts=100)
    assert len(toy.calls) == len(limits)
    assert [limit for _, limit in toy.calls[:-1]] == limits[:-1]
    assert toy.calls[-1][1] <= limits[-1]
    assert toy.calls[0][0] == 200


def test_tokens_are_counted_as_drawn():
    language = Language(length=4)
    for at in ("window_end", "window_start"):
        out, _ = grow(language, settings(language, at=at), prompts=200)
        own = [
            len(ids) - max(fork, 0)
            for ids, fork, copied in zip(
                out.completion_ids,
                out.columns["branch_fork"].tolist(),
                out.columns["branch_copied"].tolist(),
                strict=True,
            )
            if not copied
        ]
        discarded = out.metrics["branch/discarded_share"] * out.generated_tokens
        assert sum(own) + discarded == pytest.approx(out.generated_tokens)
        assert (discarded > 0) == (at == "window_start")
        assert out.metrics["branch/generated_tokens"] == pytest.approx(out.generated_tokens / 200)


def test_the_first_rollout_is_plain_and_sets_the_threshold():
    language = Language(length=4)
    setting = settings(language, at="window_end")
    branching = Branching(setting.options)
    out, toy = grow(language, setting, prompts=100, branching=branching)
    assert len(toy.calls) == 1
    assert out.columns["branch_root"].view(100, 4).tolist() == [[0, 1, 2, 3]] * 100
    assert set(out.columns["branch_weight"].tolist()) == {1.0}
    assert not out.columns["branch_copied"].any()
    assert "branch/threshold" not in out.metrics
    assert branching.threshold.value is not None
    assert branching.costs.length == pytest.approx(sum(map(len, out.completion_ids)) / 400)
    again, _ = grow(language, setting, prompts=100, branching=branching)
    assert again.metrics["branch/forks"] > 0
    assert again.columns["branch_root"].max() == 1


def test_a_resumed_state_goes_on_as_before():
    language = Language(length=4)
    setting = settings(language, at="window_start")._replace(
        options=BranchOptions(roots=2, window=2, attempts=2, token_budget=14)
    )
    first = Branching(setting.options)
    for seed in range(3):
        grow(language, setting, prompts=20, seed=seed, branching=first)
    second = Branching(setting.options)
    second.load_state_dict(first.state_dict())
    a, _ = grow(language, setting, prompts=20, seed=9, branching=first)
    b, _ = grow(language, setting, prompts=20, seed=9, branching=second)
    assert a.completion_ids == b.completion_ids
    assert first.state_dict() == second.state_dict()
    fresh = Branching(setting.options)
    fresh.load_state_dict(Branching(setting.options).state_dict())
    assert fresh.costs is None


def test_a_budget_is_kept_on_average():
    language = Language(length=4)
    tokens = {}
    for budget in (None, 10, 9):
        options = BranchOptions(roots=2, window=2, at="window_end", quantile=0.3, token_budget=budget, ema=0.5)
        setting = settings(language, at="window_end", size=6)._replace(options=options)
        branching = Branching(options)
        spent = [grow(language, setting, prompts=100, seed=s, branching=branching)[0] for s in range(12)]
        tokens[budget] = sum(r.metrics["branch/generated_tokens"] for r in spent[2:]) / 10
    assert tokens[None] > 10.2
    assert 8.5 < tokens[10] < 10
    assert 7.5 < tokens[9] < 8.5


def test_rows_that_are_no_whole_groups_are_refused():
    branching = Branching(BranchOptions(roots=2))
    toy = Toy(Language(length=3))
    given = {"generate": toy.generate, "entropies": toy.entropies, "max_new_tokens": 3, "end_ids": [END]}
    with pytest.raises(ValueError, match="6 rows on this rank are not whole groups of 4"):
        branching.rollout([PROMPT] * 6, 4, **given)
    with pytest.raises(ValueError, match="rows 0 to 3 should repeat one prompt"):
        branching.rollout([PROMPT] * 3 + [[1]], 4, **given)
    with pytest.raises(ValueError, match="branch_roots=2 exceeds num_generations=1"):
        branching.rollout([PROMPT], 1, **given)
    short = dict(given, generate=lambda prompts, limit: Drawn([[0]]))
    with pytest.raises(ValueError, match="asked for 4 completions and returned 1"):
        branching.rollout([PROMPT] * 4, 4, **short)


class Together:
    """`Ranks` over threads."""

    def __init__(self, rank, shared):
        self.rank, self.shared = rank, shared

    def _exchange(self, x):
        barrier, slots = self.shared
        slots[self.rank] = x
        barrier.wait(timeout=20)
        everybody = list(slots)
        barrier.wait(timeout=20)
        return everybody

    def sum(self, x):
        return torch.stack(self._exchange(x)).sum(0)

    def gather(self, x):
        return torch.cat(self._exchange(x))

    def max(self, x):
        return max(self._exchange(x))


@pytest.mark.parametrize("at", ["window_end", "window_start"])
def test_every_rank_makes_the_same_calls_though_one_has_nothing_to_fork(at):
    """Generation and scoring are collective with sharded weights: a rank that waits for nobody hangs all."""
    calm, lively = Language(length=4, certain=4), Language(length=4)
    setting = settings(lively, at=at)
    shared = threading.Barrier(2), [None, None]
    branching = [Branching(setting.options) for _ in range(2)]
    toys, found = [Toy(calm), Toy(lively)], [None, None]
    for b in branching:
        b.threshold.value = setting.threshold

    def one(rank):
        found[rank], _ = grow(
            toys[rank].language,
            setting,
            prompts=10,
            ranks=Together(rank, shared),
            toy=toys[rank],
            branching=branching[rank],
        )

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert toys[0].calls == toys[1].calls
    assert len(toys[0].calls) > 1
    assert (found[0].columns["branch_fork"] == -1).all()
    assert (found[1].columns["branch_fork"] >= 0).any()
    assert found[0].metrics == found[1].metrics
    assert branching[0].state_dict() == branching[1].state_dict()


# Options


def refused(tmp_path, *, whole_groups=True, tools=False, **given):
    args = config(tmp_path, **({"branch_roots": 2} | given))
    return branching_problems(args, whole_groups=whole_groups, tools=tools)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"branch_roots": 1}, "branch_roots must be >= 2, got 1"),
        ({"branch_roots": 4}, "branch_roots=4 must be at least 2 and below"),
        ({"whole_groups": False}, "every prompt's completions on one process"),
        ({"tools": True}, "remove the tools"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "take sum_then_normalize"),
        ({"generation_kwargs": {"presence_penalty": 0.5}}, "presence_penalty act from the start"),
        ({"vllm_structured_outputs_regex": "a*"}, "vllm_structured_outputs_regex act from the start"),
    ],
)
def test_what_cannot_branch_is_refused(tmp_path, given, message):
    assert refused(tmp_path) == []
    (problem,) = refused(tmp_path, **given)
    assert message in problem


def test_no_roots_is_no_branching(tmp_path):
    assert refused(tmp_path, branch_roots=None, whole_groups=False) == []
    assert branch_options(config(tmp_path)) is None
    assert branch_options(config(tmp_path, branch_roots=3, branch_at="window_end")) == BranchOptions(
        roots=3, at="window_end"
    )
