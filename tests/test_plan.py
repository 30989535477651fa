"""entrl.runs.plan: the arithmetic, and every check that training runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import saved_model

from entrl.runs.plan import Plan, build_args, column_problems, count_parameters, launcher_problems, plan, prepare
from entrl.runs.recipe import Recipe, load_recipe, make_recipe
from entrl.settings.names import Loaded
from entrl.settings.overrides import apply_override
from entrl.settings.yaml import parse_yaml

ROOT = Path(__file__).parents[1] / "recipes"
SMALL = """
data: {task: sums, train_size: 64}
rewards: [accuracy]
trainer: {max_steps: 6, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 10, bf16: false}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def recipe(model: str, *overrides: str, base: Path = ROOT) -> Recipe:
    content = parse_yaml(SMALL) | {"model": {"path": model}}
    for override in overrides:
        apply_override(content, override)
    return make_recipe(content, name="small", base=base)


def row(found: Plan, label: str) -> str:
    return dict(found.rows)[label]


def test_arithmetic_by_hand(model: str):
    words = ("trainer.steps_per_generation=4", "trainer.gradient_accumulation_steps=2", "controllers=[kl_cov]")
    found = plan(recipe(model, *words), world_size=2)
    assert found.ok, found.problems
    # 4 rows x 4 micro-batches x 2 processes = 32 rows = 8 prompts x 4; a step takes 4 x 2 x 2 = 16 of them
    assert row(found, "rollout") == "8 prompts x 4 completions = 32 rows"
    assert row(found, "optimiser step").startswith("16 rows")
    assert row(found, "updates per rollout").startswith("2, off-policy")
    assert row(found, "tokens per rollout").startswith("at most 320")
    # 6 steps = 3 rollouts of 8 prompts, out of 64 problems
    assert row(found, "steps") == "6, 24 prompts, 0.38 passes over 64 problems"
    # 0.002 x 16 rows x 10 tokens
    assert "acts on 50% of optimiser steps" in row(found, "kl_cov")
    assert "at most 0.32 tokens" in row(found, "kl_cov")


def test_another_world_size_is_planned_without_it(model: str):
    words = ("trainer.per_device_train_batch_size=2", "trainer.num_generations=4")
    assert plan(recipe(model, *words), world_size=2).ok
    one = plan(recipe(model, *words), world_size=1)
    assert any("must be divisible by num_generations" in p for p in one.problems)


def test_kl_cov_on_policy_will_not_act(model: str):
    found = plan(recipe(model, "controllers=[kl_cov]"))
    assert any("steps_per_generation: 2" in p for p in found.problems)
    assert row(found, "kl_cov").startswith("will not act: ")


def test_entropy_reward_costs_a_pass_only_on_policy(model: str):
    assert row(plan(recipe(model, "rewards=[pear]")), "extra forward passes").startswith("1 ")
    several = plan(recipe(model, "rewards=[pear]", "trainer.steps_per_generation=2"))
    assert row(several, "extra forward passes").startswith("0 ")
    assert row(plan(recipe(model)), "extra forward passes").startswith("0 ")


def test_problems_are_collected_not_raised(model: str):
    words = ("rewards=[{use: nosuch}]", "controllers=[{use: kl_cov, args: {fraction: 0.2}}]", "data.task=summs")
    found = plan(recipe(model, *words))
    assert not found.ok
    text = found.render()
    assert "no entrl_rewards.nosuch" in text
    assert "0.05" in text  # the guard rail of fractions
    assert "unknown task 'summs'" in text
    assert "will not train" in text


def test_missing_model_folder(model: str):
    assert any("does not exist" in p for p in plan(recipe("/no/such/folder")).problems)


