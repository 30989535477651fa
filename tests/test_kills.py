"""The bounded part of `benchmarks/reliability.py`: real processes, killed by SIGKILL or damaged, and resumed."""

from pathlib import Path

import pytest
from kills import (
    DAMAGES,
    copied,
    differences,
    entrl_train,
    kinds_of_places,
    newest,
    places,
    resume,
    write_recipe,
)

DAMAGED = list(DAMAGES)[::2][:5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("grpo", ["save", "checkpoint"]),
        ("lora", ["backward pass", "report"]),
        ("epochs", ["generation", "evaluation after"]),
        ("evaluation", ["evaluation in training", "optimiser step"]),
    ],
)
def test_a_killed_run_comes_out_as_if_it_had_not_been(name: str, kinds: list[str], tmp_path: Path):
    recipe, whole, trace = write_recipe(tmp_path, name), tmp_path / "whole", tmp_path / "trace"
    ended = entrl_train(recipe, whole, trace=trace)
    assert ended.code == 0, ended.text
    found = kinds_of_places(places(trace), seed=1)
    for kind in kinds:
        run_dir = tmp_path / kind.replace(" ", "-")
        at = found[kind][-1]
        assert entrl_train(recipe, run_dir, at=at).code == -9
        outcome = resume(recipe, whole, run_dir)
        assert outcome["alike"], (places(trace)[at], outcome)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_a_real_run(tmp_path: Path):
    recipe, whole, trace, run_dir = (write_recipe(tmp_path, "lora"), *(tmp_path / n for n in ("whole", "trace", "cut")))
    assert entrl_train(recipe, whole, trace=trace).code == 0
    last = kinds_of_places(places(trace), seed=1)["evaluation after"][0]
    assert entrl_train(recipe, run_dir, at=max(i for i in range(last) if "model/" in places(trace)[i])).code == -9
    for damage in DAMAGED:
        damaged = copied(run_dir, tmp_path / "damaged")
        folder = newest(damaged)
        DAMAGES[damage](folder)
        outcome = resume(recipe, whole, damaged)
        assert outcome["alike"], (damage, outcome)
        assert outcome["skipped"][0].startswith(f"{folder.name} is skipped"), damage


@pytest.mark.multiprocess
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_resume(rank: int, tmp_path: Path):
    """gloo's device is called cpu:0, which torch could not map an optimiser to."""
    recipe, whole, trace = write_recipe(tmp_path, "two_ranks"), tmp_path / "whole", tmp_path / "trace"
    ended = entrl_train(recipe, whole, trace=trace, rank=rank)
    assert ended.code == 0, ended.text
    at = kinds_of_places(places(trace), seed=0)["optimiser step"]
    assert entrl_train(recipe, tmp_path / "run", at=max(at), rank=rank).code != 0
    outcome = resume(recipe, whole, tmp_path / "run")
    assert outcome["went_on"] == "from checkpoint-4", outcome
    assert outcome["alike"], outcome


def test_a_difference_is_seen(tmp_path: Path):
    """What every other test here rests on."""
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "x.safetensors").write_bytes(b"1")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "seconds": 3, "step_time": 1}\n')
        (tmp_path / name / "completions.jsonl").write_text('{"step": 0}\n')
        (tmp_path / name / "report.html").write_text("")
        for file, text in (
            ("eval_before", '{"seconds": 1, "n": 2}'),
            ("eval_after", "{}"),
            ("manifest", '{"status": "finished", "steps": 1}'),
        ):
            (tmp_path / name / f"{file}.json").write_text(text)
    a, b = tmp_path / "a", tmp_path / "b"
    (b / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "seconds": 4, "step_time": 2}\n')
    assert differences(a, b) == []
    (b / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0000001, "seconds": 4}\n')
    (b / "completions.jsonl").write_text("")
    (b / "model" / "x.safetensors").write_bytes(b"2")
    (b / "eval_before.json").write_text('{"n": 3}')
    (b / "manifest.json").write_text('{"status": "finished", "steps": 2}')
    (b / "report.html").unlink()
    assert differences(a, b) == [
        "model/x.safetensors", "metrics.jsonl", "completions.jsonl", "eval_before.json", "manifest.json", "report.html",
    ]  # fmt: skip
