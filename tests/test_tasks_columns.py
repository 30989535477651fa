"""The other columns of a problem file: which types reach rewards, what becomes JSON, which names are refused (F9)."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from entrl.settings.arguments import TRL_KEYWORDS
from entrl.tasks import load_task
from entrl.tasks.columns import RESERVED
from entrl.trainers.shared.rewards import SHARED_SIGNALS, SIGNALS

ROW = {"prompt": "1+1=", "answer": "2"}


def load(folder: Path, *records: Any, **options: Any) -> Any:
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    return load_task({"task": f"jsonl:{folder / 'mine.jsonl'}", **options})


def test_other_columns_go_with_the_rows(tmp_path: Path):
    one = {**ROW, "target_length": 20, "difficulty": 1, "source": "x", "hard": True, "tests": ["a"], "empty": []}
    two = {**ROW, "difficulty": 0.5, "source": None, "hard": False, "tests": [], "empty": [1.5, 2], "only": "here"}
    found = load(tmp_path, {**one, "meta": {"a": 1}}, {**two, "meta": {"b": [1e-5]}})
    rows = [{k: v for k, v in row.items() if k in one or k in two or k == "meta"} for row in found]
    rest = {"target_length": None, "difficulty": 0.5, "source": None, "hard": False}
    assert [{k: row[k] for k in rest} for row in rows] == [
        {"target_length": 20, "difficulty": 1.0, "source": "x", "hard": True},
        rest,
    ]
    assert [row["tests"] for row in rows] == [["a"], []]
    assert [row["empty"] for row in rows] == [[], [1.5, 2.0]]
    assert [row["only"] for row in rows] == [None, "here"]
    assert [json.loads(row["meta"]) for row in rows] == [{"a": 1}, {"b": [1e-5]}]  # as JSON: no keys filled in


@pytest.mark.parametrize(
    ("one", "two"),
    [([1, [2]], [3]), ([{"a": 1}], []), ([1], ["a"]), ([1, "a"], [2]), ({"a": 1}, [1])],
)
def test_lists_that_a_table_would_change_arrive_as_json(tmp_path: Path, one: Any, two: Any):
    found = load(tmp_path, {**ROW, "c": one}, {**ROW, "c": two})
    assert [json.loads(v) for v in found["c"]] == [one, two]


@pytest.mark.parametrize(
    ("one", "two", "match"),
    [
        (1, "2", r"column 'c' mixes types: integer in .*mine.jsonl:1, text in .*mine.jsonl:2; .*drop_columns"),
        (True, 1, "boolean in .*integer in"),
        ("a", ["a"], "text in .*list of text in"),
        (2**63, 1, r"mine.jsonl:1 column 'c' holds 9223372036854775808, which a table cannot hold"),
    ],
)
def test_a_column_of_several_types_is_refused(tmp_path: Path, one: Any, two: Any, match: str):
    records = {**ROW, "c": one}, {**ROW, "c": two}
    with pytest.raises(ValueError, match=match):
        load(tmp_path, *records)
    assert "c" not in load(tmp_path, *records, drop_columns=["c"]).column_names


def test_names_that_training_uses_itself_are_refused(tmp_path: Path):
    assert {*TRL_KEYWORDS, *SIGNALS, *SHARED_SIGNALS} <= RESERVED
    for name in (*sorted(RESERVED), "entrl_phase"):
        with pytest.raises(ValueError, match=f"has the column '{name}', a name that training uses itself"):
            load(tmp_path, {**ROW, name: "x"})
    for name in ("image", "images"):
        with pytest.raises(ValueError, match=f"has the column '{name}': prompts with images are not supported"):
            load(tmp_path, {**ROW, name: ["a.png"]})
    assert load(tmp_path, {**ROW, "images": ["a"]}, drop_columns=["images"])["prompt"] == ["1+1="]
    with pytest.raises(ValueError, match=r"drop_columns names 'imags', which the file has not. Did you mean 'images'"):
        load(tmp_path, {**ROW, "images": []}, drop_columns=["imags"])


def test_dates_have_no_form(tmp_path: Path):
    write_table(pyarrow.Table.from_pylist([{**ROW, "day": datetime.date(2026, 1, 1)}]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'day' holds a date; write it as text"):
        load_task(f"parquet:{tmp_path / 'a.parquet'}")
