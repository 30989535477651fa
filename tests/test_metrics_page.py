"""docs/metrics.md against the code: what runs log is on the page, and what is on the page exists."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from short_run import ROOT, quietly, short_recipe
from tiny_model import saved_model

from entrl.report.words import words
from entrl.runs.recipe import load_recipe

ROW = re.compile(r"^\| (`[^|]+) \|", re.M)
NAMES = [
    name for cell in ROW.findall((ROOT / "docs" / "metrics.md").read_text()) for name in re.findall(r"`([^`]+)`", cell)
]
# Whose names reach the log beside ours.
LIBRARIES = ("trl/trainer/grpo_trainer.py", "transformers/trainer.py", "transformers/trainer_utils.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def unlisted(out: Path) -> list[str]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    return sorted(name for name in logged if not any(fnmatchcase(name, listed) for listed in NAMES))


def test_a_run_with_everything_on_logs_what_is_on_the_page(model: str, tmp_path: Path):
    """Rewards, a guarded controller, probe, logged window, filter, reference, law, an evaluation while training."""
    inner = "{use: kl_cov, args: {fraction: 0.2, allow_large_fraction: true}}"
    guarded = f"controllers=[{{use: guard, args: {{controller: {inner}, knob: coef}}}}]"
    parts = ("rewards=[pear, accuracy, think_format, laser]", guarded)
    options = (
        "steps_per_generation=2",
        "probe_every=1",
        "log_windows=[1]",
        "max_steps=8",
        "beta=0.01",
        "filter_on=reward",
    )
    more = [f"trainer.{option}" for option in (*options, "filter_max_tries=1", "save_strategy=no")]
    evaluated = "eval={task: sums, size: 4, samples: 2, before: false, at: [2]}"
    quietly(short_recipe(model, tmp_path / "run", *parts, evaluated, *more))
    assert unlisted(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("controller", ["clip_cov", "cw_grpo", "steer", "ce_gppo", "w_reinforce"])
def test_each_controller_logs_what_is_on_the_page(controller: str, model: str, tmp_path: Path):
    more = ("trainer.steps_per_generation=2", "trainer.max_steps=2", "trainer.save_strategy=no")
    quietly(short_recipe(model, tmp_path / "run", f"controllers=[{controller}]", *more))
    assert unlisted(tmp_path / "run") == []


@pytest.mark.slow
def test_difficulty_and_branching_log_what_is_on_the_page(model: str, tmp_path: Path):
    parts = ("rewards=[hierarchical_entropy]", "controllers=[{use: dynamic_kl, args: {window_factor: 0.5}}]")
    options = ("steps_per_generation=2", "beta=0.01", "branch_roots=2", "max_steps=2", "save_strategy=no")
    quietly(short_recipe(model, tmp_path / "run", *parts, *(f"trainer.{option}" for option in options)))
    assert unlisted(tmp_path / "run") == []


@pytest.mark.slow
def test_dialogues_log_what_is_on_the_page(tmp_path: Path):
    options = (
        "max_steps=1",
        "per_device_train_batch_size=8",
        "max_completion_length=60",
        f"output_dir={tmp_path / 'run'}",
    )
    words = ["eval=null", "data.train_size=64", *(f"trainer.{option}" for option in options)]
    quietly(load_recipe(ROOT / "recipes" / "twenty-questions" / "turn.yaml", words))
    assert unlisted(tmp_path / "run") == []


def rows_with_units() -> list[tuple[str, list[str]]]:
    """Each name on the page with its unit, or with those of its row where they are not one for each name."""
    found = []
    for cell, units in re.findall(r"^\| (`[^|]+) \| ([^|]*) \|", (ROOT / "docs" / "metrics.md").read_text(), re.M):
        names, each = re.findall(r"`([^`]+)`", cell), units.strip().split(", ")
        found += [(name, [each[i]] if len(each) == len(names) else each) for i, name in enumerate(names)]
    return found


def test_each_name_on_the_page_has_words_and_the_same_unit_in_the_report():
    rows = [(name, units) for name, units in rows_with_units() if name != "kind"]
    assert len(rows) > 150
    assert [name for name, _ in rows if words(name).title == name] == []
    assert [(name, words(name).unit, units) for name, units in rows if words(name).unit not in units] == []


def test_words_of_a_family_name_its_member_and_a_user_s_own_metric_keeps_its_name():
    assert words("kl_cov/cov_top_0.2%") == ("Covariance, top 0.2% (kl cov)", "nats")
    assert words("rewards/think_format/mean") == ("Reward think format", "reward")
    assert words("mine/own") == ("mine/own", "")


def test_each_name_on_the_page_exists_in_the_code():
    """Its last part, as a word of a source file of ours, or of the library that writes it."""
    import transformers
    import trl

    site = {"trl": Path(trl.__file__).parent.parent, "transformers": Path(transformers.__file__).parent.parent}
    files = [*(ROOT / "src" / "entrl").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")]
    files += [site[name.partition("/")[0]] / name for name in LIBRARIES]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    words = {word.rstrip("_") for word in re.findall(r"[A-Za-z_][A-Za-z_0-9]*", code)}
    assert len(NAMES) > 150
    assert [name for name in NAMES if not parts_of(name) <= words] == []


def parts_of(name: str) -> set[str]:
    """`ares/*/prompts` -> ares, prompts; what a `*` or a number stands for is left to the runs above."""
    found = (re.match(r"[A-Za-z_]*", part) for part in name.split("/"))
    return {word[0].strip("_") for word in found if word and word[0].strip("_")}
