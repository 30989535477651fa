"""Names of the first-order estimators; `entrl_lab.replay.predict` defines them, and needs torch for it."""

from typing import Literal, get_args

Estimator = Literal["natural", "policy_gradient", "pooled"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
