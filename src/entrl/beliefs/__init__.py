"""Beliefs over hypotheses, what questions are worth and what answers told, in bits and float64.

`Belief` and `FactoredBelief` are the mathematics; `ExactBayes`, `Factored`, `AnswerModel`, `ConformalSize` and
`TargetLogProb` say who supplies the belief. numpy only; torch is imported where a language model is asked.
"""

from entrl.beliefs.answer_model import AnswerModel, ConformalSize, History, logged_histories, random_histories
from entrl.beliefs.belief import Belief, GainStep
from entrl.beliefs.conformal import (
    CalibrationTooSmall,
    LengthThresholds,
    Threshold,
    conformal_rank,
    coverage,
    fit_lengths,
    fit_threshold,
    prediction_sets,
)
from entrl.beliefs.errors import (
    BeliefError,
    Contradiction,
    DuplicateHypothesis,
    EmptyCalibration,
    EmptyHypothesisSpace,
    InvalidAlpha,
    InvalidDistribution,
    InvalidScore,
    ShapeMismatch,
    UnknownAnswer,
    UnknownHypothesis,
)
from entrl.beliefs.estimators import ExactBayes, Factored, Observation
from entrl.beliefs.factored import FactoredBelief
from entrl.beliefs.information import dependence_bits, entropy_bits, expected_gain_bits, kl_bits, marginals, one_hot
from entrl.beliefs.policy import CandidateScores, TargetLogProb

__all__ = [
    "AnswerModel",
    "Belief",
    "BeliefError",
    "CalibrationTooSmall",
    "CandidateScores",
    "ConformalSize",
    "Contradiction",
    "DuplicateHypothesis",
    "EmptyCalibration",
    "EmptyHypothesisSpace",
    "ExactBayes",
    "Factored",
    "FactoredBelief",
    "GainStep",
    "History",
    "InvalidAlpha",
    "InvalidDistribution",
    "InvalidScore",
    "LengthThresholds",
    "Observation",
    "ShapeMismatch",
    "TargetLogProb",
    "Threshold",
    "UnknownAnswer",
    "UnknownHypothesis",
    "conformal_rank",
    "coverage",
    "dependence_bits",
    "entropy_bits",
    "expected_gain_bits",
    "fit_lengths",
    "fit_threshold",
    "kl_bits",
    "logged_histories",
    "marginals",
    "one_hot",
    "prediction_sets",
    "random_histories",
]
