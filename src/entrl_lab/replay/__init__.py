"""Counterfactual replay: what other controllers would have done to entropy with the rows a run logged."""

from entrl_lab.replay.predict import Prediction, predict, token_gain
from entrl_lab.replay.real_step import RealStep, StepOutcome, StepState
from entrl_lab.replay.recommend import Target, parse_target, recommend
from entrl_lab.replay.run import Replay, print_replay, read_windows, replay
from entrl_lab.replay.settings import Setting, make_setting, parse_settings

__all__ = [
    "Prediction",
    "RealStep",
    "Replay",
    "Setting",
    "StepOutcome",
    "StepState",
    "Target",
    "make_setting",
    "parse_settings",
    "parse_target",
    "predict",
    "print_replay",
    "read_windows",
    "recommend",
    "replay",
    "token_gain",
]
