"""`entrl conformance`: the vectors pass, anything tampered with fails, what is missing is never called passed."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from entrl.cli.main import main
from entrl_lab.conformance import conformance, run_file
from entrl_lab.conformance.adaptive_entropy import peak_logit, train_through
from entrl_lab.conformance.run import names_case

VECTORS = Path(__file__).parent / "vectors"
PEAR, MECHANISM = VECTORS / "pear.json", VECTORS / "entropy_mechanism.json"
SENT = "pub/sent/low_entropy_kl_cov_v2"  # the one case of the files that nothing here implements

pytestmark = pytest.mark.filterwarnings("ignore:.*one completion per micro-batch")


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", [PEAR, MECHANISM], ids=lambda p: p.stem)
def test_every_case_but_sent_passes(path):
    content, results = load(path), run_file(path)
    assert len(results) == sum(len(cases) for section, cases in content.items() if section != "meta")
    assert [r for r in results if r.status != "passed" and r.id != SENT] == []
    assert [(r.status, r.note) for r in results if r.id == SENT] in (
        [],
        [("not_covered", "no implementation of sent.low_entropy_kl_cov_v2")],
    )
    # Losses and gradients agree to 1e-9; the largest error is KL-Cov's mean |log ratio|, a metric summed in float32.
    assert max(r.max_error for r in results if r.max_error is not None) < 5e-8


def one_case(tmp_path, path, section, case, meta=None):
    file = tmp_path / "one.json"
    file.write_text(json.dumps({"meta": meta or load(path)["meta"], section: [case]}))
    return file


def numbers(tree, at=()):
    """Paths of all leaves that say what the answer should be."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, (*at, key))
    elif isinstance(tree, list) and tree:
        yield from numbers(tree[0], (*at, 0))
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield at


def tampered(case, at, by=1e-4):
    case = copy.deepcopy(case)
    node = case
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] += 1 if isinstance(node[at[-1]], int) else by
    return case


ANSWERS = {  # what each kind of case promises; every number under these keys must be looked at
    (PEAR, "cases"): ("expect",),
    (PEAR, "locate_close"): ("expect",),
    (PEAR, "groups"): ("expect",),
    (MECHANISM, "partitions"): (
        "selected_whole_batch",
        "selected_by_micro_batch_rows",
        "loss_whole_batch",
        "grad_whole_batch",
    ),
    (MECHANISM, "entropy"): ("outputs",),
    (MECHANISM, "theory"): ("entropy", "policy_gradient", "natural_policy_gradient"),
    (MECHANISM, "law"): ("fit_all", "fit_early"),
}


@pytest.mark.parametrize(("path", "section"), ANSWERS, ids=lambda x: getattr(x, "stem", x))
def test_a_changed_answer_fails(tmp_path, path, section):
    case = load(path)[section][0]
    for key in ANSWERS[path, section]:
        for at in numbers(case[key], (key,)):
            results = run_file(one_case(tmp_path, path, section, tampered(case, at)))
            assert [r.status for r in results] == ["failed"], at


NOT_OURS = {"actor/ppo_kl", "third_output", "second_output"}  # published metrics without a counterpart in every kind


@pytest.mark.parametrize(
    "case_id", ["pub/kl/ragged_grpo", "pub/clip/eps02_wide_band", "pub/clip/random_subset", "pub/ppo/eps02"]
)
def test_a_changed_loss_gradient_or_selection_fails(tmp_path, case_id):
    case = next(c for c in load(MECHANISM)["cases"] if c["id"] == case_id)
    for at in numbers(case["outputs"], ("outputs",)):
        if at[-1] not in NOT_OURS:
            results = run_file(one_case(tmp_path, MECHANISM, "cases", tampered(case, at)))
            assert [r.status for r in results] == ["failed"], at
    derived = [("valid_tokens",), ("cov", 0, 0), ("candidates", 0, 0)] if "cov" in case["derived"] else []
    for at in (("derived", *at) for at in derived if at[0] in case["derived"]):
        results = run_file(one_case(tmp_path, MECHANISM, "cases", tampered(case, at)))
        assert [r.status for r in results] == ["failed"], at


