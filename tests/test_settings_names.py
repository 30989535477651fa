"""entrl.settings.names: names to objects, and what a wrong name says."""

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrl.runs.specs import load_controller, load_reward
from entrl.settings.arguments import configure
from entrl.settings.names import find_file, load_object, suggest

FILE = """
from dataclasses import dataclass

def longer(completions, bonus=0.0, **kwargs):
    return [len(c) + bonus for c in completions]

def strict(*, completions, answer):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]

def limit(limit_chars: int):
    def cut(completions, **kwargs):
        return [float(len(c) <= limit_chars) for c in completions]
    return cut

@dataclass(frozen=True, kw_only=True)
class Scaled:
    scale: float = 1.0
    shift: float = 0.0
    def __call__(self, *, completions, **_):
        return [self.scale * len(c) + self.shift for c in completions]

ready = Scaled(shift=5.0)
number = 3
"""


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


def call(reward, texts=("ab", "abcd")):
    return reward(prompts=["p", "p"], completions=list(texts), completion_ids=[[1], [2]])


def test_bare_name_is_a_module_of_the_rewards_package():
    loaded = load_reward("accuracy", {})
    assert loaded.source == "entrl_rewards.accuracy:reward"
    assert loaded.file is not None
    assert loaded.file.endswith("accuracy.py")
    assert loaded.value.__name__ == "accuracy"


def test_a_name_of_a_package_that_imports_when_asked_is_suggested():
    """TRL's rewards hold nothing until they are asked for."""
    with pytest.raises(ValueError, match=r"has no 'accuracy_rewrd'\. Did you mean 'accuracy_reward'\?"):
        load_object("trl.rewards:accuracy_rewrd", package="entrl_rewards", attribute="reward")


def test_bare_name_that_is_none_lists_rewards_and_not_their_helpers():
    with pytest.raises(ValueError, match=r"no entrl_rewards.acuracy. Did you mean 'accuracy'\?") as caught:
        load_reward("acuracy", {})
    assert "correctness" not in str(caught.value)


def test_trl_reward_by_module_and_attribute():
    loaded = load_reward("trl.rewards:think_format_reward", {})
    assert loaded.value.__name__ == "think_format_reward"


def test_trl_factory_is_called_with_its_args():
    loaded = load_reward("trl.rewards:get_soft_overlong_punishment", {"max_completion_len": 10, "soft_punish_cache": 2})
    assert loaded.value(completion_ids=[[0] * 5, [0] * 10]) == [0.0, -1.0]


def test_file_beside_the_recipe(rewards_file: Path):
    loaded = load_reward("my_rewards.py:longer", {}, base=rewards_file.parent)
    assert loaded.file == str(rewards_file.resolve())
    assert call(loaded.value) == [2.0, 4.0]


def test_file_in_the_working_directory(rewards_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory):
    monkeypatch.chdir(rewards_file.parent)
    assert find_file("my_rewards.py", tmp_path_factory.mktemp("elsewhere")) == rewards_file.resolve()


