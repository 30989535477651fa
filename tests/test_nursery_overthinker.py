"""The overthinker's builder and its conditions: each can fail, and the shipped models meet what is on record."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.evaluation.writing import Completion
from entrl.tasks import load_task
from entrl.tasks.rechecks import flattened, recheck_count
from entrl.tasks.traces import terms_of
from entrl_lab.nursery import conditions as measured
from entrl_lab.nursery import main
from entrl_lab.nursery.conditions import Sampled
from entrl_lab.nursery.overthinker import (
    LESSON_PROBLEMS,
    MODELS,
    OverthinkerConfig,
    calibrate,
    complaints,
    lessons,
    sharpened,
    train,
)
from entrl_lab.nursery.sft import sha256, untrained_model
from entrl_lab.nursery.tokenizer import character_tokenizer

SHIPPED = Path(str(files("entrl.models.shipped")))
RECORD = Path(__file__).parent.parent / "recipes" / "overthinker" / "conditions.json"
TOKENIZER = character_tokenizer()


def row(**changes: object) -> Sampled:
    plain = Sampled(
        problem=0, group=0, right=True, tokens=60, rechecks=2, truncated=False, h_think=0.2, h_answer=0.1, penalty=0.1
    )
    return replace(plain, **changes)


def test_lessons_are_of_the_train_side_and_start_without_rechecks() -> None:
    practice, full, polish = lessons(OverthinkerConfig(practice_steps=40, steps=40, polish_steps=40))
    test = set(load_task("additions", split="test", size=202)["prompt"])
    asked = set(practice["prompt"])
    assert asked == set(full["prompt"]) == set(polish["prompt"])  # every round goes through all
    single = {prompt for prompt in asked if re.fullmatch(r"\d\+\d\+\d=", prompt)}
    assert len(single) == LESSON_PROBLEMS
    assert not test & asked
    terms = [terms_of(prompt) for prompt in asked]
    firsts, seconds = {(a, b) for a, b, *_ in terms}, {(t[0] + t[1], t[2]) for t in terms if len(t) == 3}
    needed = [terms_of(prompt) for prompt in test]
    assert {(a, b) for a, b, _ in needed} <= firsts
    assert {(a + b, c) for a, b, c in needed if a + b > 9} <= seconds
    assert not any(map(recheck_count, practice["completion"]))
    assert sum(map(recheck_count, full["completion"])) / 2560 == pytest.approx(2.3, abs=0.15)


def test_a_step_goes_from_short_to_long() -> None:
    _, full, _ = lessons(OverthinkerConfig(practice_steps=0, steps=3, polish_steps=0, batch_size=4))
    lengths = list(map(len, full["completion"]))
    assert len(lengths) == 3 * 2 * 4
    assert all(lengths[i] <= lengths[i + 1] for i in range(len(lengths) - 1) if i % 8 != 7)
    assert any(lengths[i] > lengths[i + 1] for i in (7, 15))


def test_the_twin_differs_in_its_derivation_alone() -> None:
    assert replace(MODELS["tiny-overthinker"], uncertain_derivation=True) == MODELS["overthinker-flat"]


def test_sharpening_turns_flattened_frequencies_back() -> None:
    model = untrained_model(TOKENIZER, OverthinkerConfig()).eval()
    ids = TOKENIZER(["3+5+7="], return_tensors="pt").input_ids
    with torch.no_grad():
        plain, sharp = model(ids).logits[0], sharpened(model, 1.5)(ids).logits[0]
    for before, after in zip(plain.softmax(-1), sharp.softmax(-1), strict=True):
        assert flattened(after.tolist(), 1.5) == pytest.approx(before.tolist(), rel=1e-4)


@pytest.mark.slow
def test_same_seed_same_weights() -> None:
    threads = torch.get_num_threads()
    config = OverthinkerConfig(practice_steps=1, steps=2, polish_steps=1, batch_size=4)
    weights = [train(config)[0].state_dict() for _ in range(2)]
    torch.set_num_threads(threads)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_command_writes_a_base_and_says_what_is_wrong_with_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, threads = tmp_path / "base", torch.get_num_threads()
    words = [
        "--practice-steps",
        "0",
        "--steps",
        "2",
        "--polish-steps",
        "0",
        "--batch-size",
        "4",
        "--problems",
        "3",
        "--out",
        str(out),
    ]
    assert main(["--model", "tiny-overthinker", *words]) == 1
    torch.set_num_threads(threads)
    assert "no overthinker: sampled_accuracy is 0.0000, below 0.995" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["name"] == "tiny-overthinker"
    assert not manifest["config"]["style"]["uncertain_derivation"]
    assert manifest["weights_sha256"] == sha256(out / "model.safetensors")
    with pytest.raises(SystemExit):
        main(["--model", "tiny-overthinker", *words])
    assert "already holds a model" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("polish_steps", -1), ("practice_steps", -1), ("batch_size", 0)])
def test_config_refuses(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= {value + 1}, got {value}"):
        OverthinkerConfig(**{name: value})


def test_complaints() -> None:
    good = {"sampled_accuracy": 0.996, "sampled_length": 60.0, "needed_length": 20.0, "greedy_truncated": 0.0}
    assert complaints(good) == []
    for worse in ({"sampled_accuracy": 0.99}, {"sampled_length": 59.0}, {"greedy_truncated": 0.01}):
        (complaint,) = complaints({**good, **worse})
        assert complaint.startswith(f"{next(iter(worse))} is ")


def test_accuracy_asks_for_both_shares() -> None:
    found = measured.accuracy_condition([row(group=g) for g in range(100) for _ in range(8)])
    assert (found["sampled_accuracy"], found["flat_groups"], found["holds"]) == (1.0, 1.0, True)
    some_wrong = [row(group=g, right=not (g < 6 and i == 0)) for g in range(2000 // 8) for i in range(8)]
    found = measured.accuracy_condition(some_wrong)  # 6 of 2,000 wrong: 99.7 %, 6 of 250 groups
    assert (found["flat_groups"], found["holds"]) == (0.976, True)
    spread = [row(group=g, right=not (g < 20 and i == 0)) for g in range(250) for i in range(8)]
    assert not measured.accuracy_condition(spread)["holds"]  # 20 of 250 groups, 99 %


def test_slope_fails_where_rechecks_err() -> None:
    even = [row(rechecks=i % 6, right=i >= 6) for i in range(4800)]
    assert measured.slope_condition(even)["holds"]
    erring = [row(rechecks=i % 6, right=i % 100 >= 2 * (i % 6)) for i in range(4800)]
    found = measured.slope_condition(erring)
    assert found["points_a_recheck"]["hi"] < 0
    assert not found["holds"]


def test_length_ends_and_answers() -> None:
    prompts = ["3+5+7="]  # 20 tokens needed
    assert measured.length_condition([row(tokens=60)], prompts)["holds"]
    assert not measured.length_condition([row(tokens=59)], prompts)["holds"]
    ended, cut = (Completion(ids=[1], text="", truncated=t, entropies=None) for t in (False, True))
    assert measured.end_condition([row()], [ended])["holds"]
    assert not measured.end_condition([row()], [cut])["holds"]
    assert not measured.end_condition([row(truncated=True)], [ended])["holds"]
    varied = [row(h_answer=h) for h in (0.08, 0.1)]  # sd 0.01 of mean 0.09
    assert measured.answer_condition(varied)["holds"]
    assert not measured.answer_condition([row(), row()])["holds"]  # no spread
    assert not measured.answer_condition([row(h_answer=h) for h in (0.03, 0.05)])["holds"]  # 0.2 of thinking


def test_correlation_by_hand() -> None:
    rising = [row(tokens=t, penalty=p) for t, p in ((20, 0.0), (40, 0.1), (60, 0.2))]
    mixed = [row(group=1, tokens=t, penalty=p) for t, p in ((20, 0.1), (40, 0.3), (60, 0.2))]  # rho 0.5
    level = [row(group=2), row(group=2)]
    wrong = [row(group=0, tokens=99, penalty=0.0, right=False)]  # would turn the first group
    assert measured.correlations([*rising, *mixed, *level, *wrong]) == pytest.approx([1.0, 0.5])
    found = measured.correlation_condition([*rising, *mixed, *level], (0.5, 1.0))
    assert (found["rho"], found["groups"], found["groups_without_spread"]) == (pytest.approx(0.75), 2, 1)
    assert found["holds"]
    assert not measured.correlation_condition([*rising, *mixed], (-0.1, 0.1))["holds"]


def test_split_is_read_from_the_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OverthinkerConfig(practice_steps=1, steps=30, polish_steps=1)
    found = measured.split_condition(replace(config, practice_steps=0))  # as the twin, which has no practice
    assert found["holds"]
    assert found["shared"] == {"lessons": 0, "rl": 0, "rl_lessons": 0}
    leaked, *kept = lessons(config)
    asked = load_task("additions", split="test", size=1)["prompt"][0]
    turned = asked[:-1][::-1] + "="  # the same problem in another order
    monkeypatch.setattr(measured, "lessons", lambda _: (leaked.add_item({"prompt": turned, "completion": ""}), *kept))
    found = measured.split_condition(config)
    assert (found["shared"]["lessons"], found["holds"]) == (1, False)


def test_records_of_a_run(tmp_path: Path) -> None:
    def line(step: int, tokens: int, nats: float, reward: float) -> str:
        phases = ["open", *["think"] * (tokens - 3), "close", "answer"]
        told = {"step": step, "entropies": [nats] * (tokens - 1) + [0.1], "phases": phases, "reward": reward}
        return json.dumps({**told, "truncated": False})

    lines = [line(0, 10, 0.2, 1.0), line(0, 20, 0.3, 1.0), line(0, 30, 0.25, 1.0), line(0, 99, 0.1, 0.0)]
    lines += [line(1, 10, 0.2, 1.0), line(1, 10, 0.3, 1.0)]  # lengths without a spread
    (tmp_path / "completions.jsonl").write_text("\n".join(lines) + "\n")
    record = tmp_path / "conditions.json"
    assert main(["--model", "tiny-overthinker", "--conditions", str(record), "--records", str(tmp_path)]) == 0
    found = json.loads(record.read_text())["records"][f"{tmp_path.parent.name}/{tmp_path.name}"]
    assert (found["groups_logged"], found["f"]["groups"], found["f"]["groups_without_spread"]) == (2, 1, 1)
    assert found["f"]["rho"] == pytest.approx(0.5)  # penalties 0.1, 0.2, 0.15 nats
    assert found["rewarded"] == pytest.approx(5 / 6)


def test_drift(tmp_path: Path) -> None:
    for when, tokens in (("before", 60.0), ("after", 54.6)):
        told = {"mean_length_sampled": tokens, "sampled_accuracy": 1.0}
        (tmp_path / f"eval_{when}.json").write_text(json.dumps(told))
    assert measured.drift(tmp_path)["change"] == pytest.approx(-0.09)
    assert measured.drift(tmp_path)["holds"]
    (tmp_path / "eval_after.json").write_text(json.dumps({"mean_length_sampled": 53.9, "sampled_accuracy": 1.0}))
    assert not measured.drift(tmp_path)["holds"]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_asset_is_small_and_is_what_its_manifest_and_the_record_say(name: str) -> None:
    folder = SHIPPED / name
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["weights_sha256"] == sha256(folder / "model.safetensors")
    assert manifest["tokenizer_sha256"] == sha256(folder / "tokenizer.json")
    assert complaints(manifest["calibration"]) == []
    assert manifest["training_seconds"] < 1200
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == TOKENIZER.get_vocab()
    record = json.loads(RECORD.read_text())[name]
    assert record["weights_sha256"] == manifest["weights_sha256"]
    assert set("abcefgh") <= set(record["conditions"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_asset_overthinks(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / name)
    rows = [
        dict(row) for row in load_task("additions", split="test", size=202, seed=7)
    ]  # all: few hold the errors; the twin has 99.42 %
    found = calibrate(model, tokenizer, rows, samples=8, seed=1)
    assert (
        found["sampled_accuracy"] >= {"tiny-overthinker": 0.995, "overthinker-flat": 0.985}[name]
    )  # the twin: 99.42 %
    assert complaints(found | {"sampled_accuracy": 1.0}) == []
    sampled, greedy = measured.sample(model, tokenizer, rows[:60], samples=8)
    assert measured.correlation_condition(sampled, measured.CORRELATION[name])["rho"] == pytest.approx(
        json.loads(RECORD.read_text())[name]["conditions"]["f"]["rho"], abs=0.12
    )
    assert measured.end_condition(sampled, greedy)["holds"]