def find(section, case_id):
    return next(c for c in load(MECHANISM)[section] if c["id"] == case_id)


def test_a_prediction_does_not_pass_for_the_change(tmp_path):
    case = find("theory", "pub/theory/2")
    theorem = case["policy_gradient"]
    assert abs(theorem["entropy_change"] - theorem["minus_eta_cov"]) < 2e-10  # below the file's tolerance
    theorem["entropy_change"] = theorem["minus_eta_cov"]
    (result,) = run_file(one_case(tmp_path, MECHANISM, "theory", case))
    assert result.status == "failed"
    assert result.note.startswith("policy_gradient/entropy_change off by 1.51e-10")


ONE_NUMBER = {  # neighbours, one number off: what the case promises, or what the method is asked for
    "steer_weight": ("pub/steer/exp_0.8", ("outputs", "weights", 0, 1), 1e-3),
    "steer_least_weight": ("pub/steer/exp_0.8", ("outputs", "weights", 0, 3), 1e-3),
    "steer_linear_weight": ("pub/steer/linear", ("outputs", "weights", 1, 0), 1e-3),
    "steer_padding": ("pub/steer/linear", ("outputs", "weights", 2, 1), 1e-3),
    "steer_w_min": ("pub/steer/exp_0.7", ("params", "weight_min"), 1e-2),
    "steer_w_max": ("pub/steer/linear", ("params", "weight_max"), 1e-2),
    "steer_entropy": ("pub/steer/exp_0.8", ("inputs", "entropy", 0, 4), 0.1),
    "gppo_loss": ("pub/gppo/0.2_0.2", ("outputs", "loss"), 1e-6),
    "gppo_gradient": ("pub/gppo/0.2_0.28", ("outputs", "grad_log_prob", 0, 2), 1e-6),
    "gppo_clip_low": ("pub/gppo/0.2_0.28", ("params", "clip_low"), 1e-2),
    "gppo_clip_high": ("pub/gppo/0.2_0.28", ("params", "clip_high"), 1e-2),
    "gppo_dual_clip": ("pub/gppo/0.2_0.2", ("params", "dual_clip"), 1.0),
    "skywork_coefficient": ("pub/skywork/adaptive_entropy", ("outputs", "state_after_each_update", 4, "coef"), 1e-6),
    "skywork_last": ("pub/skywork/adaptive_entropy", ("outputs", "state_after_each_update", 11, "enabled"), None),
    "skywork_step": ("pub/skywork/adaptive_entropy", ("params", "delta"), 1e-5),
    "skywork_sequence": ("pub/skywork/adaptive_entropy", ("inputs", "entropy_sequence", 5), 0.1),
}


@pytest.mark.parametrize(("case_id", "at", "by"), ONE_NUMBER.values(), ids=ONE_NUMBER)
def test_one_number_off_fails_a_neighbour(tmp_path, case_id, at, by):
    case = find("neighbours", case_id)
    assert run_file(one_case(tmp_path, MECHANISM, "neighbours", tampered(case, at, by)))[0].status == "failed"


def test_a_term_that_should_not_act_fails(tmp_path):
    """Skywork switches the bonus off above the target; the vector says when, and the trainer's loss is looked at."""
    case = find("neighbours", "pub/skywork/adaptive_entropy")
    assert case["outputs"]["state_after_each_update"][2]["enabled"] == 0
    case["outputs"]["state_after_each_update"][2]["enabled"] = 1
    (result,) = run_file(one_case(tmp_path, MECHANISM, "neighbours", case))
    assert result.status == "failed"
    assert "applied off by 0.0001; enabled is [1, 1, 0," in result.note