def test_missing_file_names_the_places(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file 'gone\.py' in") as caught:
        load_reward("gone.py:x", {}, base=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_attribute_suggests_and_names_the_file(rewards_file: Path):
    with pytest.raises(ValueError, match=r"has no 'longr'. Did you mean 'longer'\?") as caught:
        load_reward("my_rewards.py:longr", {}, base=rewards_file.parent)
    assert str(rewards_file.resolve()) in str(caught.value)  # so that a shadowing file can be seen


def test_missing_module():
    with pytest.raises(ValueError, match=r"no module 'no_such_package\.x'"):
        load_object("no_such_package.x:y")


def test_import_error_inside_a_module_is_not_called_a_missing_module(tmp_path: Path):
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_object("broken.py:x", base=tmp_path)


@pytest.mark.parametrize("name", ["trl.rewards", "file.py", "a.b"])
def test_name_without_attribute(name: str):
    with pytest.raises(ValueError, match="names no attribute"):
        load_object(name, package="entrl_rewards")


@pytest.mark.parametrize("name", [":x", "x:"])
def test_half_a_name(name: str):
    with pytest.raises(ValueError, match="should read 'module:attribute'"):
        load_object(name)


def test_function_args_are_bound_and_the_name_is_kept(rewards_file: Path):
    reward = load_reward("my_rewards.py:longer", {"bonus": 0.5}, base=rewards_file.parent).value
    assert reward.__name__ == "longer"
    assert call(reward) == [2.5, 4.5]
    assert "completions" in inspect.signature(reward).parameters


@pytest.mark.parametrize("name", ["longer", "Scaled", "ready", "limit"])
def test_unknown_argument_is_refused_even_where_kwargs_would_swallow_it(rewards_file: Path, name: str):
    with pytest.raises(ValueError, match="takes no argument 'bonsu'"):
        load_reward(f"my_rewards.py:{name}", {"bonsu": 1}, base=rewards_file.parent)


def test_argument_that_trl_passes_itself_cannot_be_bound(rewards_file: Path):
    with pytest.raises(ValueError, match="takes no argument 'completions'"):
        load_reward("my_rewards.py:longer", {"completions": 1}, base=rewards_file.parent)


def test_class_instance_and_factory(rewards_file: Path):
    def reward(name, args):
        return load_reward(f"my_rewards.py:{name}", args, base=rewards_file.parent).value

    assert call(reward("Scaled", {"scale": 2.0})) == [4.0, 8.0]
    assert call(reward("ready", {"scale": 2.0})) == [9.0, 13.0]  # what the file set stays: 2 * 2 + 5
    assert call(reward("limit", {"limit_chars": 3})) == [1.0, 0.0]


def test_two_loads_share_no_state():
    first, second = load_reward("accuracy", {}), load_reward("accuracy", {})
    assert first.value is not second.value


def test_not_callable(rewards_file: Path):
    with pytest.raises(TypeError, match="is a int"):
        load_reward("my_rewards.py:number", {}, base=rewards_file.parent)


def test_attributes_of_a_function_survive_binding():
    def shaped(completions, *, power=1.0):
        return [power for _ in completions]

    shaped.needs = ("token_entropies",)  # pyright: ignore[reportFunctionMemberAccess]
    bound = configure(shaped, {"power": 2.0}, source="here:shaped")
    assert isinstance(bound, functools.partial)
    assert bound.needs == ("token_entropies",)  # pyright: ignore[reportAttributeAccessIssue]


def test_controller_by_bare_name():
    loaded = load_controller("kl_cov", {"fraction": 0.001})
    assert loaded.value.fraction == 0.001
    assert load_controller("kl_cov", {}).value.name == "kl_cov"


def test_controller_option_misspelt():
    with pytest.raises(ValueError, match=r"takes no argument 'fractoin'. Did you mean 'fraction'\?"):
        load_controller("kl_cov", {"fractoin": 0.001})


def test_controller_of_the_wrong_kind(tmp_path: Path):
    (tmp_path / "mine.py").write_text("class controller:\n    pass\n")
    with pytest.raises(TypeError, match=r"subclass entrl\.controllers\.hooks\.Controller"):
        load_controller("mine.py:controller", {}, base=tmp_path)


def test_suggest_is_silent_when_nothing_is_near():
    assert suggest("zzz", ["alpha"]) == ""


def test_dataclass_instance_needs_no_args():
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        x: int = 1

    assert configure(Plain(x=4), {}, source="here:plain") == Plain(x=4)


@pytest.mark.parametrize("mode", ["fixed", "code", "paper"])
def test_a_mode_brings_its_own_values_and_not_those_of_the_ready_instance(mode: str):
    from entrl_rewards.hierarchical_entropy import HierarchicalEntropy

    assert load_reward("hierarchical_entropy", {"mode": mode}).value == HierarchicalEntropy(mode=mode)
    assert load_reward("hierarchical_entropy", {}).value is not load_reward("hierarchical_entropy", {}).value


def test_what_a_ready_instance_was_given_stays(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from entrl_rewards.hierarchical_entropy import HierarchicalEntropy\nreward = HierarchicalEntropy(window=6)\n"
    )
    made = load_reward("mine.py:reward", {"alpha": 0.2}, base=tmp_path).value
    assert (made.window, made.alpha) == (6, 0.2)


def test_an_instance_that_cannot_be_made_from_nothing_is_copied(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(kw_only=True)\nclass Own:\n"
        "    size: int\n    scale: float = 1.0\n\n    def __call__(self, completions, **_):\n"
        "        return [self.scale * self.size] * len(completions)\n\n\nreward = Own(size=3)\n"
    )
    made = load_reward("own.py:reward", {"scale": 2.0}, base=tmp_path).value
    assert (made.size, made.scale) == (3, 2.0)


GROUPED = """
from dataclasses import dataclass, field

@dataclass(frozen=True, kw_only=True)
class Expert:
    depth: int = 1
    width: int = 1

@dataclass(frozen=True, kw_only=True)
class Reward:
    scale: float = 1.0
    expert: Expert = field(default_factory=Expert)
    def __call__(self, *, completions, **_):
        return [self.scale * self.expert.depth] * len(completions)

reward = Reward(expert=Expert(width=7))
"""


@pytest.mark.parametrize("name", ["reward", "Reward"])
def test_a_group_of_options_is_a_mapping(tmp_path: Path, name: str):
    (tmp_path / "deep.py").write_text(GROUPED)

    def load(args):
        return load_reward(f"deep.py:{name}", args, base=tmp_path).value

    made = load({"scale": 2.0, "expert": {"depth": 3}})
    assert (made.scale, made.expert.depth) == (2.0, 3)
    assert made.expert.width == (7 if name == "reward" else 1)  # what the file set stays
    with pytest.raises(ValueError, match=rf"{name}: expert takes no argument 'dept'\. Did you mean 'depth'\?"):
        load({"expert": {"dept": 3}})
    with pytest.raises(ValueError, match=r"'depth' is an expert option now: write expert: \{depth: \.\.\.\}"):
        load({"depth": 3})
    with pytest.raises(ValueError, match=r"takes no argument 'dept'\. Did you mean 'depth'\?"):
        load({"dept": 3})
