"""Information gain: beliefs, conformal sets, rewards and advantages of turns against their vectors, kind by kind.

Source:  the vectors hold float64 numbers computed on their own, and what the authors' code of C-IP, delta-belief, IGPO
    and UoT returned (each case's `provenance`; those carry float32 error and a tolerance of their own)

Every number under a case's `expected` is looked at. "inf" and "nan" are strings there.
"""

import math
import warnings
from itertools import chain
from typing import Any

import numpy as np
import torch

from entrl.beliefs import (
    Belief,
    BeliefError,
    CalibrationTooSmall,
    ExactBayes,
    FactoredBelief,
    GainStep,
    Threshold,
    coverage,
    dependence_bits,
    entropy_bits,
    fit_threshold,
    marginals,
    one_hot,
    prediction_sets,
)
from entrl.beliefs.conformal import cip_bound, cip_code_threshold, cip_mean_entropy, entropy_bound, log2_sizes
from entrl.beliefs.information import LN2
from entrl.maths.turn_credit import (
    broadcast_turns,
    delta_belief_turn_rewards,
    first_turn_norm,
    igpo_turn_rewards,
    joint_norm,
    return_to_go,
    sequence_level,
    turn_group_sqrt,
    turn_index,
    turnwise_masked,
    uot_split_reward,
    zero_padded,
)
from entrl_lab.conformance.comparison import Case, Comparison, Runner

STEP_KEYS = {  # of a vector -> of a GainStep
    "h_before": "h_before",
    "h_after": "h_after",
    "entropy_reduction": "realised",
    "kl_gain": "kl",
    "expected_gain": "expected",
    "evidence_bits": "evidence_bits",
    "answer_entropy": "answer_entropy",
    "target_log_gain": "target_log_gain",
}


