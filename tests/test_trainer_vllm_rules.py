"""Engine, sampler and correction: what is refused before anything is built, and that the rest is let through."""

from pathlib import Path

import pytest

from entrl.environments import TwentyQuestions
from entrl.runs.plan.checks import prepare
from entrl.runs.recipe import load_recipe
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.refusals.engine_rules import tool_problems, vllm_problems
from entrl.trainers.refusals.sampling import reshaping, sampling_problems


def problems(tmp_path, *, entropy_aware: bool = True, **options) -> list[str]:
    given = {"use_cpu": True, "report_to": "none", "bf16": False} | options
    args = EntropyGRPOConfig(str(tmp_path), **given)
    return sampling_problems(args) + vllm_problems(args, entropy_aware=entropy_aware)


RECIPES = Path(__file__).parents[1] / "recipes"
COLOCATED = {"use_vllm": True, "vllm_mode": "colocate"}
TOKEN = {"vllm_importance_sampling_mode": "token_truncate"}
REPLICAS = {"use_vllm": True, "vllm_mode": "server", "vllm_replicas": ["http://127.0.0.1:8000"]}


@pytest.mark.parametrize(
    "options",
    [
        {},
        COLOCATED,
        REPLICAS,
        {**COLOCATED, "entropy_source": "sampler"},
        {**REPLICAS, "entropy_source": "sampler"},
        {**COLOCATED, **TOKEN, "top_p": 0.9, "truncation_correction": "weigh"},
        {**COLOCATED, "top_h": 0.4, "truncation_correction": "restore"},  # sequence_mask, TRL's default
        {**COLOCATED, "top_k": 20, "allow_truncated_sampling": True},
        {"top_p": 0.9, "allow_truncated_sampling": True},
    ],
)
def test_what_trains_what_it_says_is_let_through(tmp_path, options):
    assert problems(tmp_path, **options) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"entropy_source": "sampler"}, ["use_vllm: true", "entropy_source: scoring"]),
        ({**COLOCATED, "entropy_source": "sampler", "min_p": 0.1}, ["min_p=0.1", "before custom processors"]),
        ({"use_vllm": True, "vllm_mode": "server"}, ["NCCL", "vllm_replicas"]),
        ({"vllm_replicas": ["http://127.0.0.1:8000"]}, ["use_vllm is false"]),
        ({**COLOCATED, "vllm_replicas": ["http://127.0.0.1:8000"]}, ["vllm_mode: server"]),
        ({"top_p": 0.9}, ["top_p=0.9", "leave top_p at 1.0"]),
        ({"top_h": 0.4}, ["top_h=0.4", "allow_truncated_sampling"]),
        ({**COLOCATED, "top_h": 0.4}, ["truncation_correction: restore or weigh"]),
        ({**COLOCATED, "repetition_penalty": 1.1}, ["repetition_penalty=1.1", "leave repetition_penalty at 1.0"]),
        ({"top_p": 0.9, "truncation_correction": "restore"}, ["use_vllm: true"]),
        ({**COLOCATED, "top_p": 0.9, "truncation_correction": "weigh"}, ["sequence_mask", "goes to 0"]),
        ({**COLOCATED, "min_p": 0.1, "truncation_correction": "restore"}, ["min_p=0.1", "correctable are"]),
        (
            {**COLOCATED, "truncation_correction": "restore", "vllm_importance_sampling_correction": False},
            ["vllm_importance_sampling_correction"],
        ),
        ({**COLOCATED, "generation_kwargs": {"top_p": 0.5}}, ["top_p=0.5"]),
        (
            {**COLOCATED, "generation_kwargs": {"presence_penalty": 0.5}},
            ["presence_penalty=0.5", "leave presence_penalty at 0.0"],
        ),
        (
            {"use_vllm": True, "vllm_mode": "server", "top_h": 0.4, "truncation_correction": "weigh", **TOKEN},
            ["top_h=0.4 cannot reach TRL's own server"],
        ),
        ({**REPLICAS, "generation_kwargs": {"seed": 1}}, ["same draws", "trainer.seed"]),
        ({**REPLICAS, "vllm_structured_outputs_regex": "a+"}, ["vllm_structured_outputs_regex"]),
    ],
)
def test_refusals_name_the_value_and_the_next_move(tmp_path, options, words):
    found = " ".join(problems(tmp_path, **options))
    for word in words:
        assert word in found, found


def test_a_sampler_that_truncates_is_only_refused_where_somebody_reads_entropies_or_weighs_tokens(tmp_path):
    assert problems(tmp_path, entropy_aware=False, top_p=0.9) == []


def test_neutral_values_are_no_truncation(tmp_path):
    args = EntropyGRPOConfig(str(tmp_path), use_cpu=True, top_p=1.0, top_k=0, min_p=0.0, bf16=False)
    assert reshaping(args) == {}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("entropy_source", "engine", "scoring, sampler"),
        ("top_h", 1.5, "in \\(0, 1\\]"),
        ("truncation_correction", "yes", "restore, weigh"),
        ("vllm_request_timeout", 0, "must be > 0"),
    ],
)
def test_values_no_run_could_mean_are_refused_where_they_are_given(tmp_path, option, value, words):
    with pytest.raises(ValueError, match=words):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{option: value})


def test_a_dialogue_is_more_than_one_engine_call(tmp_path):
    """The sampler's records are of one call each, so what reads them is refused before an engine is built."""

    def found(**options) -> list[str]:
        given = {"use_cpu": True, "report_to": "none", "bf16": False} | options
        return tool_problems(EntropyGRPOConfig(str(tmp_path), **given))

    assert found() == found(**COLOCATED) == found(**COLOCATED, **TOKEN, top_p=0.9, truncation_correction="weigh") == []
    (recorded,) = found(**COLOCATED, entropy_source="sampler")
    assert "entropy_source: scoring" in recorded
    (restored,) = found(**REPLICAS, top_p=0.9, truncation_correction="restore")
    assert "truncation_correction: weigh" in restored
    model, rows = "none", [{"prompt": "?"}]
    args = EntropyGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", **COLOCATED, entropy_source="sampler")
    with pytest.raises(ValueError, match="with tools or an environment a completion is written in several"):
        EntropyGRPOTrainer(model, [], args, train_dataset=rows, environment_factory=TwentyQuestions)


def test_a_recipe_with_an_environment_is_told_when_it_is_planned():
    recipe = load_recipe(
        RECIPES / "twenty-questions" / "turn.yaml",
        ["trainer.use_vllm=true", "trainer.vllm_mode=colocate", "trainer.entropy_source=sampler"],
    )
    assert any("entropy_source: sampler reads what the sampler recorded" in p for p in prepare(recipe).problems)
