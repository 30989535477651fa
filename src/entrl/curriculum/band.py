"""Target band: prompts that are sometimes solved, and no others.

    w_i = 1 if low <= pass rate_i <= high else 0

Source:  the idea is in many places (DAPO's dynamic sampling, arXiv 2503.14476 3.2, drops groups at 0 and 1 after they
         were generated; ADARFT and others keep a target difficulty); the bounds here are ours
Differs: the pass rate is smoothed, so prompts nobody has tried are at 1/2 and inside. With 8 completions and the
         default bounds 0 and 8 right ones are outside, 1 to 7 inside
Needs:   nothing
"""

from dataclasses import dataclass
from typing import ClassVar

from entrl.curriculum.rules import Floats, Prompts, Rule


@dataclass(kw_only=True)
class Band(Rule):
    name: ClassVar[str] = "band"

    low: float = 0.2  # pass rate, both bounds inside
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"band: 0 <= low < high <= 1 is needed, got low {self.low} and high {self.high}")

    def weights(self, prompts: Prompts) -> Floats:
        rate_P = prompts.pass_rate_P
        return ((self.low <= rate_P) & (rate_P <= self.high)).astype(float)


rule = Band()
