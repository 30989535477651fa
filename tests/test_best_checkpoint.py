"""`load_best_model_at_end` through `entrl train`: what is kept, what is loaded, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from short_run import RECIPE, manifest, quietly, rows, same_weights, short_recipe, start, words
from test_run import interrupt
from tiny_model import saved_model

from entrl.errors import RunStopped
from entrl.report.read import read_run
from entrl.report.summary import run_facts
from entrl.runs.plan import plan

PEAK = "rewards=['peak.py:peak']"
EVAL = "eval={task: sums, size: 4, samples: 2, before: false, at: [1, 2, 3, 4]}"
BEST = ("trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=reward")
LORA = "lora={r: 2, lora_alpha: 4, target_modules: all-linear}"
AS_BEST = (PEAK, EVAL, *BEST, "trainer.save_strategy=best")
AS_STEPS = (PEAK, EVAL, *BEST, "trainer.save_total_limit=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, with the rewards beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copy(Path(__file__).with_name("peak.py"), folder)
    return Path(shutil.copy(RECIPE, folder / "own.yaml"))


@pytest.fixture(scope="module")
def whole(model: str, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    quietly(short_recipe(model, out, *AS_STEPS, file=file))
    return out


def kept(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").glob("checkpoint-*"))


def weights_file(folder: Path) -> Path:
    names = ("adapter_model.safetensors", "model.safetensors")
    return next(folder / name for name in names if (folder / name).exists())


def test_the_best_checkpoint_is_kept_and_becomes_the_model(whole: Path):
    """Of four steps the second is the best by the evaluations made after each."""
    assert kept(whole) == ["checkpoint-2"]
    assert same(whole / "model", whole / "checkpoints" / "checkpoint-2")
    found = manifest(whole)
    assert found["steps"] == 4
    assert found["best"]["step"] == 2
    values = {r["step"]: r["reward"] for r in rows(whole) if r["kind"] == "eval"}
    assert found["best"]["value"] == pytest.approx(values[2])
    assert values[2] == max(values.values())
    assert run_facts(read_run(whole))["Trained model"].startswith("step 2 of 4, best reward of an evaluation")


def same(a: Path, b: Path) -> bool:
    first, second = load_file(weights_file(a)), load_file(weights_file(b))
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


@pytest.mark.parametrize("more", [(), (LORA,)], ids=["full", "lora"])
def test_saved_whenever_it_is_the_best(more: tuple[str, ...], model: str, file: Path, tmp_path: Path):
    out = tmp_path / "run"
    quietly(short_recipe(model, out, *AS_BEST, *more, file=file))
    assert kept(out) == ["checkpoint-1", "checkpoint-2"]
    assert same(out / "model", out / "checkpoints" / "checkpoint-2")
    assert not same(out / "model", out / "checkpoints" / "checkpoint-1")
    assert manifest(out)["best"]["step"] == 2


@pytest.mark.slow
def test_a_resume_keeps_the_best_in_a_folder_that_was_moved(whole: Path, model: str, file: Path, tmp_path: Path):
    limit = "trainer.save_total_limit=null"
    first = tmp_path / "before"
    quietly(short_recipe(model, first, *AS_STEPS, limit, file=file))
    interrupt(first, keep_step=3)
    out = first.rename(tmp_path / "after")
    quietly(short_recipe(model, out, *AS_STEPS, limit, file=file), resume=True)
    assert same_weights(whole, out)
    assert manifest(out)["best"] == manifest(whole)["best"]
    assert rows(out) == rows(whole)

    (out / "report.html").unlink()  # killed after the model was saved
    (out / "manifest.json").write_text(json.dumps({**manifest(out), "status": "running"}))
    quietly(short_recipe(model, out, *AS_STEPS, limit, file=file), resume=True)
    assert manifest(out)["best"] == manifest(whole)["best"]

    interrupt(out, keep_step=3)
    shutil.rmtree(out / "checkpoints" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"the best checkpoint so far is of step 2 .* cannot be used: it is gone"):
        quietly(short_recipe(model, out, *AS_STEPS, limit, file=file), resume=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((PEAK, EVAL, BEST[0]), "would compare the loss, .*set metric_for_best_model to reward or rewards/peak/mean"),
        ((PEAK, EVAL, "trainer.save_strategy=best"), "save_strategy: best would compare the loss"),
        ((PEAK, EVAL, *BEST, "trainer.metric_for_best_model=rewards/peek/mean"), "Did you mean 'rewards/peak/mean'"),
        ((PEAK, EVAL, *BEST, "trainer.metric_for_best_model=acuracy"), "no evaluation reports 'acuracy'"),
        ((PEAK, EVAL, *BEST, "trainer.greater_is_better=false"), "would keep the worst reward"),
        ((PEAK, EVAL, *BEST, "trainer.metric_for_best_model=kl"), "kl is no reward, so say whether more of it is bett"),
        ((PEAK, EVAL, *BEST, "trainer.save_steps=2"), r"after steps 1, 3, where no checkpoint .* save_strategy: best"),
        ((PEAK, EVAL, *BEST, "trainer.save_strategy=no"), "save_strategy: no leaves none"),
        ((PEAK, EVAL, *BEST, "trainer.save_strategy=epoch"), "save_strategy: epoch leaves none"),
        ((PEAK, *BEST), "there are none; add eval"),
        ((PEAK, "eval={task: sums}", *BEST), "there are none; add eval"),
        (
            (PEAK, "eval={task: sums}", *BEST, "trainer.eval_strategy=steps", "trainer.save_steps=2"),
            "evaluated every 1 steps and saved every 2",
        ),
        ((PEAK, "trainer.eval_strategy=steps"), "the recipe says nothing to evaluate on; add eval"),
    ],
)
def test_mistakes_are_refused_with_the_next_move(
    given: tuple[str, ...], said: str, model: str, file: Path, tmp_path: Path
):
    made = short_recipe(model, tmp_path / "run", *given, file=file)
    with pytest.raises(ValueError, match=said):
        quietly(made)
    assert not (tmp_path / "run").exists()
    assert not plan(made).ok


def test_what_is_right_passes_and_says_what_its_number_is_worth(model: str, file: Path, tmp_path: Path):
    found = plan(short_recipe(model, tmp_path / "run", *AS_BEST, file=file))
    assert found.ok, found.problems
    assert any("the evaluation after training" in note and "flatters" in note for note in found.notes)


def test_an_evaluation_without_a_number_to_compare(model: str, file: Path, tmp_path: Path):
    made = short_recipe(model, tmp_path / "run", *AS_BEST, "rewards=['peak.py:never']", file=file)
    with pytest.raises(ValueError, match=r"the evaluation after step 1 gave None for 'reward', .* it has .*entropy"):
        quietly(made)


@pytest.mark.slow
def test_a_stop_is_saved_also_where_only_the_best_is(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SIGTERM in the evaluation after the third step, which is not the best."""
    from test_run_ending import do

    for name in ("peak.py", "signalling.py"):
        shutil.copy(Path(__file__).with_name(name), tmp_path)
    file = Path(shutil.copy(RECIPE, tmp_path / "own.yaml"))
    both = "rewards=['peak.py:peak', {use: 'signalling.py:reward', weight: 0}]"
    made = short_recipe(model, tmp_path / "run", *AS_BEST, both, file=file)
    do(monkeypatch, file, "SIGTERM", 6)  # two calls a step: its rollout, its evaluation
    with pytest.raises(RunStopped, match="saved in checkpoint-3"):
        quietly(made)
    assert kept(tmp_path / "run") == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    quietly(made, resume=True)
    assert manifest(tmp_path / "run")["best"]["step"] == 2


@pytest.mark.multiprocess
def test_two_processes_take_the_same_checkpoint(model: str, file: Path, tmp_path: Path):
    out = tmp_path / "run"
    given = words(model, out, *AS_BEST, "trainer.use_cpu=true", "launch={world_size: 2, backend: gloo}")
    done = start("train", str(file), *given, processes=2)
    text: Any = done.communicate(timeout=600)
    assert done.returncode == 0, text
    assert manifest(out)["world_size"] == 2
    assert manifest(out)["best"]["step"] == 2
    assert same(out / "model", out / "checkpoints" / "checkpoint-2")
