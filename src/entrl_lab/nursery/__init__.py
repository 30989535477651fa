"""The nursery builds the models that are shipped, from nothing.

    entrl nursery --out DIR                            the tiny reasoner; about ten minutes on one core
    entrl nursery --model tiny-inquirer --out DIR      the tiny inquirer, which calls tools (`inquirer`)
    entrl nursery --model tiny-specifier --out DIR     the same for the diagram game
    entrl nursery --model tiny-overthinker --out DIR   right, and thinks three times as long as it needs to
    entrl nursery --model tiny-overthinker --conditions FILE     measures what it has to meet (`conditions`)
    entrl nursery --model overthinker-flat --out DIR   its twin, whose derivation is as uncertain as its re-checks

The tiny reasoner is a base model that thinks too rarely and so has something to learn: `tokenizer` makes the
characters, `traces` the lessons, `calibration` measures what came out, `build` is the command; `sft` is what it shares
with the overthinker's builder. The shipped models lie in `entrl/models/shipped`.
"""

import argparse

from entrl_lab.nursery.build import NurseryConfig
from entrl_lab.nursery.build import main as build_reasoner
from entrl_lab.nursery.calibration import Calibration, calibrate

__all__ = ["Calibration", "NurseryConfig", "calibrate", "main"]

MODELS = ("tiny-reasoner", "tiny-inquirer", "tiny-specifier", "tiny-overthinker", "overthinker-flat")


def main(argv: list[str] | None = None) -> int:
    """The command: `--model` says which builder reads the other options. Returns 1 for a bad start for RL."""
    parser = argparse.ArgumentParser(prog="entrl nursery", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    options, rest = parser.parse_known_args(argv)
    if "overthinker" in options.model:
        from entrl_lab.nursery import conditions, overthinker  # bring the rewards along

        chosen = conditions if "--conditions" in rest else overthinker
        return chosen.main(rest, name=options.model)
    if options.model != "tiny-reasoner":
        from entrl_lab.nursery.inquirer import main as build_inquirer  # brings the environments along

        return build_inquirer(rest, name=options.model)
    return build_reasoner(rest)
