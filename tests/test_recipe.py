"""entrl.runs.recipe: strict reading. Every refusal names the key and the next move."""

from pathlib import Path

import pytest

from entrl.runs.recipe import Recipe, load_recipe, make_recipe, trainer_fields
from entrl.runs.removed_keys import REMOVED_TRAINER_KEYS
from entrl.settings.overrides import apply_override
from entrl.settings.yaml import parse_yaml

ROOT = Path(__file__).parents[1] / "recipes"
# a study names recipes, and a cold start or an offline run makes what a recipe trains; none of them is one
OTHERS = ("\narms:", "\nanswers:", "\nmethod:")
RECIPES = sorted(p for p in ROOT.glob("*/*.yaml") if not any(key in p.read_text(encoding="utf-8") for key in OTHERS))
SMALL = """
model: {path: tiny-reasoner}
data: {task: sums, train_size: 10}
rewards: [accuracy]
trainer: {max_steps: 2}
"""


def small(*overrides: str) -> Recipe:
    content = parse_yaml(SMALL)
    for override in overrides:
        apply_override(content, override)
    return make_recipe(content, name="small", base=ROOT)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_recipe_parses_and_builds_its_parts(path: Path):
    recipe = load_recipe(path)
    assert recipe.run_dir == Path("runs") / path.stem
    assert recipe.build_rewards()
    assert len(recipe.build_controllers()) == len(recipe.controllers)
    assert (recipe.build_lora() is None) is (recipe.lora is None)


def test_all_recipes_are_there():
    names = {f"{p.parent.name}/{p.stem}" for p in RECIPES}
    tiny = {f"tiny-reasoner/{n}" for n in ("grpo", "clip-cov", "kl-cov", "pear", "pear-kl-cov", "lora")}
    assert tiny | {"qwen3/pear-kl-cov", "qwen3/lora-pear"} <= names


ADAPTERS = ("lora", "lora-replicas", "async")  # want larger steps, since they start at zero


def test_tiny_recipes_share_one_schedule():
    """The guard's demonstration runs longer, on a schedule of its own that its two arms share."""
    schedules = {p.stem: load_recipe(p).trainer for p in RECIPES if p.parent.name == "tiny-reasoner"}
    for name, trainer in schedules.items():
        if name == "code":  # shows the code reward from end to end in a minute, and is compared with nothing
            continue
        reference = schedules["guard-fixed" if name.startswith("guard") else "grpo"]
        changed = {k for k in reference | trainer if k != "output_dir" and trainer.get(k) != reference.get(k)}
        engine = {k for k in changed if k.startswith(("use_vllm", "vllm_"))}  # who generates is no schedule
        assert changed - engine <= ({"learning_rate"} if name in ADAPTERS else set()), name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_resolved_recipe_reads_back_as_itself(path: Path):
    recipe = load_recipe(path)
    again = make_recipe(parse_yaml(recipe.to_yaml()), name=recipe.name, base=recipe.base)
    assert again == recipe
    assert again.config_hash() == recipe.config_hash()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        ("3", 3),
        ("20_000", 20000),
        ("010", 10),
        ("0x10", 16),
        (".5", 0.5),
        (".inf", float("inf")),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("null", None),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_duplicate_key_is_refused_with_its_line():
    with pytest.raises(ValueError, match=r"line 3: key 'path' is written twice"):
        parse_yaml("model:\n  path: a\n  path: b\n")


