"""What the options of all rewards have in common: few first, the rest in `expert`, all of them in the README."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from entrl_rewards.options import check_choices

from entrl.runs.specs import load_reward

REWARDS = Path(__file__).parents[1] / "rewards"
README = (REWARDS / "README.md").read_text()
FILES = sorted((REWARDS / "entrl_rewards").glob("*.py"))
NAMES = [path.stem for path in FILES if re.search(r"^reward = ", path.read_text(), re.M)]
GROUPED = ("pear", "hierarchical_entropy", "information_gain")


def options_of(target):
    return [f.name for f in dataclasses.fields(target) if f.init]


@pytest.mark.parametrize("name", NAMES)
def test_at_most_ten_options_meet_the_eye(name):
    ready = importlib.import_module(f"entrl_rewards.{name}").reward
    assert len(options_of(ready)) <= 10
    assert ready.__dataclass_params__.frozen


@pytest.mark.parametrize("name", GROUPED)
def test_expert_options_are_in_the_readme_and_say_where_they_went(name):
    ready = importlib.import_module(f"entrl_rewards.{name}").reward
    for option in (*options_of(ready), *options_of(ready.expert)):
        assert f"`{option}`" in README, option
    for option in options_of(ready.expert):
        with pytest.raises(ValueError, match=rf"{name}:reward: '{option}' is an expert option now: write expert: "):
            load_reward(name, {option: 1})
    with pytest.raises(ValueError, match=rf"{name}:reward: expert takes no argument 'shufle_seed'\. Did you mean"):
        load_reward(name, {"expert": {"shufle_seed": 1}})
    assert load_reward(name, {"expert": {"shuffle_seed": 4}}).value.expert.shuffle_seed == 4


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_frozen_means_frozen(path):
    assert "object.__setattr__" not in path.read_text()


def test_a_choice_may_be_null_where_its_annotation_says_so():
    information_gain = importlib.import_module("entrl_rewards.information_gain_options")
    check_choices(information_gain.InformationGainExpert(reduce=None))
    with pytest.raises(ValueError, match="credit must be one of expected, realised"):
        information_gain.Terms(credit=None)
