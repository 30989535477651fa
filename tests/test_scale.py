"""docs/scale.md states what benchmarks/scale.json holds, and the JSON what the formulas give."""

import json
import re
from pathlib import Path

import pytest

from entrl.runs.plan.balance import Load, Rates, balance

ROOT = Path(__file__).parents[1]
FOUND = json.loads((ROOT / "benchmarks" / "scale.json").read_text())
TEXT = (ROOT / "docs" / "scale.md").read_text()


def table_rows(start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith(start)
    ]


def number(text: str) -> float:
    return float(re.sub(r"[^0-9.]", "", text))


def test_adapters_in_the_text_are_the_counted_ones():
    for row in FOUND["sync"]:
        cells = table_rows(f"| {row['model']} | {row['parameters'] / 1e9:.3g}e9")[0]
        assert number(cells[2].split(" ")[0]) == pytest.approx(row["full_bf16"] / 1e9, rel=0.01)
        for cell, rank in zip(cells[4:], (16, 64), strict=True):
            size, ratio = cell.split("(1/")
            unit = 1e9 if "GB" in size else 1e6
            assert number(size.split(" ")[0]) * unit == pytest.approx(row[f"adapter_r{rank}"], rel=0.01)
            assert number(ratio) == pytest.approx(row[f"ratio_r{rank}"], rel=0.05)


def test_files_are_what_the_formula_says_and_ten_times_apart():
    written = FOUND["written"]
    assert written["merged_file"] == pytest.approx(written["merged_formula"], rel=0.003)
    assert written["adapter_file"] == pytest.approx(written["adapter_formula"], rel=0.003)
    assert written["merged_file"] / written["adapter_file"] >= 10


def test_balance_in_the_text_is_computed():
    load = Load(**FOUND["assumed_rollout"])
    for row in FOUND["hardware"]:
        kind = {"full": "full", "lora": "LoRA"}[row["kind"]]
        (cells,) = table_rows(f"| {row['model']}, {kind} |")
        assert number(cells[1]) == pytest.approx(row["generate_tokens_per_s"], abs=0.5)
        assert number(cells[2]) == pytest.approx(row["train_tokens_per_s"], abs=0.5)
        assert [number(one) for one in cells[5].split(",")] == pytest.approx(
            list(row["generation_s"].values()), abs=0.5
        )
        assert number(cells[6]) == row["engines_in_balance"]
        rates = Rates(generate=row["generate_tokens_per_s"], train=row["train_tokens_per_s"])
        again = balance(load, rates, engines=4, processes=row["trainers"])
        assert again.generation == pytest.approx(row["generation_s"]["4"])
        assert again.training == pytest.approx(row["training_s"])
        assert number(cells[4]) == pytest.approx(row["training_s"], abs=0.5)


def test_check_in_the_text_is_the_measured_one():
    names = {"16 rows": "a quarter of the rows", "128 rows": "twice the rows", "128 tokens": "twice the length"}
    for start, name in (names | {"trained on twice": "trained on twice"}).items():
        found = FOUND["check"]["settings"][name]
        (cells,) = table_rows(f"| {start} |")
        whole = found["whole_s"]
        for cell, value in zip(cells[1:4], (found["generation_s"], found["training_s"], whole), strict=True):
            assert number(cell) == pytest.approx(value, abs=0.0051)
        assert number(cells[4]) == pytest.approx(whole / found["whole_over_predicted"], abs=0.0051)
        assert number(cells[5]) == pytest.approx(found["whole_over_predicted"], abs=0.0051)
