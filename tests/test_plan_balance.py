"""entrl.runs.plan.balance by hand."""

import pytest

from entrl.runs.plan.balance import Load, Rates, balance, engines_in_balance

LOAD = Load(rows=100, prompt=50, length=150, trainings=1, scorings=3)
RATES = Rates(generate=500, train=1000, bandwidth=2e6)


def test_by_hand():
    found = balance(LOAD, RATES, engines=2, processes=4, bytes_sent=1e6)
    assert found.generation == 15  # 100 x 150 / (2 x 500)
    assert found.training == pytest.approx(10)  # 100 x 200 x (1 + 3/3) / (4 x 1000)
    assert found.sync == 1  # 2 x 1e6 / 2e6
    assert found.synchronous == pytest.approx(26)
    assert found.bottleneck == "generation"


def test_engines_in_balance_are_the_fewest():
    enough = engines_in_balance(LOAD, RATES, processes=4)
    assert enough == 3  # one engine needs 30 s, training 10 s
    assert balance(LOAD, RATES, engines=enough, processes=4).generation <= 10.0001
    assert balance(LOAD, RATES, engines=enough - 1, processes=4).generation > 10


def test_training_is_the_bottleneck_with_many_engines():
    assert balance(LOAD, RATES, engines=30, processes=4).bottleneck == "training"
    assert balance(LOAD, RATES, engines=30, processes=4, bytes_sent=1e6).bottleneck == "sync"


def test_rates_must_be_positive():
    with pytest.raises(ValueError, match="generate must be a throughput > 0"):
        Rates(generate=0, train=1)
