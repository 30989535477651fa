"""Uniform: the prompts in TRL's own order, each once in a pass over the data. Pass rates are kept all the same.

Source:  TRL 1.16, `RepeatSampler`
Differs: nothing; a run with this rule equals one without a curriculum bit for bit
Needs:   nothing
"""

from dataclasses import dataclass
from typing import ClassVar

from entrl.curriculum.rules import Rule


@dataclass(kw_only=True)
class Uniform(Rule):
    name: ClassVar[str] = "uniform"
    by_prompt: ClassVar[bool] = False


rule = Uniform()
