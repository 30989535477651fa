"""`entrl doctor`: a recipe's first prompts answered by a real model, and `doctor:` of a recipe."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from short_run import quietly, short_recipe
from small_recipe import recipe

from entrl.cli.main import main
from entrl.evaluation.writing import Completion
from entrl.models.load import load_model
from entrl.runs.doctor import Stopped, examine, gap
from entrl.runs.doctor.page import render
from entrl.runs.train import train

RECIPES = Path(__file__).parents[1] / "recipes"
LONG = ("trainer.max_completion_length=64", "trainer.num_generations=4")


def own(file: Path, body: str) -> str:
    file.write_text(f"def reward(completions, answer, **_):\n    {body}\n")
    return f"rewards=[{{use: '{file}:reward'}}]"


def test_the_key_takes_three_words_and_decides_no_number():
    with pytest.raises(ValueError, match="doctor must be one of off, warn, strict, got 'loud'"):
        recipe("tiny-reasoner", "doctor=loud")
    assert recipe("tiny-reasoner").doctor == "off"
    assert recipe("tiny-reasoner", "doctor=strict").config_hash() == recipe("tiny-reasoner").config_hash()


def test_what_plan_refuses_is_an_error_and_nothing_is_sampled(capsys):
    assert main(["doctor", str(RECIPES / "tiny-reasoner" / "grpo.yaml"), "data.train_size=1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["sampled"] is None
    assert len(found["errors"]) == 1
    assert "data.train_size" in found["errors"][0]
    assert main(["doctor", str(RECIPES / "tiny-reasoner" / "grpo.yaml"), "--prompts", "0"]) == 2


@pytest.mark.slow
def test_a_good_recipe_is_shown_with_its_numbers():
    found = examine(recipe("tiny-reasoner", *LONG, "rewards=[{use: pear}]"), prompts=6)
    assert found.ok
    seen = found.sampled
    assert seen is not None
    assert len(seen.rows) == 6 * 4
    assert seen.shares["right"] == sum(row.verdict == "right" for row in seen.rows) / 24
    assert seen.pass_at_k["1"]["value"] == pytest.approx(seen.shares["right"])
    assert seen.pass_at_k["1"]["ci"][0] <= seen.pass_at_k["1"]["value"] <= seen.pass_at_k["4"]["value"] <= 1
    assert all((row.reward or 0) > 0 for row in seen.rows if row.verdict == "right")
    assert all(row.reward == 0 for row in seen.rows if row.verdict == "wrong")
    assert "PEAR has to take" in found.facts
    assert "PEAR's penalty and length" in found.facts
    text = render(found, width=120)
    assert seen.rows[0].prompt in text
    assert "<think>" in text
    assert text.endswith(f"{len(found.warnings)} warning(s)" if found.warnings else "nothing found")
    assert json.loads(json.dumps(found.as_json()))["sampled"]["rows"][0]["gold"] == seen.rows[0].gold


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (("trainer.max_completion_length=2",), "100% of completions truncated (over 10%). Raise the limit"),
        ((*LONG, "trainer.think_close='</end>'"), "the closing tag stands in none of 24 sampled completions. Set the"),
        ((*LONG, "trainer.temperature=0.01"), "the entropy of the start is 0.00"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(changes, warning):
    found = examine(recipe("tiny-reasoner", *changes), prompts=6)
    assert found.ok
    assert any(text.startswith(warning) for text in found.warnings), found.warnings
    assert all("trainer." in text for text in found.warnings if text.startswith(warning))


@pytest.mark.slow
def test_rewards_meet_real_completions(tmp_path):
    zero = examine(
        recipe("tiny-reasoner", *LONG, own(tmp_path / "zero.py", "return [0.0] * len(completions)")), prompts=4
    )
    assert [t for t in zero.warnings if t.startswith("every reward of 16 sampled completions is 0. Look at")]
    body = "return [1 / (len(completions) != 16)] * len(completions)"  # fewer in plan's trial call
    found = examine(recipe("tiny-reasoner", *LONG, own(tmp_path / "sixteen.py", body)), prompts=4)
    assert not found.ok
    assert "ZeroDivisionError" in found.errors[0]
    assert found.errors[0].startswith("rewards.0: ")


@pytest.mark.slow
def test_prompts_that_are_evaluated_too_are_counted(tmp_path):
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (f"data={{task: 'jsonl:{file}'}}", f"eval={{task: 'jsonl:{file}', split: train, size: 5, samples: 1}}")
    found = examine(recipe("tiny-reasoner", *data), prompts=2)
    assert any("5 of the 5 problems" in text or "the split that is trained on" in text for text in found.warnings)


@pytest.mark.slow
def test_strict_stops_before_the_first_step_and_warn_goes_on(tmp_path):
    sick = ("trainer.max_completion_length=1", "trainer.max_steps=1")
    with pytest.raises(Stopped, match="doctor: strict stops this run: 100% of completions truncated"):
        quietly(short_recipe("tiny-reasoner", tmp_path / "strict", "doctor=strict", *sick))
    assert not (tmp_path / "strict" / "metrics.jsonl").exists()
    with (tmp_path / "said").open("w") as file:
        how = Console(file=file, width=400, soft_wrap=True)
        train(short_recipe("tiny-reasoner", tmp_path / "warn", "doctor=warn", *sick), console=how)
    said = (tmp_path / "said").read_text()
    assert said.index("100% of completions truncated") < said.index("step 1/1")
    assert (tmp_path / "warn" / "model").is_dir()


def test_the_gap_is_that_of_each_token_alone(monkeypatch):
    """Against one completion at a time without padding; a sampler that is off by 0.1 nats is told to be."""
    model, _ = load_model(recipe("tiny-reasoner").model, None)
    drawn = []
    for prompt, ids in (([3, 4], [5, 6, 7]), ([8], [9]), ([3, 4, 5, 6], [7, 8])):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        told = logits_TV.log_softmax(-1)[range(len(ids)), ids]
        drawn.append((prompt, Completion(ids=ids, text="", truncated=False, entropies=None, logprobs=told)))
    monkeypatch.setattr(gap, "LOGITS", 2 * 3 * 100)  # two completions at a time
    found = gap.sampler_gap(model, drawn, temperature=0.7, vocabulary=100)
    assert found is not None
    assert found.tokens == 6
    assert found.most < 1e-5
    off = [(p, dataclasses.replace(c, logprobs=None if c.logprobs is None else c.logprobs - 0.1)) for p, c in drawn]
    found = gap.sampler_gap(model, off, temperature=0.7, vocabulary=100)
    assert found is not None
    assert found.mean == pytest.approx(0.1, abs=1e-5)
    silent = [(p, dataclasses.replace(c, logprobs=None)) for p, c in drawn]
    assert gap.sampler_gap(model, silent, temperature=0.7, vocabulary=100) is None


@pytest.mark.slow
def test_the_gap_of_a_real_start_is_a_fact():
    found = examine(recipe("tiny-reasoner", *LONG), prompts=2)
    assert found.sampled is not None
    assert found.sampled.gap is not None
    assert found.sampled.gap.mean < 1e-4
    assert "sampler and trainer" in found.facts
    assert found.as_json()["sampled"]["gap"]["tokens"] == found.sampled.gap.tokens
