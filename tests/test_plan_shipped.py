"""No false alarm: of every recipe that is shipped, plan says neither a problem nor a warning.

What this machine lacks (a hub, vLLM, a GPU) stands among the things not checked. A recipe that trains what an earlier
command made is given a shipped model in its place.
"""

from pathlib import Path

import pytest
from test_recipe import RECIPES

from entrl.models.packaged import PACKAGED, NotFetched, packaged_path
from entrl.runs.plan import plan
from entrl.runs.recipe import load_recipe

QUICK = ("tiny-reasoner/pear-kl-cov", "overthinker/pear", "diagram/entropy", "qwen3/pear-kl-cov")
NAMED = {f"{path.parent.name}/{path.stem}": path for path in RECIPES}
ROOT = Path(__file__).parents[1]
# of shipped adapters
BASES = dict.fromkeys(("smollm2-chain-sum", "recipes/overthinker/smollm2-base"), "smollm2-135m-instruct")
MADE = "runs/"  # where an earlier command puts a model


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMED])
def test_a_shipped_recipe_raises_no_alarm(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(NAMED[name])
    model = BASES.get(recipe.model.path, recipe.model.path)
    if model in PACKAGED:
        try:
            packaged_path(model)
        except NotFetched:
            pytest.skip(f"`entrl fetch {model}` has not been run")
    if recipe.model.path.startswith("recipes/"):  # committed beside the recipe, and named from the repository's root
        recipe = load_recipe(NAMED[name], [f"model.path={ROOT / recipe.model.path}"])
    if recipe.model.path.startswith(MADE):
        recipe = load_recipe(NAMED[name], ["model.path=tiny-reasoner"])
    found = plan(recipe)
    assert (found.problems, found.warnings) == ([], [])
