"""Trackers are told everything that metrics.jsonl holds, and the hub gets what was asked for."""

import json
import os
from pathlib import Path

import pytest
from short_run import RECIPE, quietly, short_recipe
from tiny_model import saved_model

from entrl.runs.plan import prepare
from entrl.settings.secrets import hand_over_hub_token

ONLY_OURS = {"step", "kind", "seconds", "tokens", "forward_passes", "optimizer_steps"}  # of metrics.jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def test_tensorboard_gets_every_metric_under_its_name(model: str, tmp_path: Path):
    """Offline: files in the run folder, read back by tensorboard itself."""
    pytest.importorskip("tensorboard")  # of the extra `dev`
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, name = tmp_path / "run", "grpo.yaml"
    evaluated = "eval={task: sums, size: 4, samples: 2, before: false, at: [2]}"
    given = ("trainer.report_to=tensorboard", "trainer.max_steps=12", "controllers=[{use: kl_cov}]", evaluated)
    more = ("trainer.steps_per_generation=2", "trainer.save_strategy=no")
    quietly(short_recipe(model, out, *given, *more, file=RECIPE.with_name(name)))

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (folder,) = (out / "checkpoints" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    told = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for row in lines:
        for key, value in row.items():
            if key not in ONLY_OURS and value is not None:
                tag = f"{row['kind'] if key != 'epoch' else 'train'}/{key}"  # an evaluation has no epoch of its own
                assert told[tag][row["step"]] == pytest.approx(value, rel=1e-6), tag
    assert any(tag.startswith("train/law/") for tag in told)  # added by a callback of ours
    assert any(tag.startswith("train/kl_cov/") for tag in told)
    assert any(tag.startswith("eval/rewards/") for tag in told)


def test_what_is_asked_of_the_hub_reaches_transformers_and_the_token_its_variable(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "")
    asked = {"push_to_hub": "true", "hub_model_id": "me/mine", "hub_strategy": "checkpoint", "hub_private_repo": "true"}
    token = "hf_" + "x" * 30
    words = [f"trainer.{key}={value}" for key, value in (asked | {"hub_token": token}).items()]
    made = short_recipe(model, tmp_path / "run", *words)
    args = prepare(made).args
    assert (args.push_to_hub, args.hub_model_id, args.hub_strategy.value) == (True, "me/mine", "checkpoint")
    assert args.hub_private_repo is True
    hand_over_hub_token(args)
    assert args.hub_token is None
    assert os.environ["HF_TOKEN"] == token
    assert token not in made.to_yaml()
