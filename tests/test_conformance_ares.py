"""`entrl conformance` on ARES' vectors: all pass, every promised number is looked at, files of its shape are read."""

import copy
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from entrl.cli.main import main
from entrl_lab.conformance import published_ares, run_file
from entrl_lab.conformance.run import SECTIONS, conformance

VECTORS = Path(__file__).parent / "vectors" / "ares.json"
CONTENT = json.loads(VECTORS.read_text())
TOLERANCE = CONTENT["meta"]["tolerance"]


def section_of(case_id):
    return case_id.rsplit("/", 1)[0]


def test_every_case_passes_strictly(capsys):
    assert main(["conformance", "--strict", str(VECTORS)]) == 0
    assert "648 passed, 0 failed, 0 not covered" in capsys.readouterr().out


def test_every_section_is_there_with_all_its_cases_and_the_tolerance_of_the_file():
    results = run_file(VECTORS)
    counts = Counter(section_of(r.id) for r in results)
    assert counts["reward"] == len(CONTENT["reward"]) == 432
    assert counts["entropy_topk"] == len(CONTENT["entropy_topk"]["cases"])
    assert counts["ema_threshold"] == 1, "batches that continue one another are one case"
    assert counts["difficulty_update"] == len(CONTENT["difficulty_update"])
    assert set(counts) == set(SECTIONS["ARES"])
    assert len({r.id for r in results}) == len(results)
    for r in results:
        top = r.id.split("/")[0]
        assert r.max_error is None or r.max_error <= TOLERANCE.get(top, TOLERANCE["default"]), r.id
    assert max(r.max_error for r in results if section_of(r.id) == "reward") < 1e-15, "the published table to the bit"


# Tampering: top section -> keys under which answers stand

ANSWERS = {
    "reward": ("entropy_score", "overall"),
    "primitives": ("out",),
    "reward_without_bucket_fields": ("overall", "difficulty_used", "target_used", "alpha_used"),
    "entropy_topk": ("expect",),
    "difficulty_update": ("expect", "state_before"),
    "ema_threshold": ("threshold_after",),
    "lambda_update_inactive": ("expect",),
    "kl_beta": ("beta_after", "e_ema_after", "kl_ema_after", "beta"),
    "kl_loss": ("expect",),
    "policy_loss": ("expect",),
    "grpo_advantage": ("expect",),
    "group_filter": ("expect",),
    "paper_mode": ("expect",),
}


def leaves(tree, keys, at=(), inside=False):
    """Paths of everything that is neither a dict nor a list, below one of the keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, keys, (*at, key), inside or key in keys)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from leaves(value, keys, (*at, i), inside)
    elif inside:
        yield at


def changed(tree, at):
    tree = copy.deepcopy(tree)
    node = tree
    for key in at[:-1]:
        node = node[key]
    old = node[at[-1]]
    if isinstance(old, str):
        node[at[-1]] = "medium" if old == "hard" else "hard"
    else:
        node[at[-1]] = 0.5 if old is None else old + (1 if isinstance(old, int) else 1e-4)
    return tree


def written(tmp_path, content):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("top", [s for s in CONTENT if s != "meta"])
def test_a_changed_answer_fails(tmp_path, top):
    """A sample of the section's answers, one of each key and place in a list at least."""
    entries = CONTENT[top][:6] if isinstance(CONTENT[top], list) and top != "ema_threshold" else CONTENT[top]
    paths = [at for at in leaves(entries, ANSWERS[top]) if at[1:3] != (0, "state_before")]  # that one is an input
    kinds = {}
    for at in random.Random(0).sample(paths, len(paths)):
        kinds.setdefault(tuple(key for key in at if isinstance(key, str)), at)
    assert kinds
    for at in kinds.values():
        file = written(tmp_path, {"meta": CONTENT["meta"], top: changed(entries, at)})
        failed = [r for r in run_file(file) if r.status == "failed"]
        assert len(failed) == 1, at
        assert failed[0].note


def test_a_changed_first_state_of_a_chain_fails(tmp_path):
    """The chain is replayed from its first state, so every later answer hangs on it."""
    chains = copy.deepcopy(CONTENT["difficulty_update"])
    chains[0][0]["state_before"]["alpha"]["easy"] += 0.1
    statuses = [r.status for r in run_file(written(tmp_path, {"meta": CONTENT["meta"], "difficulty_update": chains}))]
    assert statuses == ["failed", "passed"]


def test_a_missing_batch_fails_those_that_follow(tmp_path):
    """The threshold has a memory: without its third batch the rest of the file is off."""
    steps = CONTENT["ema_threshold"][:2] + CONTENT["ema_threshold"][3:]
    (result,) = run_file(written(tmp_path, {"meta": CONTENT["meta"], "ema_threshold": steps}))
    assert result.status == "failed"


