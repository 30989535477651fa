"""entrl.settings: values are checked against annotations, wherever a file hands arguments on (case R13)."""

import pickle
from collections.abc import Callable, Generator, Iterable, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import pytest

from entrl.environments import load_environment
from entrl.runs.recipe import make_recipe
from entrl.runs.specs import load_controller, load_reward
from entrl.settings.arguments import configure
from entrl.settings.groups import build, typed
from entrl.tasks import load_task

OWN = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Something


@dataclass(frozen=True, kw_only=True)
class Expert:
    floor: float = 0.0
    steps: tuple[int, ...] = (1,)


@dataclass(frozen=True, kw_only=True)
class Scaled:
    scale: float = 1.0
    expert: Expert = field(default_factory=Expert)
    def __call__(self, *, completions, **_):
        return [self.scale] * len(completions)


def plain(completions, bonus=0.0, **kwargs):
    return [bonus] * len(completions)

def annotated(completions, *, bonus: float = 0.0, **kwargs):
    return [bonus] * len(completions)

def unknown(completions, *, bonus: Something = 0.0, **kwargs):
    return [bonus] * len(completions)

def limit(most: int):
    return lambda completions, **kwargs: [float(len(c) <= most) for c in completions]


class World:
    def __init__(self, *, noise: float = 0.0) -> None:
        self.noise = noise
    def reset(self, **row) -> str:
        return ""


ready = Scaled(expert=Expert(floor=0.5))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def recipe(**groups: Any) -> Any:
    content = {"model": {"path": "tiny-reasoner"}, "data": {"task": "sums", "train_size": 2}, "rewards": ["accuracy"]}
    return make_recipe(content | groups, name="typed", base=Path())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: load_reward("pear", {"alpha": "1"}),
            r"^entrl_rewards.pear:reward: alpha must be float, got '1'; write alpha: 1, without quotes$",
        ),
        (
            lambda: load_controller("clip_cov", {"fraction": "0.02"}),
            r"^entrl.controllers.clip_cov:controller: fraction must be float, got '0.02'; write fraction: 0.02",
        ),
        (
            lambda: load_controller("guard", {"controller": {"use": "kl_cov", "args": {"coef": "1"}}, "knob": "coef"}),
            r"^entrl.controllers.kl_cov:controller: coef must be float, got '1'",
        ),
        (lambda: load_controller("guard", {"band": [0.9]}), r"band must be a list of float, float, got \[0.9\]"),
        (lambda: load_controller("guard", {"band": [0.9, "1"]}), r"band.1 must be float, got '1'; write 1: 1"),
        (lambda: recipe(lora={"r": "8"}), r"^lora.r must be int, got '8'; write r: 8, without quotes$"),
        (lambda: recipe(lora={"bias": "some"}), r"lora.bias must be one of none, all, lora_only, got 'some'"),
        (lambda: recipe(lora={"layers_to_transform": [1, "2"]}), r"layers_to_transform.1 must be int, got '2'"),
        (lambda: recipe(lora={"eva_config": {"rho": "2"}}), r"lora.eva_config.rho must be float, got '2'"),
        (lambda: recipe(eval={"task": "sums", "k": ["1"]}), r"^eval.k.0 must be int, got '1'"),
        (lambda: recipe(trainer={"log_windows": [1, "x"]}), r"^trainer.log_windows.1 must be int, got 'x'$"),
        (lambda: recipe(trainer={"learning_rate": "1e-5"}), "learning_rate must be float, got '1e-5'; write learning"),
        (lambda: recipe(rewards=[{"use": "pear", "args": 3}]), r"rewards.0.args must be dict, got 3"),
        (lambda: recipe(launch="gloo"), r"launch must be a mapping, got 'gloo'"),
        (lambda: recipe(controllers="kl_cov"), r"controllers must be a list like \[{use: name}\], got 'kl_cov'"),
        (lambda: load_task({"task": "sums", "max_terms": "3"}, size=2), r"task 'sums': max_terms must be int or null"),
        (lambda: load_task({"task": "sums", "terms": [2, "3"]}, size=2), r"task 'sums': terms.1 must be int, got '3'"),
        (
            lambda: load_task({"task": "reasoning_gym:chain_sum", "min_terms": "2"}, size=2),
            r"reasoning-gym 'chain_sum': min_terms must be int, got '2'",
        ),
        (
            lambda: load_environment("twenty_questions", {"assumed_noise": "0.1"}),
            r"environment 'twenty_questions': assumed_noise must be float or null, got '0.1'; write assumed_noise: 0.1",
        ),
        (
            lambda: load_environment("twenty_questions_scored", {"gain_weight": "1"}),
            r"environment 'twenty_questions_scored': gain_weight must be float",
        ),
        (
            lambda: load_environment("diagram", {"belief": "all"}),
            "environment 'diagram': belief must be one of factored, exact, got 'all'",
        ),
    ],
)
def test_an_argument_of_another_type_is_one_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("Scaled", {"scale": "2"}, r"own.py:Scaled: scale must be float, got '2'; write scale: 2, without quotes"),
        ("ready", {"scale": True}, r"own.py:ready: scale must be float, got True"),
        ("annotated", {"bonus": "a lot"}, r"own.py:annotated: bonus must be float, got 'a lot'$"),
        ("limit", {"most": 2.5}, r"own.py:limit: most must be int, got 2.5"),
        ("Scaled", {"expert": {"floor": "0"}}, r"own.py:Scaled: expert: floor must be float, got '0'"),
        ("ready", {"expert": {"floor": "0"}}, r"own.py:ready: expert: floor must be float, got '0'"),
        ("Scaled", {"expert": {"flor": 0.0}}, r"Scaled: expert takes no argument 'flor'. Did you mean 'floor'\?"),
        ("ready", {"expert": {"flor": 0.0}}, r"ready: expert takes no argument 'flor'. Did you mean 'floor'\?"),
        ("Scaled", {"expert": 3}, r"own.py:Scaled: expert must be a mapping, got 3"),
    ],
)
def test_a_reward_of_ones_own_is_typed_where_it_is_annotated(own, name, args, message):
    with pytest.raises(ValueError, match=message):
        load_reward(f"own.py:{name}", args, base=own)


