"""A recipe of six small steps, for tests of `plan` that change a word or two of it."""

from pathlib import Path

from entrl.runs.recipe import Recipe, make_recipe
from entrl.settings.overrides import apply_override
from entrl.settings.yaml import parse_yaml

ROOT = Path(__file__).parents[1]
SMALL = """
data: {task: sums, train_size: 64}
rewards: [accuracy]
trainer: {max_steps: 6, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 10, bf16: false}
"""


def recipe(model: str, *overrides: str) -> Recipe:
    content = parse_yaml(SMALL) | {"model": {"path": model}}
    for override in overrides:
        apply_override(content, override)
    return make_recipe(content, name="small", base=ROOT / "recipes")