def test_broken_yaml_says_where():
    with pytest.raises(ValueError, match=r"recipe is not valid YAML: .*line 1"):
        parse_yaml("model: [a, b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.path=x", r"unknown key 'modle' in recipe. Did you mean 'model'\?"),
        ("model.pth=x", r"unknown key 'pth' in model. Did you mean 'path'\?"),
        ("data.trainsize=3", r"unknown key 'trainsize' in data. Did you mean 'train_size'\?"),
        ("rewards.0={use: accuracy, wieght: 2}", r"unknown key 'wieght' in rewards.0. Did you mean 'weight'\?"),
        ("controllers=[{used: kl_cov}]", r"unknown key 'used' in controllers.0. Did you mean 'use'\?"),
        ("lora.rank=4", "unknown key 'rank' in lora"),
        ("eval={task: sums, sample: 3}", r"unknown key 'sample' in eval. Did you mean 'samples'\?"),
        ("launch.worldsize=2", r"unknown key 'worldsize' in launch. Did you mean 'world_size'\?"),
        ("trainer.lerning_rate=1", r"unknown key 'lerning_rate' in trainer. Did you mean 'learning_rate'\?"),
        ("learning_rate=1", r"unknown key 'learning_rate' in recipe. Did you mean 'trainer.learning_rate'\?"),
        ("model.torch_dtype=float32", "model.torch_dtype is gone: set model.dtype"),
        ("trainer.reward_weights=[1]", "trainer.reward_weights is set elsewhere: give each reward its own weight"),
        ("trainer.expected_world_size=2", "set launch.world_size"),
        ("trainer.resume_from_checkpoint=x", "pass resume=true"),
        ("trainer.max_steps=ten", "trainer.max_steps must be int, got 'ten'"),
        ("trainer.max_steps=2.5", "trainer.max_steps must be int, got 2.5"),
        ("trainer.use_vllm=yes", "trainer.use_vllm must be bool, got 'yes'; write use_vllm: true or false"),
        ("data.train_size=0", "data.train_size must be at least 1, got 0"),
        ("model.dtype=fp32", "model.dtype must be one of auto, float32"),
        ("launch.backend=tcp", "launch.backend must be one of gloo"),
        ("launch.world_size=0", "launch.world_size must be at least 1"),
        ("eval={task: sums, samples: 2, k: [4]}", r"eval.k must lie in 1..samples \(2\), got \[4\]"),
        ("eval={task: sums, temperature: 0.0}", "eval.temperature must be above 0"),
        ("eval={size: 3}", "eval needs either a task or a list of tasks"),
        ("rewards=[]", "rewards is empty"),
        ("rewards=accuracy", "rewards must be a list"),
        ("model=null", "no 'model' group"),
        ("trainer=3", "trainer must be a mapping"),
    ],
)
def test_refusals(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        small(override)


@pytest.mark.parametrize("key", sorted(REMOVED_TRAINER_KEYS))
def test_removed_trainer_key_names_its_successor(key: str):
    assert key not in trainer_fields()  # else the entry is wrong
    with pytest.raises(ValueError, match=f"trainer.{key} is gone: "):
        small(f"trainer.{key}=1")


def test_the_launcher_divides_and_not_the_recipe():
    with pytest.raises(ValueError, match=r"trainer.fsdp .*launch/fsdp2.yaml"):
        small("trainer.fsdp=full_shard")


@pytest.mark.parametrize("key", sorted(REMOVED_TRAINER_KEYS))
def test_successors_exist(key: str):
    words = REMOVED_TRAINER_KEYS[key].replace(":", " ").replace(",", " ").split()
    named = [w.removeprefix("trainer.") for w in words if w.startswith("trainer.")]
    assert all(name in trainer_fields() for name in named)


def test_overrides_reach_everywhere():
    recipe = small(
        "trainer.learning_rate=1e-5",
        "rewards.0={use: pear}",
        "rewards.0.args.alpha=0.5",
        "rewards.1.use=accuracy",
        "controllers.0.use=kl_cov",
        "lora.r=4",
        "world_size=2",
        "eval.task=sums",
        "trainer.output_dir=elsewhere",
    )
    assert recipe.trainer["learning_rate"] == 1e-5
    assert recipe.rewards[0].args == {"alpha": 0.5}
    assert [r.use for r in recipe.rewards] == ["pear", "accuracy"]
    assert recipe.controllers[0].use == "kl_cov"
    assert recipe.lora == {"r": 4}
    assert recipe.launch.world_size == 2
    assert recipe.eval is not None
    assert recipe.run_dir == Path("elsewhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.learning_rate", "should read key=value"),
        ("=3", "should read key=value"),
        ("rewards.first.use=x", "should be a position in a list of 1"),
        ("rewards.5.use=x", "the list has 1 entries"),
        ("model.path.deeper=x", "nothing can be set below"),
    ],
)
def test_bad_overrides(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        small(override)


def test_config_hash_is_of_the_numbers_and_not_of_the_place():
    assert small().config_hash() == small("trainer.output_dir=elsewhere").config_hash()
    here, there = ("trainer.vllm_server_host=here", "trainer.vllm_server_port=1"), ("trainer.vllm_server_host=there",)
    assert small(*here).config_hash() == small(*there, "trainer.vllm_server_port=2").config_hash()
    assert small().config_hash() != small("trainer.seed=1").config_hash()
    assert small().config_hash() != small("rewards.0={use: accuracy, weight: 2.0}").config_hash()


def test_groups_arrive_in_the_trainer_config():
    recipe = small("rewards=[{use: accuracy, weight: 0.25}]", "world_size=2", "backend=gloo")
    kwargs = recipe.trainer_kwargs()
    assert kwargs["reward_weights"] == [0.25]
    assert (kwargs["expected_world_size"], kwargs["expected_backend"]) == (2, "gloo")
    assert kwargs["output_dir"] == "runs/small/checkpoints"


def test_missing_recipe_suggests_a_neighbour():
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'grpo.yaml'\?"):
        load_recipe(ROOT / "tiny-reasoner" / "grp.yaml")


def test_recipe_that_is_no_mapping(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="holds a list, not a mapping"):
        load_recipe(tmp_path / "x.yaml")


def test_tables_are_looked_for_beside_the_recipe_and_opened_from_anywhere(tmp_path: Path, monkeypatch):
    (tmp_path / "own.json").write_text('{"hypotheses": ["a", "b"], "questions": ["q"], "values": [[1], [0]]}')
    content = parse_yaml(SMALL)
    content["data"] = {"task": "twenty_questions", "train_size": 2, "args": {"tables": "loaded:own.json"}}
    content["environment"] = {"use": "twenty_questions"}
    recipe = make_recipe(content, name="own", base=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    game = recipe.build_environment()()
    game.reset(**recipe.load_data()[0])
    assert game.ask("q").startswith("Question 1 of")
    content["data"]["args"] = {"tables": "loaded:x.csv"}
    missing = make_recipe(content, name="own", base=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file 'x.csv' in .*write the path relative to the recipe"):
        missing.load_data()


def test_jsonl_is_looked_for_beside_the_recipe(tmp_path: Path):
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1+1=", "answer": 2}\n')
    content = parse_yaml(SMALL)
    content["data"] = {"task": "jsonl:problems.jsonl"}
    recipe = make_recipe(content, name="own", base=tmp_path)
    assert recipe.load_data()["answer"] == ["2"]


def test_task_options_travel():
    recipe = small("data.args.max_terms=3")
    assert set(recipe.load_data()["level"]) == {"3"}
