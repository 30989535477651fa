"""Several tasks in one evaluation, several models along a curve, several processes."""

import dataclasses
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
from short_run import quietly, short_recipe, start
from tiny_model import saved_model
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

from entrl.cli.main import main
from entrl.models.load import load_policy
from entrl.report.curve import curve_of, render, rows_of, step_of
from entrl.report.metrics import by_task
from entrl.report.summary import before_after
from entrl.runs import evaluate as evaluate_module
from entrl.runs import train as train_module
from entrl.runs.evaluate import Asking, Subject, evaluate_subject, free
from entrl.runs.specs import EvalSpec, EvalTask
from entrl.tasks import load_task
from entrl_lab.nursery.tokenizer import character_tokenizer

WORDS = ["-k", "1,2", "--size", "5", "--max-new-tokens", "6", "--task-args", "{max_terms: 3}", "--batch-size", "6"]
TIMES = ("seconds", "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = saved_model(tmp_path_factory.mktemp("several") / "model")
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def timeless(result: dict) -> dict:
    return {k: timeless(v) if isinstance(v, dict) else v for k, v in result.items() if k not in TIMES}


def test_parts_of_an_evaluation():
    spec = EvalSpec(
        tasks=[EvalTask(task="sums", args={"max_terms": 3}), EvalTask(task="sums", name="long", size=7, split="train")],
        size=5,
        args={"min_terms": 2},
    )
    short, long = spec.parts.values()
    assert list(spec.parts) == ["sums", "long"]
    assert (short.task, short.tasks, short.size, short.split) == ("sums", [], 5, "test")
    assert short.args == {"min_terms": 2, "max_terms": 3}
    assert (long.size, long.split, long.args) == (7, "train", {"min_terms": 2})
    assert EvalSpec(task="sums").parts == {"sums": EvalSpec(task="sums")}
    for wrong, match in [
        ({}, "either a task or a list of tasks"),
        ({"task": "sums", "tasks": [EvalTask(task="sums")]}, "either a task or a list of tasks"),
        ({"tasks": [EvalTask(task="sums"), EvalTask(task="sums")]}, "two have one name"),
        ({"tasks": [EvalTask(task="sums", samples=2)], "k": [4]}, r"eval.k must lie in 1..samples \(2\)"),
        ({"task": "sums", "batch_size": 0}, "at least 1, or auto"),
        ({"task": "sums", "batch_size": "large"}, "at least 1, or auto"),
        ({"task": "sums", "engine": "sglang"}, "eval.engine must be one of transformers, vllm"),
        ({"task": "sums", "servers": ["http://a"]}, "set eval.engine: vllm"),
    ]:
        with pytest.raises(ValueError, match=match):
            EvalSpec(**wrong)


def test_a_curve_over_checkpoints_of_several_tasks(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each model's JSON equals the one it gets alone; the curve holds its numbers, by step."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in (20, 3):
        (checkpoints / f"checkpoint-{step}").symlink_to(model)
    named = [str(checkpoints / name) for name in ("checkpoint-20", "checkpoint-3")]
    out, alone = tmp_path / "curve", tmp_path / "alone.json"
    tasks = ["--task", "sums", "--task", "reasoning_gym:chain_sum"]
    words = [w for w in WORDS if w not in ("--task-args", "{max_terms: 3}")]
    assert main(["eval", *named, *tasks, *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == [["checkpoint-3", "3"], ["checkpoint-20", "20"]]
    assert main(["eval", named[0], *tasks, *words, "--out", str(alone)]) == 0
    assert timeless(json.loads(alone.read_text())) == timeless(json.loads((out / "checkpoint-20.json").read_text()))
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint-20.json", "checkpoint-3.json", "curve.html", "curve.json",
    ]  # fmt: skip
    found, curve = json.loads(alone.read_text()), json.loads((out / "curve.json").read_text())
    assert list(found["tasks"]) == ["sums", "reasoning_gym:chain_sum"]
    assert [p["step"] for p in curve["points"]] == [3, 20]
    for task, result in found["tasks"].items():
        numbers = curve["points"][1]["numbers"][task]
        assert numbers["sampled_accuracy"]["value"] == result["sampled_accuracy"]
        assert [numbers["sampled_accuracy"][end] for end in ("lo", "hi")] == result["sampled_accuracy_ci"]
        assert numbers["pass_at_k/2"] == {"value": result["pass_at_k"]["2"], "lo": None, "hi": None}
    page = (out / "curve.html").read_text()
    assert page.count("<svg") == sum(len(numbers) for numbers in curve["points"][0]["numbers"].values())
    with pytest.raises(SystemExit):
        main(["eval", *named])
    assert main(["eval", *named, "--task", "sums", "--out", str(alone)]) == 2
    assert "is a folder for a JSON each" in capsys.readouterr().err


def test_all_that_lies_in_a_run_s_checkpoints_may_be_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As `RUN/checkpoints/*` names it; with no more than one checkpoint it is a curve all the same."""
    more = ("trainer.max_steps=1", "trainer.log_windows=[0]", "trainer.log_completions=true")
    quietly(short_recipe(model, tmp_path / "run", *more))
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("adapters", "runs"):  # of the engine's and of TensorBoard
        (checkpoints / name).mkdir(exist_ok=True)
    named = sorted(map(str, checkpoints.glob("*")))
    assert {"README.md", "checkpoint-1", "windows", "completions"} <= {Path(n).name for n in named}
    out = tmp_path / "curve"
    words = ["--task", "sums", "--size", "2", "--max-new-tokens", "4"]
    assert main(["eval", *named, *words, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    for name in named:
        line = f"skipping {name}: it has neither config.json nor adapter_config.json"
        assert said.count(line) == (not name.endswith("checkpoint-1"))
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-1.json", "curve.html", "curve.json"]
    monkeypatch.setattr(evaluate_module, "evaluate_subject", None)  # what follows ends before it
    rest = [name for name in named if not name.endswith("checkpoint-1")]
    assert main(["eval", *rest, *words]) == 2
    assert "is a model: none has a config.json" in capsys.readouterr().err
    for models, place, reason in [
        ([model], out, "--out of one model is a JSON, and"),
        ([model], tmp_path / "x.partial", "--out ends in .partial"),
        (named, Path(model) / "config.json", "leave .json out"),
        (named, checkpoints / "README.md", "README.md is a file"),
    ]:
        assert main(["eval", *models, *words, "--out", str(place)]) == 2
        assert reason in capsys.readouterr().err


def test_the_table_of_a_run_has_a_row_for_each_task():
    def result(accuracy: float) -> dict:
        problems = [{"id": str(i), "greedy_correct": i < 10 * accuracy, "prompt": str(i)} for i in range(10)]
        return {"task": "t", "greedy_accuracy": accuracy, "mean_length_greedy": 3.0, "problems": problems}

    @dataclasses.dataclass
    class Run:
        eval_before: dict
        eval_after: dict

    several = Run({"tasks": {"a": result(0.2), "b": result(0.5)}}, {"tasks": {"a": result(0.6), "b": result(0.5)}})
    table = {row.label: row.cells for row in before_after([several])}
    assert table["a: Greedy accuracy, %"][0][:2] == ("20.0", "60.0")
    assert table["a: Greedy accuracy, %"][0].change.startswith("+40.0 [")
    assert table["b: Greedy accuracy, %"][0].change.startswith("+0.0 [")
    one = Run(result(0.2), result(0.6))
    assert before_after([one])[0].label == "Greedy accuracy, %"
    assert by_task(None) == {}
    both = before_after([several, one])
    assert [c.before for c in next(row for row in both if row.label == "Greedy accuracy, %").cells] == ["–", "20.0"]


def test_points_without_a_step_stand_behind(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "manifest.json").write_text('{"steps": 9}')
    assert step_of(tmp_path / "model") == 9
    assert step_of("runs/x/checkpoints/checkpoint-12") == 12
    assert step_of("tiny-reasoner") is None
    evaluations = {
        name: {"model": name, "greedy_accuracy": 0.5, "greedy_accuracy_ci": [0.25, 0.75], "pass_at_k": {}}
        for name in ("tiny-reasoner", "checkpoint-5", "<b>")
    }
    curve = curve_of(evaluations)
    assert [p["name"] for p in curve["points"]] == ["checkpoint-5", "tiny-reasoner", "<b>"]
    headings, lines = rows_of(curve)
    assert headings == ["model", "step", "Greedy accuracy, %"]
    assert lines[0] == ["checkpoint-5", "5", "50.0 [25.0, 75.0]"]
    assert "<b>" not in render(curve)


def test_the_evaluated_model_is_whole_and_gone_afterwards(model: str, monkeypatch: pytest.MonkeyPatch):
    """Under ZeRO-3 transformers would divide it, under FSDP load it on one rank; before training its memory is free."""
    seen: list[Any] = []

    def load() -> tuple[Any, Any]:
        assert not is_deepspeed_zero3_enabled()
        assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
        loaded = load_policy(model, device="cpu")
        seen.append(weakref.ref(loaded[0]))
        return loaded

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    config = Zero3()  # transformers keeps no more than a weak reference
    spec = EvalSpec(task="sums", size=2, samples=1, batch_size=2, seed=0)
    subject = Subject(path=model, load=load, tokenizer=lambda: None)
    deepspeed.set_hf_deepspeed_config(config)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    try:
        rows = lambda part: load_task(part.task, split="test", size=part.size, seed=0)  # noqa: E731
        found = evaluate_subject(spec, subject, Asking(length=4), rows=rows)
        assert is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert found["n_problems"] == 2
    free()
    assert [model() for model in seen] == [None]
    with pytest.raises(ValueError, match="are evaluated by transformers"):
        evaluate_subject(
            dataclasses.replace(spec, engine="vllm"), subject, Asking(length=4, environment=dict), rows=rows
        )


def test_nothing_of_a_trainer_is_left_when_its_model_is_evaluated(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither its model nor its optimiser's state is held beside the copy that answers."""
    build, evaluated, trained, left = train_module.build_trainer, evaluate_module.evaluate_run, [], {}

    def building(run: Any) -> Any:
        trainer, progress = build(run)
        trained.append(weakref.ref(trainer.model))
        return trainer, progress

    def counting(run: Any, load: Any, when: str, partial: Path) -> Any:
        left[when] = [ref() is not None for ref in trained]
        return evaluated(run, load, when, partial)

    monkeypatch.setattr(train_module, "build_trainer", building)
    monkeypatch.setattr(evaluate_module, "evaluate_run", counting)
    evaluation = "eval={task: sums, size: 2, samples: 1, greedy: false}"
    result = quietly(short_recipe(model, tmp_path / "run", evaluation, "trainer.max_steps=1"))
    assert left == {"before": [], "after": [False]}
    assert result.eval_after["greedy_accuracy"] is None
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.multiprocess
def test_two_processes_write_what_one_writes(model: str, tmp_path: Path):
    """`entrl eval` on two ranks over gloo: one JSON, equal to that of one process in every digit."""
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        running = start("eval", model, "--task", "sums", *WORDS, "--out", str(out), processes=processes)
        told, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors
        assert told.count('"n_problems": 5') == 1
        assert not out.with_suffix(".partial").exists()
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert timeless(one) == timeless(two)
