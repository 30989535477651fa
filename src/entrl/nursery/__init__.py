"""The nursery: builds the tiny reasoner, a base model that thinks too rarely and so has something to learn.

    entrl nursery --out DIR          about ten minutes on one core; the shipped asset was built by this command

`tokenizer` makes the characters, `traces` the lessons, `calibration` measures what came out, `build` is the
command. The shipped base lies in `entrl/assets/tiny-reasoner`.
"""

from entrl.nursery.build import NurseryConfig, main
from entrl.nursery.calibration import Calibration, calibrate

__all__ = ["Calibration", "NurseryConfig", "calibrate", "main"]
