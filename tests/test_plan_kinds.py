"""Kinds of mistakes that plan looks for by one rule each: ranges, model folders, variables, time limits, rows."""

import contextlib
import dataclasses
import json
import time
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tiny_model import saved_model

from entrl.diagnosis.bounds import USUAL, unusual
from entrl.models.folder import folder_problems, folder_warnings, missing_weights
from entrl.runs.plan.contents import content_warnings, control_warnings, overlap_warnings
from entrl.runs.plan.environment import variable_problems
from entrl.runs.plan.limits import within
from entrl.runs.plan.ranges import FREE, RANGES, range_problems
from entrl.runs.plan.sampler_trial import sampler_problems
from entrl.settings.groups import field_hints
from entrl.trainers.config import EntropyGRPOConfig
from entrl_lab.nursery.tokenizer import character_tokenizer


def numeric(hint: Any) -> bool:
    options = typing.get_args(hint) or (hint,)
    return any(option in (int, float) for option in options)


def test_every_number_of_the_trainer_has_a_range():
    numbers = {name for name, hint in field_hints(EntropyGRPOConfig).items() if numeric(hint)}
    assert numbers - set(RANGES) - FREE == set()
    assert set(RANGES) | FREE <= numbers  # and none that is gone
    assert set(USUAL) <= numbers


def test_every_default_is_within_its_range():
    config = {f.name: f.default for f in dataclasses.fields(EntropyGRPOConfig) if f.default is not dataclasses.MISSING}
    assert range_problems(config) == []
    assert unusual(config) == []


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("epsilon", 0.2, -0.1),
        ("top_p", 1.0, 95.0),
        ("adam_beta2", 0.999, 1.0),
        ("save_steps", 0.5, 0.0),
        ("max_grad_norm", float("inf"), float("nan")),
        ("seed", 0, 2**40),
        ("num_generations", 2, 1),
    ],
)
def test_ranges(key: str, good: float, bad: float):
    assert range_problems({key: good}) == []
    (problem,) = range_problems({key: bad})
    assert problem.startswith(f"trainer.{key} must be ")


def test_numbers_that_may_not_be_null():
    assert "num_generations is null" in range_problems({"num_generations": None, "top_p": 1.0})[0]
    assert range_problems({"steps_per_generation": None}) == []


@pytest.mark.parametrize(("key", "value"), [("top_k", 1), ("top_p", 1e-6), ("min_p", 1.0)])
def test_samplers_that_choose_from_one_token(key: str, value: float):
    assert f"trainer.{key} of " in unusual({key: value})[0]


def test_a_percent_is_told_as_one():
    assert "a share is written 0.2, not 20" in range_problems({"top_entropy_quantile": 20.0})[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved_model(tmp_path_factory.mktemp("model")))


def spec(path: Path | str, **options: Any) -> Any:
    return SimpleNamespace(
        **({"path": str(path), "revision": None, "tokenizer": None, "trust_remote_code": False} | options)
    )


def copied(model: Path, folder: Path) -> Path:
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def changed(**values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def test_a_whole_folder_has_no_problem(model: Path):
    assert folder_problems(spec(model)) == []
    assert folder_problems(spec("tiny-reasoner")) == []
    assert folder_problems(spec("some/hub-id")) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (cut, "was not written to its end"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "is no safetensors file"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("{}"), "has no model_type"),
        (changed(model_type="t5"), "no causal language model"),
        (changed(model_type="nosuch"), "which transformers does not know"),
        (changed(vocab_size=10), "embeddings (vocab_size) end at 9"),
        (changed(intermediate_size=48), "the weights in"),
        (changed(hidden_size="32"), "is no configuration of qwen3"),
        (lambda f: (f / "generation_config.json").write_text("[]"), "generation_config.json holds no mapping"),
        (lambda f: (f / "tokenizer.json").write_text('{"version": "1"}'), "its tokenizer cannot be loaded"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
            "lacks model-2.safetensors",
        ),
    ],
)
def test_a_folder_that_lacks_something(spoil: Callable[[Path], Any], problem: str, model: Path, tmp_path: Path):
    spoil(copied(model, tmp_path))
    (found,) = folder_problems(spec(tmp_path))
    assert problem in found
    assert "model.path" in found or "tokenizer" in found