def test_on_target_trl_raises_the_coefficient_where_skywork_lowers_it(tmp_path):
    adaptive = {"use_adaptive_entropy": True, "entropy_coef": 0.002, "entropy_coef_delta": 0.001}
    (measured,) = train_through([0.25], **adaptive, entropy_target=0.2).entropy
    on_target = train_through([0.25], **adaptive, entropy_target=measured)
    assert on_target.coefficient == pytest.approx([0.003])
    assert on_target.applied == pytest.approx([0.003], rel=1e-4)
    above = train_through([0.25], **adaptive, entropy_target=measured - 1e-6)
    assert above.coefficient == pytest.approx([0.001])
    assert above.applied == pytest.approx([0.0])
    case = find("neighbours", "pub/skywork/adaptive_entropy")
    case["inputs"]["entropy_sequence"][0] = case["params"]["target"]
    (result,) = run_file(one_case(tmp_path, MECHANISM, "neighbours", case))
    assert "an entropy equals the target, where TRL's rule (<=) and Skywork's (<) differ by design" in result.note


@pytest.mark.parametrize("entropy", [1e-6, 0.2, 1.0, 1.386])
def test_the_peaked_policy_has_the_entropy_asked_for(entropy):
    logits = torch.tensor([peak_logit(entropy), 0, 0, 0], dtype=torch.float64)
    assert torch.distributions.Categorical(logits=logits).entropy().item() == pytest.approx(entropy, rel=1e-9)


@pytest.mark.parametrize("entropy", [0.0, -0.1, 1.4])
def test_an_entropy_no_four_tokens_can_have(entropy):
    with pytest.raises(ValueError, match=r"a policy over 4 tokens has one in \(0, 1\.386\)"):
        peak_logit(entropy)


def test_kl_and_clip_metrics_are_compared(tmp_path):
    for case_id, metric in [("pub/kl/ragged_grpo", "actor/ppo_kl"), ("pub/clip/eps02_wide_band", "actor/pg_clipfrac")]:
        case = next(c for c in load(MECHANISM)["cases"] if c["id"] == case_id)
        bad = tampered(case, ("outputs", "metrics", metric))
        assert run_file(one_case(tmp_path, MECHANISM, "cases", bad))[0].status == "failed"


def test_exit_codes_and_table(tmp_path, capsys):
    assert conformance([PEAR]) == 0
    assert "67 passed, 0 failed, 0 not covered" in capsys.readouterr().out
    assert conformance([PEAR], strict=True) == 0
    assert conformance([MECHANISM]) == 0
    assert conformance([PEAR, MECHANISM], strict=True) == 1  # SENT
    capsys.readouterr()
    assert conformance([MECHANISM], strict=True, exclude=["SENT"]) == 0
    assert "55 passed, 0 failed, 0 not covered, 1 excluded" in capsys.readouterr().out
    capsys.readouterr()
    bad = one_case(tmp_path, PEAR, "cases", tampered(load(PEAR)["cases"][0], ("expect", "reward")))
    assert conformance([PEAR, bad]) == 1
    out = capsys.readouterr().out
    assert "reward off by 0.0001" in out
    assert "67 passed, 1 failed" in out


