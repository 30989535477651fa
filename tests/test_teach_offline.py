"""Candidates, pairs and the file of an offline run: no model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.environments import find_table, load_environment
from entrl.environments.policies import GreedyExact
from entrl.tasks import load_task
from entrl.teach.offline import CandidateSpec, PairSpec, PrefixSpec, make_groups, make_pairs, read_groups, write_groups
from entrl.teach.offline.candidates import chance_right, played_prefix
from entrl.teach.offline.rollout import OfflineRollouts, group_size
from entrl.teach.offline.spec import Offline


def rows(size: int = 6, **args):
    return list(
        load_task({"task": "twenty_questions", "rows": 8, "columns": 8, **args}, split="train", size=size, seed=0)
    )


def groups(size: int = 6, prefixes: dict | None = None, candidates: dict | None = None, **args):
    shape = PrefixSpec(**{"longest": 3} | (prefixes or {}))
    return make_groups(
        load_environment("twenty_questions"), rows(size, **args), shape, CandidateSpec(**(candidates or {}))
    ).groups


def answers(group) -> list[tuple[str, str]]:
    """(question, answer) pairs, read off the messages."""
    asked = [m["tool_calls"][0]["function"]["arguments"]["attribute"] for m in group.prompt if m["role"] == "assistant"]
    said = [m["content"].rsplit(": ", 1)[1] for m in group.prompt if m["role"] == "tool"]
    return list(zip(asked, said, strict=True))


def test_rewards_are_the_expected_gains_of_the_rows_the_messages_leave():
    """Slow twin: count the rows that agree with every answer; a yes/no split of n rows into k and n - k."""
    for group in groups():
        table = find_table(group.table_id)
        left = np.ones(len(table.hypotheses), dtype=bool)
        for question, answer in answers(group):
            left &= table.values[:, table.questions.index(question)] == table.answers.index(answer)
        assert group.length == len(answers(group))
        assert group.entropy == pytest.approx(np.log2(left.sum()))
        asked = {question for question, _ in answers(group)}
        for candidate in group.candidates:
            share = table.values[left, table.questions.index(candidate.key)].mean()
            bits = -sum(p * np.log2(p) for p in (share, 1 - share) if p > 0)
            assert candidate.reward == pytest.approx(0 if candidate.key in asked else bits, abs=1e-9)
            kind = "repeated" if candidate.key in asked else "certain" if bits < 1e-9 else "open"
            assert candidate.kind == kind


def test_with_noise_the_belief_knows_of_it():
    """A repeated question stays worth 0, though its answer may have been wrong."""
    found = groups(user_noise=0.2)
    repeated = [c for g in found for c in g.candidates if c.kind == "repeated"]
    assert repeated
    assert all(c.reward == 0 for c in repeated)
    assert all(0 <= c.reward < 1 - 0.7 for g in found for c in g.candidates)  # at most 1 - H(0.2) = 0.278 bits


@settings(max_examples=25)
@given(count=st.integers(3, 8), seed=st.integers(0, 50))
def test_a_sampled_group_keeps_bad_ones_and_no_duplicates(count, seed):
    for group in groups(8, {"seed": seed, "longest": 1}, {"count": count, "seed": seed}):
        keys = [c.key for c in group.candidates]
        kinds = [c.kind for c in group.candidates]
        assert len(keys) == len(set(keys)) == count
        assert "repeated" in kinds or not group.length
        assert "certain" in kinds or not any(group.gains[q] <= 1e-9 for q in group.open)
        assert group.spread > 0


def test_the_same_arguments_give_the_same_groups():
    assert groups(3, None, {"count": 4}) == groups(3, None, {"count": 4})
    assert groups(3, None, {"count": 4}) != groups(3, {"seed": 1}, {"count": 4})


def test_groups_survive_the_file(tmp_path: Path):
    made = groups(2, None, {"submit": 1.0})
    write_groups(tmp_path / "g.jsonl", made)
    assert read_groups(tmp_path / "g.jsonl") == made
    (tmp_path / "bad.jsonl").write_text('{"prompt": []}\n')
    with pytest.raises(ValueError, match="line 1 is no group"):
        read_groups(tmp_path / "bad.jsonl")


def test_a_submission_is_worth_its_chance():
    for group in groups(4, None, {"submit": 2.0}):
        last = group.candidates[-1]
        assert last.kind == "submit"
        assert last.reward == pytest.approx(2.0 * 2**-group.entropy)  # no noise: all rows left are equally likely


def test_mixture_and_lengths():
    made = groups(20, {"policies": {"greedy": 1.0}, "per_row": 1, "longest": 2})
    assert {g.policy for g in made} == {"greedy"}
    assert {g.length for g in made} == {0, 1, 2}
    for group in made:
        assert all(m["role"] in ("user", "assistant", "tool") for m in group.prompt)
        assert group.is_best(max(group.gains, key=lambda q: group.gains[q]))
        assert 0 <= group.random <= group.best


@pytest.mark.parametrize("belief", ["factored", "exact"])
def test_diagrams_too(belief):
    data = list(load_task({"task": "diagram", "slots": 4, "expertise": "mixed"}, split="train", size=3, seed=0))
    factory = load_environment("diagram_short", {"belief": belief})
    made = make_groups(factory, data, PrefixSpec(longest=2), CandidateSpec(count=3, submit=1.0, certain=0)).groups
    for group in made:
        assert len(group.candidates) == 3
        assert set(group.gains) <= set(find_slots(factory, data[0]))
        assert 0 < group.candidates[-1].reward <= 1
    environment = factory()
    played_prefix(environment, data[0], GreedyExact(), 4, np.random.default_rng(0))
    marginals = [environment._marginal(slot).max() for slot in environment._world.slots]
    assert belief == "exact" or chance_right(environment) == pytest.approx(np.prod(marginals))


def find_slots(factory, row) -> tuple[str, ...]:
    environment = factory()
    environment.reset(**row)
    return tuple(environment._world.slots)


def test_pairs_are_of_one_prefix_and_as_far_apart_as_asked():
    made = groups()
    found = make_pairs(made, PairSpec(margin=0.3, per_prefix=2))
    assert found
    known = {json.dumps(g.prompt): {json.dumps(c.message): c.reward for c in g.candidates} for g in made}
    for pair in found:
        rewards = known[json.dumps(pair.prompt)]
        (chosen,), (rejected,) = pair.chosen, pair.rejected
        assert rewards[json.dumps(chosen)] == max(rewards.values())
        assert rewards[json.dumps(chosen)] - rewards[json.dumps(rejected)] == pytest.approx(pair.margin)
        assert pair.margin >= 0.3


def content(**changes):
    base = {
        "model": {"path": "tiny-reasoner"},
        "data": {"task": "twenty_questions", "args": {"rows": 8, "columns": 8}},
        "method": "grpo",
        "out": "runs/x",
    }
    return base | changes


def made(**changes):
    return Offline.make(content(**changes), name="x", base=Path())


def test_a_resolved_file_reads_back_the_same():
    spec = made(method="dpo", pairs={"margin": 0.5}, trainer={"max_steps": 2, "beta": 0.2})
    again = Offline.make({k: v for k, v in spec.resolved().items() if v != []}, name="x", base=Path())
    assert again == spec
    assert again.config_hash() == spec.config_hash() != made().config_hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sft"}, "method must be one of grpo, dpo, got 'sft'"),
        ({"method": None}, "has no 'method'"),
        ({"pairs": {"margin": 0.2}}, "pairs belongs to method: dpo, and method is grpo"),
        ({"method": "dpo", "controllers": ["kl_cov"]}, "controllers belongs to method: grpo"),
        ({"method": "dpo", "trainer": {"num_generations": 4}}, "whose trl.DPOConfig has no such field"),
        ({"trainer": {"ld_alpha": 0.5}}, "is a field of trl.DPOConfig"),
        ({"trainer": {"use_vllm": True}}, "nothing is generated"),
        ({"trainer": {"output_dir": "x"}}, "set `out`"),
        ({"trainer": {"lerning_rate": 1.0}}, "Did you mean"),
        ({"trainer": {"max_steps": "many"}}, "trainer.max_steps must be int"),
        ({"data": {"task": "twenty_questions", "prefixes": {"policies": {"clever": 1}}}}, "no 'clever'"),
        ({"data": {"task": "twenty_questions", "prefixes": {"policies": {"random": 0}}}}, "gives no policy any weight"),
        ({"data": {"task": "twenty_questions", "candidates": {"count": 2}}}, "raise it to 3"),
        ({"data": {"task": "twenty_questions", "candidates": {"submit": -1}}}, "must be > 0"),
        ({"data": {"task": "twenty_questions", "lengths": 3}}, "unknown key 'lengths'"),
        ({"held_out": {"split": "train", "seed": 0}}, "nothing is held out"),
        ({"method": "dpo", "pairs": {"margin": 0}}, "equals have no better one"),
        (
            {"data": {"task": "t", "candidates": {"count": 4}}, "trainer": {"num_generations": 8}},
            "num_generations is 8 and data.candidates.count is 4",
        ),
    ],
)
def test_a_wrong_file_says_what_to_do(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_impossible_groups_say_what_to_do():
    with pytest.raises(ValueError, match="count is 12, and there are 8 questions to ask; set it to 8 or less"):
        groups(1, None, {"count": 12})
    with pytest.raises(ValueError, match=r"allows 3 questions.*set it to 2 or less"):
        groups(1, {"longest": 3}, max_questions=3)
    with pytest.raises(ValueError, match=r"no two candidates of a prefix are 3.0 bits apart, the widest of"):
        make_pairs(groups(2), PairSpec(margin=3.0))
    few, many = groups(1, None, {"count": 4}), groups(1)
    with pytest.raises(ValueError, match=r"4 or 8 candidates.*set candidates.count to 4 or less"):
        group_size([*few, *many])
    with pytest.raises(ValueError, match="have the prompt of another"):
        OfflineRollouts([*few, *few], rendering=None)  # type: ignore[arg-type]  # refused before it renders