def test_column_that_the_task_lacks(model: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def mine(completions, answr, **kw):\n    return [0.0] * len(completions)\n")
    found = plan(recipe(model, "rewards=['mine.py:mine']", base=tmp_path))
    assert len(found.problems) == 1
    assert "needs 'answr'" in found.problems[0]
    assert "Did you mean 'answer'?" in found.problems[0]


def test_signals_are_not_columns():
    def reward(*, completions, token_entropies, think_tags, gather, log_metric, **_):
        return [0.0 for _ in completions]

    loaded = Loaded(value=reward, source="here:reward", file=None)
    assert column_problems([loaded], ["prompt", "answer"]) == []


def test_dataset_without_prompts():
    assert "no column 'prompt'" in column_problems([], ["question", "answer"])[0]


def test_two_rewards_of_one_name(model: str):
    prepared = prepare(recipe(model, "rewards=[accuracy, accuracy]"))
    assert any("2 rewards are called 'accuracy'" in p for p in prepared.problems)
    with pytest.raises(ValueError, match="2 rewards are called"):
        prepared.raise_first()


def test_world_size_other_than_asked(model: str):
    found = plan(recipe(model, "launch.world_size=2"), world_size=1)
    assert any("launch.world_size asks for 2 processes, there are 1" in p for p in found.problems)


def test_processes_that_do_not_know_of_each_other():
    assert launcher_problems(1, None) == launcher_problems(2, "2") == []
    assert "started 2 processes, but this one sees a world of 1" in launcher_problems(1, "2")[0]


def test_group_scaling_with_an_entropy_reward_is_warned_about(model: str):
    assert any("scale_rewards: batch" in w for w in plan(recipe(model, "rewards=[pear]")).warnings)
    assert not plan(recipe(model, "rewards=[pear]", "trainer.scale_rewards=batch")).warnings


def test_vllm_default_correction_is_warned_about(model: str):
    assert any("token_truncate" in w for w in plan(recipe(model, "trainer.use_vllm=true")).warnings)


def test_lora_counts_what_is_trained(model: str):
    from peft import LoraConfig
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    total, trained = count_parameters(config, None)
    assert total == trained
    # two layers of one rank-1 adapter on q_proj: hidden 32 in, 2 heads x 16 = 32 out
    lora = LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert count_parameters(config, lora) == (total, 2 * (32 + 32))


def test_bf16_is_planned_without_a_gpu(model: str):
    args = build_args(recipe(model, "trainer.bf16=true"), world_size=4)
    assert args.bf16
    assert args.world_size == 4


@pytest.mark.parametrize("name", ["qwen3/pear-kl-cov", "qwen3/lora-pear"])
def test_qwen3_recipes_plan(name: str, model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"model.path={model}", "data={task: sums, train_size: 4096}", "eval=null"]
    found = plan(load_recipe(ROOT / f"{name}.yaml", words))
    assert found.ok, found.problems
    if "kl-cov" in name:
        assert row(found, "rollout") == "256 prompts x 8 completions = 2048 rows"
        assert row(found, "updates per rollout").startswith("8, ")
    else:
        assert row(found, "optimiser step").startswith("128 rows")


def test_plan_does_not_say_ready_for_what_it_could_not_look_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = plan(load_recipe(ROOT / "qwen3" / "lora-pear.yaml"))
    assert found.ok
    assert any("model Qwen/" in entry for entry in found.unchecked)
    assert "ready to train" not in found.render()
    assert "could not be checked from here" in found.render()


@pytest.mark.parametrize("path", ["tiny-overthinker ", "Tiny-Overthinker"])
def test_a_model_nobody_has_is_told_what_it_may_mean(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = load_recipe(ROOT / "overthinker" / "grpo.yaml")
    found = plan(replace(recipe, model=replace(recipe.model, path=path)))
    assert any("Did you mean 'tiny-overthinker'?" in entry for entry in found.unchecked)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.loss_type=foo", "loss_type='foo' is not one of TRL's: grpo"),
        ("trainer.temperature=-1", "temperature must be > 0"),
    ],
)
def test_plan_checks_what_trl_checks_late(override: str, message: str):
    found = plan(load_recipe(ROOT / "tiny-reasoner" / "grpo.yaml", [override]))
    assert any(message in p for p in found.problems)


def test_a_study_is_told_from_a_recipe():
    with pytest.raises(ValueError, match="looks like a study, which `entrl replicate` runs"):
        load_recipe(ROOT / "tiny-reasoner" / "study.yaml")
    with pytest.raises(ValueError, match="looks like offline teaching, which `entrl offline` does"):
        load_recipe(ROOT / "twenty-questions" / "dpo.yaml")
