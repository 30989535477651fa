"""What samplers may be asked: every key of both is known, and what reshapes the distribution is refused by name."""

from typing import Any

import pytest
import torch
from tiny_model import digits, options, parameters, prompts, same, tiny_model, trainer
from transformers import GenerationConfig

from entrl.controllers.clip_cov import ClipCov
from entrl.engines.completions import NEUTRAL_SAMPLING, OTHER_SAMPLING
from entrl.runs.plan.checks import prepare
from entrl.runs.recipe import make_recipe
from entrl.trainers.refusals.checks import check_schedule
from entrl.trainers.refusals.sampler_keys import TO_REPLICAS, TRANSFORMERS, VLLM
from entrl.trainers.refusals.sampling import SET_BY_TRL, model_sampling_problems
from entrl_lab.nursery.tokenizer import character_tokenizer

WORLDS = (1, 2)
COLOCATED = {"use_vllm": True, "vllm_mode": "colocate"}
REPLICAS = {"use_vllm": True, "vllm_mode": "server", "vllm_replicas": ["http://127.0.0.1:8000"]}
# A value of each key that reshapes the distribution, as a user could write it.
RESHAPING: dict[str, Any] = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "top_h": 0.4,
    "typical_p": 0.9,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "encoder_repetition_penalty": 2.0,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[3]],
    "suppress_tokens": [3],
    "begin_suppress_tokens": [3],
    "sequence_bias": [[[3], 2.0]],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": [4, 1.1],
    "min_length": 4,
    "min_new_tokens": 4,
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.5},
    "do_sample": False,
    "num_beams": 2,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "constraints": [1],
    "force_words_ids": [[3]],
    "assistant_ensemble_weight": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "min_tokens": 4,
    "logit_bias": {"3": 2.0},
    "bad_words": ["no"],
    "allowed_token_ids": [3, 4],
    "structured_outputs": {"regex": "a+"},
    "thinking_token_budget": 5,
    "trace_decode_token_ids": [3],
    "extra_args": {"mine": 1},
}


def aware(completions, token_entropies, **_):
    return [0.0] * len(completions)


def found(tmp_path, *, controllers=(), rewards=(digits,), world=1, **given) -> list[str]:
    return check_schedule(options(tmp_path, **given), list(controllers), list(rewards), world)


def test_every_setting_of_transformers_has_a_class():
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert names - {"transformers_version"} == TRANSFORMERS.known


@pytest.mark.vllm
def test_every_setting_of_vllm_has_a_class():
    from vllm import SamplingParams

    assert {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} == VLLM.known


def test_no_setting_has_two_classes():
    for keys in (TRANSFORMERS, VLLM):
        groups = [set(keys.reshapes), set(keys.lengths), set(keys.ours), set(keys.harmless)]
        assert sum(map(len, groups)) == len(keys.known)
    assert set(RESHAPING) == {*TRANSFORMERS.reshapes, *VLLM.reshapes}
    assert {*NEUTRAL_SAMPLING, *OTHER_SAMPLING, "seed"} == TO_REPLICAS <= VLLM.known


@pytest.mark.parametrize("name", sorted(RESHAPING))
def test_what_reshapes_the_distribution_is_refused_where_somebody_reads_it_and_only_there(tmp_path, name):
    engines = [{}] * (name in TRANSFORMERS.reshapes) + [COLOCATED] * (name in VLLM.reshapes)
    for engine in engines:
        given = {**engine, "generation_kwargs": {name: RESHAPING[name]}}
        for who in ({"rewards": [aware]}, {"controllers": [ClipCov()]}):
            said = [p for p in found(tmp_path, **who, **given) if f"{name}=" in p]
            assert len(said) == 1, said
            assert "log-probs and entropies are those of the full one" in said[0]
            assert (
                "trainer.temperature" in said[0]
                if name == "temperature"
                else f"leave {name}" in said[0] or (engine and "truncation_correction" in said[0])
            )
            assert found(tmp_path, **who, allow_truncated_sampling=True, **given) == found(
                tmp_path, **who, allow_truncated_sampling=True, **engine
            )
        assert found(tmp_path, **given) == found(tmp_path, **engine)


