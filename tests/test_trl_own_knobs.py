"""TRL's own entropy knobs, as `trainer:` keys of a recipe: they act, alone and beside a controller, and stay TRL's.

Every run is a recipe read from YAML and trained for two updates of one rollout, so the second one is off-policy: that
is where clip-higher and KL-Cov can act. All knobs together in the fast suite, each alone in the full one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_model import saved_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

from entrl.runs.plan import prepare
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.train import train

REWARD = """
def letters(completions, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(ch.isalpha() for ch in text)) for text in texts]
"""
RECIPE = """
model: {{path: {model}}}
data: {{task: sums, train_size: 16, seed: 0}}
rewards: [{{use: "reward.py:letters"}}]
controllers: {controllers}
eval: null
trainer:
  output_dir: {out}
  use_cpu: true
  bf16: false
  gradient_checkpointing: false
  per_device_train_batch_size: 8
  steps_per_generation: 2
  num_generations: 4
  max_completion_length: 8
  max_steps: 2
  learning_rate: 1e-2
  save_strategy: "no"
  report_to: []
  epsilon: 0.2
{knob}"""
KNOBS = {
    "nothing": {},
    "clip_higher": {"epsilon_high": 0.6},
    "entropy_bonus": {"entropy_coef": 0.05},
    "adaptive_entropy": {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.05},
    "top_entropy_tokens": {"top_entropy_quantile": 0.5},
    "all_at_once": {"epsilon_high": 0.6, "entropy_coef": 0.05, "top_entropy_quantile": 0.5},
}
ALONE = [pytest.param(k, marks=pytest.mark.slow) for k in KNOBS if k not in ("nothing", "all_at_once")]
# Fractions at which a step of 64 tokens has some to choose. TRL's high-entropy mask takes the penalty of the tokens it
# drops along with their policy term; of KL-Cov's first tenth it would leave none here. Where a controller sets the
# ratio range itself, it is asked for the range that the trainer's keys name.
CONTROLLERS = {
    "none": None,
    "clip_cov": {"fraction": 0.1, "lower": 0.0, "upper": 100.0, "allow_large_fraction": True},
    "kl_cov": {"fraction": 0.3, "coef": 1.0, "allow_large_fraction": True},
}


def recipe(folder: Path, model: str, knob: dict, controller: str, **more) -> Recipe:
    """The recipe with the `trainer:` keys of a knob; `more` goes into the controller's args."""
    args = CONTROLLERS[controller]
    if args is not None:
        args = {**args, "clip_low": 0.2, "clip_high": knob.get("epsilon_high", 0.2), **more}
    listed = [] if args is None else [{"use": controller, "args": args}]
    (folder / "reward.py").write_text(REWARD)
    file = folder / "recipe.yaml"
    lines = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in knob.items())
    file.write_text(
        RECIPE.format(model=model, out=folder / "run", controllers=json.dumps(listed), knob=lines), encoding="utf-8"
    )
    return load_recipe(file)


def trained(made: Recipe) -> tuple[dict[str, torch.Tensor], list[dict]]:
    result = train(made, console=Console(quiet=True))
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    return load_file(result.model_dir / "model.safetensors"), rows


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runs(model: str, tmp_path_factory: pytest.TempPathFactory):
    """(knob, controller) -> parameters and logged rows; each is trained once."""
    done = {}

    def run(knob: str, controller: str):
        if (knob, controller) not in done:
            folder = tmp_path_factory.mktemp(f"{knob}-{controller}")
            done[knob, controller] = trained(recipe(folder, model, KNOBS[knob], controller))
        return done[knob, controller]

    return run


@pytest.mark.parametrize("knob", [*ALONE, "all_at_once"])
def test_without_a_controller_a_recipe_trains_as_stock_trl_bit_for_bit(runs, model, tmp_path, knob):
    made = recipe(tmp_path, model, KNOBS[knob], "none")
    set_seed(made.trainer.get("seed", 42))
    rewards: Any = prepare(made).reward_funcs
    stock: Any = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        rewards,
        GRPOConfig(**{**made.trainer, "disable_tqdm": True}),
        made.load_data(),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    before = {k: v.clone() for k, v in stock.model.state_dict().items()}
    stock.train()
    ours, _ = runs(knob, "none")
    theirs = {k: v for k, v in stock.model.state_dict().items() if k in ours}
    assert not equal(theirs, {k: before[k] for k in ours}), "nothing was trained, the comparison would be empty"
    assert equal(ours, theirs)


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("knob", [*ALONE, "all_at_once"])
def test_the_knob_acts_and_so_does_the_controller(runs, knob, controller):
    parameters, rows = runs(knob, controller)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(torch.isfinite(p).all() for p in parameters.values())
    assert not equal(parameters, runs("nothing", controller)[0]), "the knob changed nothing"
    if controller != "none":
        assert not equal(parameters, runs(knob, "none")[0]), "the controller changed nothing"
        assert all(row[f"{controller}/selected"] > 0 for row in rows)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_coefficient_is_logged(runs, controller):
    assert [row["entropy_coef"] for row in runs("all_at_once", controller)[1]] == [0.05, 0.05]
    assert all("entropy_coef" not in row for row in runs("nothing", controller)[1])


@pytest.mark.slow
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_adaptive_coefficient_is_logged_after_each_step(runs, controller):
    assert [row["entropy_coef"] for row in runs("adaptive_entropy", controller)[1]] == [0.05, 0.1]


@pytest.mark.parametrize("controller", ["clip_cov", "kl_cov"])
def test_clip_higher_beside_another_range_of_a_controller_is_refused(model, tmp_path, controller):
    made = recipe(tmp_path, model, KNOBS["clip_higher"], controller, clip_high=0.3)
    with pytest.raises(ValueError, match=rf"{controller} sets the ratio range itself \(eps_low=0.2, eps_high=0.3\)"):
        trained(made)


def test_a_misspelt_knob_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"entropy_coeff.*entropy_coef"):
        recipe(tmp_path, model, {"entropy_coeff": 0.1}, "none")