Count = NewType("Count", int)


def markers(completions: Any, *, words: Iterable[str] = (), **_: Any) -> list[float]:
    return [float(sum(word in completion for word in words)) for completion in completions]


@dataclass(frozen=True, kw_only=True)
class Markers:
    words: Iterable[str] | None = None
    weights: Iterable | None = None
    more: Generator[str, None, None] | None = None

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        return markers(completions, words=[*(self.words or ()), *(self.weights or ()), *(self.more or ())])


def counted(completions: Any, *, most: Annotated[int, "tokens"] = 1, few: Count = Count(1), **_: Any) -> list[float]:
    return [float(most + few)] * len(completions)


@pytest.mark.parametrize(
    ("target", "option"), [(markers, "words"), (Markers, "words"), (Markers, "weights"), (Markers, "more")]
)
def test_what_is_iterated_over_can_be_read_again(target: Any, option: str):
    """pydantic makes an iterator of such a list, and the second batch would have found it empty."""
    reward = configure(target, {option: ["so", "wait"]}, source="own")
    for one in (reward, pickle.loads(pickle.dumps(reward))):
        assert [one(completions=["so wait", "no"]) for _ in range(2)] == [[2.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Iterable[str], [1], r"^own.0 must be str, got 1$"),
        (Iterable[str] | None, "so", r"^own must be a list of str or null, got 'so'$"),
        (Iterable, 3, r"^own must be a list, got 3$"),
        (MutableSequence[int], ["8"], r"^own.0 must be int, got '8'"),
        (dict[str, Count], {"a": True}, r"^own.a must be int, got True$"),
        (Count, "8", r"^own must be int, got '8'; write own: 8, without quotes$"),
    ],
)
def test_what_other_annotations_hold_is_strict_too(hint: Any, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        typed(value, hint, "own")


@pytest.mark.parametrize("option", ["most", "few"])
def test_annotated_and_new_types_convert_nothing(option: str):
    with pytest.raises(ValueError, match=f"own: {option} must be int, got '8'; write {option}: 8, without quotes"):
        configure(counted, {option: "8"}, source="own")
    bound: Callable[..., Any] = configure(counted, {option: 8}, source="own")
    assert bound(completions=["a"]) == [9.0]


def test_without_annotations_arguments_pass_as_they_are(own):
    for name in ("plain", "unknown"):
        reward: Any = load_reward(f"own.py:{name}", {"bonus": "2"}, base=own).value
        assert reward(completions=["a"]) == ["2"]
    with pytest.raises(ValueError, match=r"environment 'own.py:World': noise must be float, got '1'"):
        load_environment("own.py:World", {"noise": "1"}, base=own)


def test_expert_options_are_built_and_what_the_ready_instance_was_given_stays(own):
    fresh: Any = load_reward("own.py:Scaled", {"expert": {"steps": [2, 3]}}, base=own).value
    assert (fresh.expert.floor, fresh.expert.steps) == (0.0, (2, 3))
    made: Any = load_reward("own.py:ready", {"scale": 2, "expert": {"steps": [4]}}, base=own).value
    assert (made.scale, made.expert.floor, made.expert.steps) == (2.0, 0.5, (4,))
    assert type(made.scale) is float


@dataclass(frozen=True, kw_only=True)
class Inner:
    use: str
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner | None = None
    several: list[Inner] = field(default_factory=list)
    mode: Literal["a", "b"] = "a"
    weights: dict[str, float] = field(default_factory=dict)


def test_groups_inside_groups():
    made = build(Outer, {"inner": "x", "several": ["y", {"use": "z", "share": 1}]}, "outer")
    assert made == Outer(inner=Inner(use="x"), several=[Inner(use="y"), Inner(use="z", share=1.0)])
    assert build(Outer, {"several": None, "inner": None}, "outer") == Outer()
    for group, message in (
        ({"several": [{"us": "x"}]}, r"unknown key 'us' in outer.several.0. Did you mean 'use'\?"),
        ({"inner": {"share": 1}}, "outer.inner needs a 'use'"),
        ({"mode": "c"}, "outer.mode must be one of a, b, got 'c'"),
        ({"weights": {"a": 1, "b": "2"}}, "outer.weights.b must be float, got '2'; write b: 2, without quotes"),
        ({"weights": None, "mode": None}, "outer.mode must be one of a, b, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            build(Outer, group, "outer")


def test_what_a_file_says_is_kept_as_it_is_written_and_arguments_are_what_is_asked_for():
    assert build(Outer, {"weights": {"a": 1}}, "outer").weights == {"a": 1}
    assert type(build(Outer, {"weights": {"a": 1}}, "outer").weights["a"]) is int  # or old run folders would not resume
    assert typed([1, 2], tuple[float, ...], "x", as_written=False) == (1.0, 2.0)
    made: Any = configure(Outer, {"weights": {"a": 1}}, source="here")
    assert type(made.weights["a"]) is float