def _numbered(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _belief(prior: Any) -> Belief:
    return Belief(_numbered(len(prior)), prior)


def _close(check: Comparison, name: str, got: Any, want: Any) -> None:
    """As `close`; an infinity is expected to be that infinity."""
    if isinstance(want, str):
        check.same(name, str(float(got)), str(float(want)))
    else:
        check.close(name, got, want)


def _same_step(check: Comparison, prefix: str, step: GainStep, want: Case) -> None:
    for key, field in STEP_KEYS.items():
        if key in want:
            _close(check, prefix + key, getattr(step, field), want[key])


def entropy_case(case: Case, check: Comparison) -> str:
    bits = entropy_bits(_belief(case["input"]["probs"]).probs)
    check.close("bits", bits, case["expected"]["bits"])
    check.close("nats", bits * LN2, case["expected"]["nats"])
    return ""


def update_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    belief = _belief(given["prior"])
    check.close("predictive", belief.predictive(given["likelihood"]), want["predictive"])
    step = belief.update(given["likelihood"], given["answer"], target=given.get("target"))
    check.close("posterior", belief.probs, want["posterior"])
    _same_step(check, "", step, want)
    return ""


def episode_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    belief, target = _belief(given["prior"]), given.get("target")
    h0, b0 = belief.entropy(), 0.0 if target is None else belief.log2_prob(target)
    steps = [belief.update(one["likelihood"], one["answer"], target=target) for one in given["steps"]]
    check.same("number of turns", len(steps), len(want["turns"]))
    for i, (step, turn) in enumerate(zip(steps, want["turns"], strict=False)):
        _same_step(check, f"turn {i} ", step, turn)
    total = sum(step.realised for step in steps)
    check.close("h0", h0, want["h0"])
    check.close("hT", belief.entropy(), want["hT"])
    check.close("total_entropy_reduction", total, want["total_entropy_reduction"])
    check.close("normalised_total", total / h0 if h0 else 0.0, want["normalised_total"])
    check.close("final_posterior", belief.probs, want["final_posterior"])
    if target is not None:
        told = sum(step.target_log_gain for step in steps if step.target_log_gain is not None)
        _close(check, "total_target_log_gain", told, want["total_target_log_gain"])
        _close(check, "target_log_ratio", belief.log2_prob(target) - b0, want["target_log_ratio"])
    return ""


def gain_table_case(case: Case, check: Comparison) -> str:
    tables = case["input"]["questions"]
    prior = case["input"]["prior"]
    agent = ExactBayes(_numbered(len(prior)), _numbered(len(tables)), lambda q: tables[int(q)], prior=prior)
    check.close("expected_gain", list(agent.expected_gains().values()), case["expected"]["expected_gain"])
    check.same("argmax_lowest_index", int(agent.best_question() or 0), case["expected"]["argmax_lowest_index"])
    return ""


def factored_case(case: Case, check: Comparison) -> str:
    want = case["expected"]
    belief = FactoredBelief({slot["name"]: Belief(slot["values"], slot["prior"]) for slot in case["input"]["slots"]})

    def same_entropies(prefix: str, expected: Case) -> None:
        check.close(f"{prefix} joint_entropy", belief.entropy(), expected["joint_entropy"])
        check.close(f"{prefix} enumerated", belief.joint().entropy(), expected["joint_entropy_enumerated"])

    same_entropies("initial", want["initial"])
    for name, bits in want["initial"]["slot_entropy"].items():
        check.close(f"entropy of {name}", belief.slots[name].entropy(), bits)
    check.same("number of steps", len(case["input"]["steps"]), len(want["steps"]))
    for i, (one, expected) in enumerate(zip(case["input"]["steps"], want["steps"], strict=False)):
        step = belief.update(one["slot"], allowed=one["allowed"])
        check.close(f"step {i} gain", step.realised, expected["gain"])
        check.close(f"step {i} slot_belief", belief.slots[one["slot"]].probs, expected["slot_belief"])
        same_entropies(f"step {i}", expected)
    return ""


def joint_case(case: Case, check: Comparison) -> str:
    """Revealing variable 0 is worth H(variable 0) either way; the true joint pays a part of it on variable 1."""
    want = case["expected"]
    joint = np.asarray(case["input"]["joint"], dtype=np.float64)
    first, second = marginals(joint)
    exact = _belief(joint.ravel())
    apart = FactoredBelief({"0": _belief(first), "1": _belief(second)})
    reveal = one_hot(np.arange(joint.size) // joint.shape[1], count=len(first))
    check.close("joint_entropy", exact.entropy(), want["joint_entropy"])
    check.close("independent_entropy", apart.entropy(), want["independent_entropy"])
    check.close("enumerated independent entropy", apart.joint().entropy(), want["independent_entropy"])
    check.close("mutual_information", dependence_bits(joint), want["mutual_information"])
    check.close("expected_gain_true", exact.expected_gain(reveal), want["expected_gain_true"])
    independent = apart.expected_gain("0", np.eye(len(first)))
    check.close("expected_gain_independent", independent, want["expected_gain_independent"])
    left = sum(p * float(entropy_bits(row / p)) for p, row in zip(first, joint, strict=True) if p > 0)
    drop = apart.slots["1"].entropy() - left
    check.close("expected_drop_on_variable_1_true", drop, want["expected_drop_on_variable_1_true"])
    return ""


def _fitted(scores: Any, alpha: str) -> Threshold:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationTooSmall)  # an infinite threshold is what some cases are about
        return fit_threshold(scores, alpha)


def threshold_case(case: Case, check: Comparison) -> str:
    scores, alpha, want = case["input"]["scores"], case["input"]["alpha"], case["expected"]
    threshold = _fitted(scores, alpha)
    check.same("n", threshold.n, want["n"])
    check.same("rank", threshold.rank, want["rank"])
    _close(check, "threshold", threshold.value, want["threshold"])
    _close(check, "cip_code_threshold", cip_code_threshold(scores, alpha), want["cip_code_threshold"])
    return "" if want["threshold"] == want["cip_code_threshold"] else "the C-IP code takes another threshold here"


def sets_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    probs = np.asarray(given["calibration_probs"])
    threshold = _fitted(-probs[np.arange(len(probs)), given["calibration_labels"]], given["alpha"])
    held = prediction_sets(given["test_probs"], threshold)
    sizes = held.sum(-1)
    check.same("rank", threshold.rank, want["rank"])
    _close(check, "threshold", threshold.value, want["threshold"])
    if want["min_prob"] is None:
        check.same("min_prob", None if math.isinf(threshold.value) else -threshold.value, None)
    else:
        check.close("min_prob", -threshold.value, want["min_prob"])
    check.same("sets", [np.flatnonzero(row).tolist() for row in held], want["sets"])
    check.same("sizes", sizes.tolist(), want["sizes"])
    check.close("log2_sizes", log2_sizes(sizes), want["log2_sizes"])
    check.close("mean_log2_size", log2_sizes(sizes).mean(), want["mean_log2_size"])
    check.close("log2_mean_size", log2_sizes(sizes.mean()), want["log2_mean_size"])
    covered = held[np.arange(len(held)), given["test_labels"]]
    check.same("covered", covered.tolist(), want["covered"])
    check.close("coverage", coverage(held, given["test_labels"]), np.mean(want["covered"]))
    return ""


def bound_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    alpha, labels = float(given["alpha"]), given["num_labels"]
    held = prediction_sets(given["probs"], float(given["threshold"]))
    sizes, covered = held.sum(-1), held[np.arange(len(held)), given["labels"]]
    check.same("set_sizes", sizes.tolist(), want["set_sizes"])
    check.same("covered", covered.tolist(), want["covered"])
    mediq = entropy_bound(sizes, covered, alpha=alpha, alpha_n=alpha, num_labels=labels)
    estimation_n = alpha - 1 / (len(held) + 1)
    twenty = entropy_bound(sizes, covered, alpha=alpha, alpha_n=estimation_n, num_labels=labels)
    paper = cip_bound(sizes, alpha=alpha, calibration_n=given["calibration_n_for_paper_form"], num_labels=labels)
    check.close("cip_mediq_bound", mediq, want["cip_mediq_bound"])
    check.close("own_mediq_form", mediq, want["own_mediq_form"])
    check.close("cip_20q_bound", twenty, want["cip_20q_bound"])
    check.close("paper_eq6_bound", paper, want["paper_eq6_bound"])
    check.close("cip_mean_entropy", cip_mean_entropy(given["probs"]), want["cip_mean_entropy"])
    return ""


def igpo_case(case: Case, check: Comparison) -> str:
    rows = case["input"]["gold_token_logprobs_nats_per_state"]
    rewards = igpo_turn_rewards(rows, outcome=case["input"]["outcome"])
    check.close("rewards", rewards, case["expected"]["rewards"])
    first = math.exp(sum(rows[0]) / len(rows[0]))  # what the gains start from
    states = torch.cat([rewards.new_tensor([first]), first + rewards[:-1].cumsum(0)])
    check.close("state_prob", states, case["expected"]["state_prob"])
    return ""


def delta_belief_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    belief = given["log_belief_nats"]
    rewards = delta_belief_turn_rewards(
        belief, outcome=given["outcome"], penalties=given["turn_penalty"], gain_weight=given["lambda"]
    )
    check.close("rewards", rewards, want["rewards"])
    check.close("delta", delta_belief_turn_rewards(belief, outcome=0.0, gain_weight=1.0, clip=False), want["delta"])
    return ""


def advantages_case(case: Case, check: Comparison) -> str:
    """All nine estimators; the group is one prompt's rollouts."""
    rows, want = case["input"]["turn_rewards"], case["expected"]
    turns = max(map(len, rows))
    # NaN where no turn happened: whatever reads the padding fails
    reward_BS = torch.tensor([row + [math.nan] * (turns - len(row)) for row in rows], dtype=torch.float64)
    turn_BS = torch.tensor([[t < len(row) for t in range(turns)] for row in rows])
    group: dict[str, Any] = {"group_size": len(rows)}
    got = {
        "turnwise_zero_padded_official": zero_padded(reward_BS, turn_BS, **group),
        "turnwise_zero_padded_no_std_official": zero_padded(reward_BS, turn_BS, scale=False, **group),
        "turnwise_masked": turnwise_masked(reward_BS, turn_BS, **group),
        "joint_norm_gamma_1": joint_norm(reward_BS, turn_BS, **group),
        "joint_norm_gamma_0.9": joint_norm(reward_BS, turn_BS, discount=0.9, **group),
        "turn_group_sqrt_accumulated_gamma_1": turn_group_sqrt(reward_BS, turn_BS, **group),
        "igpo_repo_discounted_gamma_0.5_official": first_turn_norm(reward_BS, turn_BS, discount=0.5, **group),
        "igpo_repo_outcome_official": return_to_go(reward_BS, turn_BS, baseline="group", **group),
    }
    check.close("trl_sequence_level", sequence_level(reward_BS, turn_BS, **group), want["trl_sequence_level"])
    for name, advantage_BS in got.items():
        ragged = [advantage_BS[i, : len(row)].tolist() for i, row in enumerate(rows)]
        check.same(f"{name} turns", [len(row) for row in ragged], [len(row) for row in want[name]])
        check.close(name, list(chain(*ragged)), list(chain(*want[name])))
        check.same(f"{name} outside turns", bool((advantage_BS[~turn_BS] == 0).all()), True)
    unknown = sorted(set(want) - set(got) - {"trl_sequence_level"})
    check.same("estimators without an implementation", unknown, [])
    return ""


def uot_case(case: Case, check: Comparison) -> str:
    got = [uot_split_reward(x, scale=case["input"]["lambda"]) for x in case["input"]["yes_fraction"]]
    check.close("reward", got, case["expected"]["reward"])
    return ""


def broadcast_case(case: Case, check: Comparison) -> str:
    given = case["input"]
    index_1T = turn_index(torch.tensor([given["completion_mask"]]), torch.tensor([given["tool_mask"]]))
    check.same("runs", int(index_1T.max()) + 1, case["expected"]["runs"])
    values_1S = torch.tensor([given["turn_values"]], dtype=torch.float64)
    check.close("per_token", broadcast_turns(values_1S, index_1T)[0], case["expected"]["per_token"])
    return ""


def greedy_case(case: Case, check: Comparison) -> str:
    """The largest expected gain first, until nothing is uncertain; truth by truth."""
    table, want = np.asarray(case["input"]["table"]), case["expected"]
    prior = None if case["input"]["prior"] == "uniform" else case["input"]["prior"]
    names, questions = _numbered(len(table)), _numbered(table.shape[1])
    agent = ExactBayes(names, questions, lambda q: one_hot(table[:, int(q)], count=2), prior=prior)
    check.close("h0", agent.prior_entropy(), want["h0"])
    known = [rollout for rollout in want["rollouts"] if 0 <= rollout["target"] < len(table)]
    check.same("rollouts with a target in the table", len(known), len(want["rollouts"]))
    lengths = []
    for rollout in known:
        agent.restart()
        asked, answers, gains = [], [], []
        while (question := agent.best_question()) is not None:
            answer = int(table[rollout["target"], int(question)])
            gains.append(agent.observe(question, answer).step.realised)
            asked.append(int(question))
            answers.append(answer)
        lengths.append(len(asked))
        target = rollout["target"]
        check.same(f"target {target} asked", asked, rollout["asked"])
        check.same(f"target {target} answers", answers, rollout["answers"])
        check.close(f"target {target} gains", gains, rollout["gains"])
        check.close(f"target {target} total", sum(gains) + agent.entropy(), want["h0"])
    check.close("mean_questions", np.mean(lengths), want["mean_questions"])
    return ""


def invalid_case(case: Case, check: Comparison) -> str:
    """The arguments say what is tried: scores are calibrated on, a likelihood updates, a prior makes a belief."""
    try:
        _attempt(case["input"])
    except BeliefError as error:
        check.same("error", type(error).__name__, case["expected"]["error"])
        check.same("is a ValueError", isinstance(error, ValueError), True)
        return str(error)
    check.same("error", None, case["expected"]["error"])
    return ""


def _attempt(given: Case) -> None:
    if "scores" in given:
        fit_threshold([float(score) for score in given["scores"]], given["alpha"])
        return
    prior = [float(p) for p in given["prior"]]
    belief = Belief(given.get("hypotheses", _numbered(len(prior))), prior)
    if "likelihood" in given:
        rows = [[float(p) for p in row] for row in given["likelihood"]]
        belief.update(rows, given["answer"], answers=given.get("answers"), target=given.get("target"))


def repeated_case(case: Case, check: Comparison) -> str:
    given, want = case["input"], case["expected"]
    names = _numbered(len(given["prior"]))
    agent = ExactBayes(names, ["question"], lambda _: given["likelihood"], prior=given["prior"])
    first = agent.observe("question", given["answer"])
    again = agent.observe("question", given["answer"])
    check.close("gain_first", first.step.realised, want["gain_first"])
    check.close("gain_repeat_required", again.step.realised, want["gain_repeat_required"])
    check.same("exactly 0 and said to be repeated", (again.step.realised, again.repeated), (0.0, True))
    check.close("posterior_after_repeat_required", agent.belief.probs, want["posterior_after_repeat_required"])
    redrawn = agent.belief.update(given["likelihood"], given["answer"]).realised  # what is not done
    check.close("gain_repeat_if_noise_were_redrawn", redrawn, want["gain_repeat_if_noise_were_redrawn"])
    return ""


KINDS: dict[str, Runner] = {
    "entropy": entropy_case,
    "bayes_update": update_case,
    "episode": episode_case,
    "expected_gain_table": gain_table_case,
    "factored_hard_update": factored_case,
    "joint_vs_independent": joint_case,
    "conformal_threshold": threshold_case,
    "conformal_sets": sets_case,
    "entropy_upper_bound": bound_case,
    "igpo_rewards": igpo_case,
    "delta_belief_rewards": delta_belief_case,
    "turn_advantages": advantages_case,
    "uot_split_reward": uot_case,
    "token_broadcast": broadcast_case,
    "greedy_rollout": greedy_case,
    "invalid": invalid_case,
    "repeated_question": repeated_case,
}