@pytest.mark.parametrize("engine", [{}, COLOCATED])
def test_neutral_values_are_let_through(tmp_path, engine):
    keys = (VLLM if engine else TRANSFORMERS).reshapes
    neutral = {name: values[0] for name, values in keys.items() if values} | {"temperature": 0.7}
    plain = found(tmp_path, rewards=[aware], temperature=0.7, **engine)
    assert found(tmp_path, rewards=[aware], temperature=0.7, generation_kwargs=neutral, **engine) == plain


@pytest.mark.parametrize(
    ("engine", "given", "words"),
    [
        ({}, {"typcal_p": 0.9}, ["typcal_p=0.9", "Did you mean 'typical_p'?"]),
        ({}, {"presence_penalty": 0.9}, ["presence_penalty=0.9", "transformers has no such setting"]),
        (COLOCATED, {"typical_p": 0.9}, ["typical_p=0.9", "vLLM has no such setting"]),
        (COLOCATED, {"max_new_tokens": 4}, ["vLLM has no such setting"]),
        ({}, {"max_new_tokens": 20}, ["max_new_tokens=20", "trainer.max_completion_length=12"]),
        ({}, {"max_new_tokens": 4}, ["max_new_tokens=4", "trainer.max_completion_length=12"]),
        ({}, {"max_length": 12}, ["max_length=12", "counts the prompt"]),
        ({}, {"min_new_tokens": 20}, ["min_new_tokens=20", "trainer.max_completion_length=12"]),
        (COLOCATED, {"max_tokens": 20}, ["max_tokens=20", "trainer.max_completion_length=12"]),
        (COLOCATED, {"min_tokens": 20}, ["min_tokens=20", "trainer.max_completion_length=12"]),
        (REPLICAS, {"max_tokens": 20}, ["max_tokens=20", "trainer.max_completion_length=12"]),
        ({}, {"num_return_sequences": 2}, ["num_return_sequences=2", "trainer.num_generations"]),
        ({}, {"stop_strings": ["."]}, ["needs the tokenizer"]),
        ({}, {"return_dict_in_generate": True}, ["plain token ids"]),
        ({}, {"prompt_lookup_num_tokens": 2}, ["one row at a time"]),
        (COLOCATED, {"n": 2}, ["n=2", "trainer.num_generations"]),
        (COLOCATED, {"seed": 1}, ["seed=1", "same draws", "trainer.seed"]),
        (REPLICAS, {"structured_outputs": {"regex": "a"}}, ["does not reach vllm_replicas", "logit_bias"]),
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_refused_on_any_number_of_processes(tmp_path, engine, given, words):
    base = {"max_completion_length": 12, **engine}
    answers = [found(tmp_path, world=world, generation_kwargs=given, **base) for world in WORLDS]
    said = [p for p in answers[0] if p.startswith("generation_kwargs: ")]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said
    assert said == [p for p in answers[1] if p.startswith("generation_kwargs: ")]


def test_the_length_said_twice_alike_is_let_through(tmp_path):
    assert found(tmp_path, max_completion_length=12, generation_kwargs={"max_new_tokens": 12}) == []


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_nobody_can_sample_at_is_refused(tmp_path, temperature):
    assert "temperature must be > 0 and finite" in found(tmp_path, temperature=temperature)[0]


def test_structured_output_reshapes_too(tmp_path):
    (said,) = [
        p
        for p in found(tmp_path, rewards=[aware], vllm_structured_outputs_regex="a+", **COLOCATED)
        if "vllm_structured_outputs_regex=a+" in p
    ]
    assert "leave vllm_structured_outputs_regex out" in said


# A model's own generation_config.json

OWN = {name: value for name, value in RESHAPING.items() if name in TRANSFORMERS.reshapes}


def rollout(tmp_path, **own) -> list[str]:
    seen: list[str] = []
    model = tiny_model()
    for name, value in own.items():
        setattr(model.generation_config, name, value)

    def watch(completions, **_):
        seen.extend(completions)
        return digits(completions)

    trainer(tmp_path, watch, model=model, max_steps=1).train()
    return seen


def test_what_trl_sets_is_not_read_from_the_model_and_what_it_leaves_out_is(tmp_path):
    """By runs of plain GRPO: the models people use ship temperature, top_k, top_p, repetition_penalty, some min_p."""
    plain = rollout(tmp_path)
    shipped = {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 3.0, "do_sample": False}
    assert set(shipped) == set(SET_BY_TRL)
    assert rollout(tmp_path, **shipped) == plain
    for name, value in {
        "min_p": 0.9,
        "typical_p": 0.2,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [*range(15)],
    }.items():
        assert rollout(tmp_path, **{name: value}) != plain


@pytest.mark.parametrize(
    "name", sorted(set(OWN) - {"temperature", "top_k", "top_p", "repetition_penalty", "do_sample"})
)
def test_a_models_own_settings_that_reshape_are_refused_where_somebody_reads_the_distribution(tmp_path, name):
    own = GenerationConfig()
    setattr(own, name, OWN[name])
    args = options(tmp_path)
    (said,) = model_sampling_problems(args, own, entropy_aware=True)
    assert f"generation_config.json has {name}={OWN[name]!r}" in said
    assert model_sampling_problems(args, own, entropy_aware=False) == []
    assert model_sampling_problems(options(tmp_path, **COLOCATED), own, entropy_aware=True) == []
    neutral = TRANSFORMERS.reshapes[name]
    if name == "min_p":
        assert "set trainer.min_p: 0.0" in said
        assert model_sampling_problems(options(tmp_path, min_p=0.0), own, entropy_aware=True) == []
    elif neutral:  # what the message says to do
        cured = options(tmp_path, generation_kwargs={name: neutral[0]})
        assert model_sampling_problems(cured, own, entropy_aware=True) == []
        assert check_schedule(cured, [], [aware], 1) == []


def test_what_a_model_ships_for_trl_to_set_is_no_problem(tmp_path):
    own = GenerationConfig(temperature=0.6, top_k=20, top_p=0.95, do_sample=True, repetition_penalty=1.05)
    assert model_sampling_problems(options(tmp_path), own, entropy_aware=True) == []


def test_the_advice_undoes_what_the_model_ships(tmp_path):
    """What is said to do makes the rollout that of a model without such a file."""
    model = tiny_model()
    model.generation_config.min_p = 0.9
    model.generation_config.no_repeat_ngram_size = 1
    cure = {"min_p": 0.0, "generation_kwargs": {"no_repeat_ngram_size": 0}}
    cured, plain = trainer(tmp_path, aware, model=model, max_steps=1, **cure), trainer(tmp_path, aware, max_steps=1)
    for run in (cured, plain):
        run.train()
    assert same(parameters(cured), parameters(plain))


def test_trainer_and_plan_refuse_it_at_start(tmp_path):
    model = tiny_model()
    model.generation_config.min_p, model.generation_config.do_sample = 0.1, True
    with pytest.raises(ValueError, match=r"generation_config.json has min_p=0.1.*trainer.min_p: 0.0"):
        trainer(tmp_path, aware, model=model)
    trainer(tmp_path, digits, model=model)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    groups: dict[str, Any] = {
        "model": {"path": str(folder)},
        "data": {"task": "sums", "train_size": 8},
        "rewards": [{"use": "pear"}],
        "trainer": {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "output_dir": str(tmp_path),
        },
    }
    said = prepare(make_recipe(groups, name="r", base=tmp_path)).problems
    assert any("generation_config.json has min_p=0.1" in p for p in said), said


def test_entropies_are_those_of_the_sampler_where_nothing_is_refused(tmp_path):
    """B8's number: what rewards are given is what the tokens were drawn from; mean surprisal and entropy agree."""
    surprisal, entropy = [], []

    def watch(completions, token_entropies, token_logprobs, **_):
        surprisal.extend(-torch.cat(token_logprobs))
        entropy.extend(torch.cat(token_entropies))
        return [0.0] * len(completions)

    trainer(
        tmp_path,
        watch,
        max_steps=1,
        per_device_train_batch_size=64,
        max_completion_length=24,
        train_dataset=prompts(16),
    ).train()
    gap = torch.stack(surprisal).double() - torch.stack(entropy).double()
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