def test_json_carries_the_computed_values(capsys):
    assert conformance([MECHANISM], strict=True, as_json=True, exclude=["SENT"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["counts"] == {"passed": 55, "failed": 0, "not_covered": 0, "excluded": 1}
    (cases,) = answer["files"].values()
    want = load(MECHANISM)["cases"][0]
    assert cases[0]["id"] == want["id"]
    assert cases[0]["computed"]["loss"] == pytest.approx(want["outputs"]["loss"], rel=1e-7)
    assert cases[0]["computed"]["selected"] == want["outputs"]["selected"]
    computed = {case["id"]: case["computed"] for case in cases}
    for section, name in [("theory", "pub/theory/0"), ("law", "pub/law/0"), ("neighbours", "pub/steer/linear")]:
        assert computed[find(section, name)["id"]], name
    assert computed["pub/skywork/adaptive_entropy"]["enabled"] == [1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    assert computed[SENT] == {}


@pytest.mark.parametrize("name", [SENT, "sent.low_entropy_kl_cov_v2", "SENT", "pub/s*v2"])
def test_a_case_left_out_by_name_is_listed_and_never_passed(name):
    by_id = {r.id: r for r in run_file(MECHANISM, exclude=[name])}
    left_out = [case_id for case_id, r in by_id.items() if r.status == "excluded"]
    assert left_out == [SENT]
    assert by_id[left_out[0]].note == f"left out by name: {name}"
    assert by_id[left_out[0]].computed == {}


def test_names_end_at_a_boundary():
    assert names_case("pub/kl", "pub/kl/ragged", "verl.kl_cov")
    assert names_case("verl", "pub/kl/ragged", "verl.kl_cov")
    assert not names_case("pub/k", "pub/kl/ragged", "verl.kl_cov")
    assert not names_case("ver", "pub/kl/ragged", "verl.kl_cov")
    assert not names_case("", "pub/kl/ragged", "")


def test_a_name_that_means_no_case_is_an_error(capsys):
    assert conformance([MECHANISM], exclude=["sentt"]) == 2
    assert "--exclude sentt names no case" in capsys.readouterr().err


def test_excluding_everything_is_no_answer(capsys):
    assert conformance([MECHANISM], exclude=["pub"]) == 2
    assert "every case is excluded by name" in capsys.readouterr().err


def test_the_command_takes_names_to_leave_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a note is wrapped to the width of the terminal
    file = tmp_path / "two.json"
    content = load(MECHANISM)
    two = {"theory": content["theory"][:1], "neighbours": [find("neighbours", SENT)]}
    file.write_text(json.dumps({"meta": content["meta"], **two}))
    assert main(["conformance", "--strict", str(file)]) == 1
    assert "1 passed, 0 failed, 1 not covered\n" in capsys.readouterr().out
    assert main(["conformance", "--strict", str(file), "--exclude", "SENT", "pub/sent"]) == 0
    out = capsys.readouterr().out
    assert "left out by name: SENT, pub/sent" in " ".join(out.split())
    assert "1 passed, 0 failed, 0 not covered, 1 excluded" in out
    assert main(["conformance", "--strict", str(file), "--exclude", "SENT", "--exclude", "STEER"]) == 2
    assert "--exclude STEER names no case" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_nothing_but_json(tmp_path):
    """In a process of its own, where the libraries behind the adaptive entropy are imported while a case runs."""
    file = one_case(tmp_path, MECHANISM, "neighbours", find("neighbours", "pub/skywork/adaptive_entropy"))
    command = [sys.executable, "-m", "entrl", "conformance", "--strict", "--json", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["counts"]["passed"] == 1


def test_unknown_functions_and_sections_are_not_covered(tmp_path):
    case = {**load(MECHANISM)["cases"][0], "function": "verl.gspo"}
    (result,) = run_file(one_case(tmp_path, MECHANISM, "cases", case))
    assert (result.status, result.note) == ("not_covered", "no implementation of verl.gspo")
    (result,) = run_file(one_case(tmp_path, MECHANISM, "surprises", {"id": "x"}))
    assert (result.id, result.status) == ("x", "not_covered")


def test_a_case_that_lacks_a_key_fails(tmp_path):
    case = load(PEAR)["cases"][0]
    del case["alpha"]
    (result,) = run_file(one_case(tmp_path, PEAR, "cases", case))
    assert result.status == "failed"
    assert "no key 'alpha'" in result.note


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"meta": {"method": "Top-H"}, "cases": []}', "which no check here knows; known methods start with PEAR"),
        ("[1, 2]", "which no check here knows"),
        ("{", "is not JSON"),
        ('{"meta": {"method": "PEAR", "tolerance": 1e-10}, "cases": []}', "holds no cases"),
        (None, "cannot read"),
    ],
)
def test_files_we_cannot_judge(tmp_path, capsys, text, match):
    file = tmp_path / "file.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=match):
        run_file(file)
    assert conformance([file]) == 2
    assert "error: " in capsys.readouterr().err


def test_no_file_is_not_a_pass(capsys):
    assert conformance([]) == 2
    assert "name at least one" in capsys.readouterr().err
