"""Entropy and gap by age, from a run's logged metrics."""

import pytest

from entrl.report.staleness import UNKNOWN, staleness_rows, staleness_table

TRAIN = [
    {"step": 1, "staleness/0/tokens_total": 10.0, "staleness/0/entropy": 0.5, "staleness/0/abs_log_ratio": 0.001},
    {
        "step": 2,
        "staleness/0/tokens_total": 30.0,
        "staleness/0/entropy": 0.1,
        "staleness/0/abs_log_ratio": 0.003,
        "staleness/2/tokens_total": 60.0,
        "staleness/2/entropy": 0.4,
        "staleness/2/sampler_entropy": 0.6,
        "staleness/2/entropy_change": -0.2,
        "staleness/2/log_ratio": -0.01,
        "staleness/unknown/tokens_total": 20.0,
        "staleness/unknown/entropy": 0.3,
    },
    {"step": 3, "staleness/0/tokens_total": None, "entropy": 0.2},
]


def test_means_are_weighed_by_tokens():
    rows = staleness_rows(TRAIN)
    assert [r.age for r in rows] == [0, 2, UNKNOWN]
    assert [r.tokens for r in rows] == [40, 60, 20]
    assert rows[0].entropy == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)  # 0.2
    assert rows[0].abs_log_ratio == pytest.approx((10 * 0.001 + 30 * 0.003) / 40)
    assert rows[0].sampler_entropy is None
    assert rows[1].entropy_change == -0.2
    assert sum(r.share for r in rows) == pytest.approx(1)


def test_the_table_is_text_and_other_runs_have_none():
    table = staleness_table(TRAIN)
    assert table[1]["Change"] == "−0.2"
    assert table[0]["Entropy when sampled"] == ""
    assert table[2]["Versions old"] == "unknown"
    assert staleness_table([{"step": 1, "entropy": 0.3}]) == []
