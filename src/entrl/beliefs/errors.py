"""What can be wrong with hypotheses, distributions, answers and calibration data. All are ValueErrors."""


class BeliefError(ValueError):
    """Something handed to a belief, an estimator or a calibrator is not what the mathematics needs."""


class EmptyHypothesisSpace(BeliefError):
    """No hypotheses: nothing to be uncertain about."""


class DuplicateHypothesis(BeliefError):
    """Two hypotheses of one name."""


class UnknownHypothesis(BeliefError):
    """A target, value or slot that the belief does not have."""


class InvalidDistribution(BeliefError):
    """Negative, NaN, infinite, all zero, or a sum off 1 by more than 1e-6."""


class ShapeMismatch(BeliefError):
    """Arrays whose lengths do not fit each other."""


class UnknownAnswer(BeliefError):
    """An answer outside the question's alphabet, or a question outside the table."""


class Contradiction(BeliefError):
    """An answer that has probability 0 under the belief."""


class EmptyCalibration(BeliefError):
    """No calibration data, at all or for the history length asked for."""


class InvalidAlpha(BeliefError):
    """A miscoverage level that is no number between 0 and 1."""


class InvalidScore(BeliefError):
    """NaN where a score or a probability should be."""
