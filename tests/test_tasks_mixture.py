"""Mixtures of tasks: shares to within a row, the same for every order and process, errors by name."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import digits, prompts, trainer

from entrl.runs.contents import contents
from entrl.runs.recipe import Recipe, make_recipe
from entrl.settings.groups import flat
from entrl.tasks.mixture import Source, mixed, row_counts, source_names

MODEL = {"path": "tiny-reasoner"}
WEIGHTS = st.lists(st.floats(0.01, 100).map(lambda w: round(w, 2)), min_size=2, max_size=5)


def rows(name: str, count: int, **columns) -> Dataset:
    ids = [f"{name}-{i}" for i in range(count)]
    return Dataset.from_dict({"prompt": ids, "answer": ids, "problem_id": ids} | columns)


def source(name: str, weight: float, count: int, **columns) -> Source:
    table = rows(name, count, **columns)
    return Source(name=name, weight=weight, load=lambda size: table if size is None else table.select(range(size)))


@given(weights=WEIGHTS, total=st.integers(1, 5000))
@settings(max_examples=40, deadline=None)
def test_every_task_has_its_share_to_within_a_row(weights, total):
    names = [f"t{i}" for i in range(len(weights))]
    counts = row_counts(total, weights, names)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6
    turned = row_counts(total, weights[::-1], names[::-1])
    assert turned == counts[::-1]


@given(order=st.permutations(range(3)), seed=st.integers(0, 3), size=st.sampled_from([None, 24, 37]))
@settings(max_examples=6, deadline=None)
def test_the_order_of_the_tasks_changes_nothing_and_the_seed_decides(order, seed, size):
    sources = [source("a", 3, 40), source("b", 2, 25), source("c", 0.5, 30)]
    plain = mixed(sources, size=size, seed=seed)["problem_id"]
    assert mixed([sources[i] for i in order], size=size, seed=seed)["problem_id"] == plain
    assert len(set(plain)) == len(plain)
    assert mixed(sources, size=size, seed=seed + 1)["problem_id"] != plain


def test_without_a_size_the_first_task_that_is_used_up_decides():
    """Weights 3 to 1 and 30 and 20 rows: 40 rows take 30 of the first and 10 of the second."""
    found = mixed([source("a", 3, 30), source("b", 1, 20)], size=None, seed=0)
    assert (found["task"].count("a"), found["task"].count("b")) == (30, 10)
    for end in range(1, 41):  # and every stretch holds them in proportion
        assert abs(found["task"][:end].count("a") - 0.75 * end) <= 1


def test_columns_one_task_lacks_are_none_in_its_rows_and_ids_stay_unique():
    left = source("a", 1, 3, target_length=[5, 6, 7])
    right = source("b", 1, 3)
    found = mixed([left, right], size=None, seed=0)
    assert {(row["task"], row["target_length"] is None) for row in found} == {("a", False), ("b", True)}
    assert sorted(found["problem_id"]) == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    twin = Source(name="b", weight=1, load=lambda size: rows("a", 3))
    shared = mixed([left, twin], size=None, seed=0)["problem_id"]
    assert sorted(shared) == ["a/a-0", "a/a-1", "a/a-2", "b/a-0", "b/a-1", "b/a-2"]


@pytest.mark.parametrize(
    ("sources", "size", "words"),
    [
        ([source("a", 3, 30), source("b", 1, 20)], 60, ["60 rows take 45 of 'a', which has 30", "to 40 at most"]),
        ([source("a", 0, 30), source("b", 1, 20)], 10, ["above 0, got 0"]),
        ([source("a", -1, 30), source("b", 1, 20)], 10, ["above 0, got -1"]),
        ([source("a", 1000, 30), source("b", 1, 20)], 10, ["10 rows leave none for 'b'"]),
        ([source("a", 1, 3, task=["x", "y", "z"]), source("b", 1, 3)], None, ["'a' has a column 'task'", "rename"]),
        ([source("a", 1, 3, level=[1, 2, 3]), source("b", 1, 3, level=list("xyz"))], None, ["different types", "a, b"]),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused_by_name(sources, size, words):
    with pytest.raises(ValueError) as error:
        mixed(sources, size=size, seed=0)
    assert all(word in str(error.value) for word in words), error.value


def test_texts_and_messages_do_not_mix():
    talks = [[{"role": "user", "content": "?"}]] * 3
    talking = Source(
        name="b", weight=1, load=lambda size: rows("b", 3).remove_columns("prompt").add_column("prompt", talks)
    )
    with pytest.raises(ValueError, match="prompts of 'a' are texts and those of 'b' are messages"):
        mixed([source("a", 1, 3), talking], size=None, seed=0)


def test_names_are_short_and_told_apart():
    tasks = [{"task": "jsonl:/far/away/hard.jsonl"}, {"task": "sums", "args": {"terms": [2]}},
             {"task": "sums", "args": {"terms": [5]}}]  # fmt: skip
    assert source_names(tasks) == ["hard", "sums-1", "sums-2"]
    assert source_names(tasks[::-1]) == ["sums-2", "sums-1", "hard"]
    with pytest.raises(ValueError, match="twice; write it once"):
        source_names([tasks[0], dict(tasks[0])])


# In a recipe


def recipe(tmp_path: Path, mixture: list, **data) -> Recipe:
    for name in ("easy", "hard"):
        lines = [json.dumps({"prompt": f"{name} {i}+{i}=", "answer": str(2 * i)}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    groups = {
        "model": MODEL,
        "data": {"mixture": mixture, **data},
        "rewards": [{"use": "accuracy"}],
        "trainer": {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "output_dir": str(tmp_path / "o"),
        },
    }
    return make_recipe(groups, name="mix", base=tmp_path)


def test_a_recipe_mixes_files_and_generated_problems(tmp_path):
    made = recipe(tmp_path, [{"task": "jsonl:hard.jsonl", "weight": 2}, {"task": "sums", "weight": 4}], seed=3)
    found = made.load_data()
    assert (found["task"].count("hard"), found["task"].count("sums")) == (12, 24)
    assert found["problem_id"] == made.load_data()["problem_id"]
    assert made.data.shown == "33.3% jsonl:hard.jsonl + 66.7% sums"
    assert not made.data.endless
    capped = recipe(tmp_path, [{"task": "jsonl:hard.jsonl", "train_size": 5}, {"task": "jsonl:easy.jsonl"}])
    assert len(capped.load_data()) == 10


def test_every_file_of_a_mixture_is_hashed_for_a_resume(tmp_path):
    made = recipe(tmp_path, [{"task": "jsonl:hard.jsonl"}, {"task": "jsonl:easy.jsonl"}])
    names = {name.partition(" ")[2] for name in contents(flat(made.resolved()), made.base) if ".task" in name}
    assert names == {"hard.jsonl", "easy.jsonl"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"mixture": [{"task": "sums", "weight": 0}, {"task": "gsm8k"}]}, "above 0, got 0"),
        ({"mixture": [{"task": "sums"}]}, "two tasks or more"),
        ({"mixture": [{"task": "sums"}, {"task": "sums"}], "train_size": 8}, "twice"),
        ({"mixture": [{"task": "sums"}, {"task": "reasoning_gym:chain_sum"}]}, "without end; set data.train_size"),
        ({"mixture": [{"task": "sums"}, {"task": "gsm8k"}], "task": "sums"}, "one of the two"),
        ({"mixture": [{"task": "sums"}, {"task": "gsm8k"}], "args": {"terms": [2]}}, "split and args stand with each"),
        ({}, "needs a 'task', or a 'mixture'"),
        ({"mixture": [{"task": "sums", "wieght": 2}, {"task": "gsm8k"}]}, "Did you mean 'weight'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path, data, words):
    groups = {"model": MODEL, "data": data, "rewards": [{"use": "accuracy"}]}
    with pytest.raises(ValueError, match=words):
        make_recipe(groups, name="r", base=tmp_path)


def test_rewards_are_logged_by_task(tmp_path):
    """Two prompts of each task; a reward that pays by task is seen task by task."""
    table = prompts(4).add_column("task", ["a", "b", "a", "b"])

    def pays(completions, task, **_):
        return [1.0 if name == "a" else 0.25 for name in task]

    run = trainer(tmp_path, [pays, digits], per_device_train_batch_size=16, max_steps=1, train_dataset=table)
    run.train()
    log = next(entry for entry in run.state.log_history if "loss" in entry)
    assert (log["task/a/pays"], log["task/b/pays"]) == (1.0, 0.25)
    assert (log["task/a/reward"] + log["task/b/reward"]) / 2 == pytest.approx(log["reward"], abs=1e-3)
    plain = trainer(tmp_path, digits, max_steps=1)
    plain.train()
    assert not any(key.startswith("task/") for entry in plain.state.log_history for key in entry)