def test_an_exact_entropy_outside_our_bounds_fails(tmp_path):
    section = copy.deepcopy(CONTENT["entropy_topk"])
    section["cases"][0]["reference"]["exact_token_entropy_full_vocab"][0][0] = 9.0
    file = written(tmp_path, {"meta": CONTENT["meta"], "entropy_topk": section})
    failed = [r for r in run_file(file) if r.status == "failed"]
    assert [r.id for r in failed] == ["entropy_topk/default_w4_p95"]
    assert "exact entropies inside our bounds" in failed[0].note


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_group_kept_or_dropped_wrongly_fails(tmp_path, keep):
    (case,) = copy.deepcopy(CONTENT["group_filter"])
    case["expect"]["kept"] = case["expect"]["kept"][:keep]
    (result,) = run_file(written(tmp_path, {"meta": CONTENT["meta"], "group_filter": [case]}))
    assert result.status == "failed"


def test_what_nothing_implements_is_said_and_cases_can_be_named(tmp_path, capsys):
    content = {
        "meta": CONTENT["meta"],
        "primitives": {"huber": CONTENT["primitives"]["huber"][:2], "cosine": [{"x": 1}]},
    }
    file = written(tmp_path, content)
    assert [(r.id, r.status) for r in run_file(file)] == [
        ("primitives/huber/0", "passed"),
        ("primitives/huber/1", "passed"),
        ("primitives/cosine/0", "not_covered"),
    ]
    assert conformance([file]) == 0
    assert conformance([file], strict=True) == 1
    assert conformance([file], strict=True, exclude=["primitives/cosine/*"]) == 0
    assert conformance([file], exclude=["primitives/sine"]) == 2
    assert "names no case of these files" in capsys.readouterr().err


def test_tolerances_by_section_fall_back_to_the_default(tmp_path):
    case = {**CONTENT["primitives"]["huber"][4], "out": CONTENT["primitives"]["huber"][4]["out"] + 1e-3}
    content = {"meta": CONTENT["meta"], "primitives": {"huber": [case]}}
    assert [r.status for r in run_file(written(tmp_path, content))] == ["failed"]
    content["meta"] = {**CONTENT["meta"], "tolerance": {**TOLERANCE, "primitives": 2e-3}}
    assert [r.status for r in run_file(written(tmp_path, content))] == ["passed"]


# The published functions beyond their vectors


def test_a_policy_loss_by_hand():
    # A = -1, ratio 4: plain 4, clipped at 1.3 gives 1.3, the larger is 4, the dual clip holds it at 3
    # A = 1, ratio 4: plain -4, clipped -1.3, the larger is -1.3; its neighbour is masked
    log_p = torch.log(torch.tensor([[4.0, 1.0], [4.0, 9.0]])).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    got = published_ares.policy_loss(log_p, torch.zeros(2, 2), torch.tensor([-1.0, 1.0]), mask)
    assert got.loss.item() == pytest.approx((3 + 1 - 1.3) / 3)
    assert got.clipped_high.item() == pytest.approx(1 / 3)
    assert got.clipped_low.item() == pytest.approx(1 / 3)
    (gradient,) = torch.autograd.grad(got.loss, log_p)
    assert gradient.tolist() == [[0.0, pytest.approx(1 / 3)], [0.0, 0.0]], "clipped and masked tokens teach nothing"
    assert not got.kl.requires_grad
    assert not got.surprisal.requires_grad
    by_sequence = published_ares.policy_loss(
        log_p, torch.zeros(2, 2), torch.tensor([-1.0, 1.0]), mask, over="sequences"
    )
    assert by_sequence.loss.item() == pytest.approx(((3 + 1) / 2 - 1.3) / 2)


def test_kl_is_clamped_twice():
    got = published_ares.token_kl(torch.tensor([0.0, 0.0, -50.0]), torch.tensor([0.1, -50.0, 0.0]))
    # e^.1 - 1.1; x = -20: e^-20 + 19 above 10; x = 20 far above
    assert got.tolist() == pytest.approx([0.0051709, 10.0, 10.0], abs=1e-6)


def test_no_deviation_in_a_group_of_one():
    with pytest.raises(ValueError, match="group 'b' has one completion"):
        published_ares.group_advantages([1.0, 0.0, 1.0], ["a", "a", "b"])


def test_the_filter_is_strict_at_both_ends():
    groups = {"low": [0.01, 0.01], "high": [0.99, 0.99], "in": [0.01, 0.0101]}
    assert published_ares.kept_groups(groups, low=0.01, high=0.99) == ["in"]


def test_lambda_takes_the_last_completion_of_a_prompt_for_all_and_small_buckets_stay():
    prompts = ["p"] * 8 + ["q"] * 7
    got = published_ares.lambda_ascent(
        prompts,
        [0.0] * 7 + [5.0] + [9.0] * 7,
        {"p": "easy", "q": "hard"},
        lambdas={"easy": 0.0, "hard": 0.25},
        budget={"easy": 2.0, "hard": 0.0},
    )
    assert got == {"easy": pytest.approx(0.01 * (5 - 2)), "hard": 0.25}