def test_weights_may_be_elsewhere(model: Path, tmp_path: Path):
    (copied(model, tmp_path) / "model.safetensors").unlink()
    assert folder_problems(spec(tmp_path)) == []
    assert "holds no weights" in str(missing_weights(spec(tmp_path)))
    assert missing_weights(spec(model)) is None


def test_other_paths(model: Path):
    assert "is a file" in folder_problems(spec(model / "config.json"))[0]
    assert "does not exist" in folder_problems(spec(model, tokenizer="./nowhere"))[0]
    assert "model.revision" in folder_warnings(spec(model, revision="v1"))[0]
    assert folder_warnings(spec("some/hub-id", revision="v1")) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("MASTER_PORT", "http"),
        ("ACCELERATE_MIXED_PRECISION", "bf61"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTR"),
    ],
)
def test_variables(name: str, value: str):
    (problem,) = variable_problems({name: value})
    assert name in problem


def test_variables_that_are_right():
    given = {"WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "no"}
    assert variable_problems(given) == []


def test_a_loop_is_ended():
    def for_ever() -> None:
        while True:
            with_nothing()

    def with_nothing() -> None:
        with contextlib.suppress(Exception):  # code that is tried may catch what it likes
            time.sleep(0.01)

    with pytest.raises(ValueError, match=r"it did not come back within 0.1 s"):
        within(0.1, for_ever, "it")
    assert within(0.1, lambda: 3, "it") == 3
    time.sleep(0.12)  # the alarm is off


def sampling(**options: Any) -> Any:
    return SimpleNamespace(**({"use_vllm": False, "generation_kwargs": None, "cache_implementation": None} | options))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"generation_kwargs": {"bad_words_ids": "foo"}}, "bad_words_ids"),
        ({"generation_kwargs": {"temperature": "0.7"}}, "temperature"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, None),
        ({"generation_kwargs": {"suppress_tokens": [90_000]}}, None),  # beyond the small vocabulary, not the model's
        ({"cache_implementation": "dynamic"}, None),
        ({}, None),
    ],
)
def test_the_samplers_settings_are_tried(options: dict[str, Any], problem: str | None):
    found = sampler_problems(sampling(**options))
    assert found == [] if problem is None else problem in found[0]


def table(prompts: list[Any], answers: list[Any]) -> Dataset:
    rows = {"prompt": prompts, "answer": answers, "problem_id": [f"r{i}" for i in range(len(prompts))]}
    return Dataset.from_dict(rows)


SUMS = table([f"{i}+10=" for i in range(8)], [str(i + 10) for i in range(8)])


def test_rows_that_are_right_are_left_alone():
    assert content_warnings(SUMS, "data", from_file=True) == []
    assert control_warnings(character_tokenizer(), SUMS, "data", ("<think>", "</think>")) == []
    other = table(["90+1="], ["91"])
    assert overlap_warnings(SUMS, other, "test") == []


def test_what_rows_hold():
    one = table([f"{i}+10=" for i in range(8)], ["4"] * 8)
    assert "all 8 gold answers are '4'" in content_warnings(one, "data", from_file=True)[0]
    shown = table([f"Is it {i + 20}? {i}+20=" for i in range(8)], [str(i + 20) for i in range(8)])
    assert "gold answer stands in the prompt of 8 of 8" in content_warnings(shown, "data", from_file=True)[0]
    assert content_warnings(shown, "data", from_file=False) == []
    half = table(["1+10=", "2+10= ", "99+1="], ["11", "12", "100"])
    assert "2 of the 3 problems of half are trained on as well" in overlap_warnings(SUMS, half, "half")[0]


def test_control_tokens_and_tags_in_rows():
    rows = table(["1+1=<|endoftext|>", "<think>2", "3="], ["2<|pad|>", "2", "3"])
    found = control_warnings(character_tokenizer(), rows, "data", ("<think>", "</think>"))
    assert [text.split(" hold ")[0] for text in found] == ["data: 1 of 3 prompts"] * 2 + ["data: 1 of 3 gold answers"]
