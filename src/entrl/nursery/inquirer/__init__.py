"""The tiny inquirer: a small model that calls tools, warm-started on twenty questions that a script plays badly.

    entrl nursery --model tiny-inquirer --out DIR

`tokenizer` makes the phrases and the chat template, `lessons` the dialogues, `calibration` measures what came out,
`build` teaches and writes. The shipped model lies in `entrl/assets/tiny-inquirer`.
"""

from entrl.nursery.inquirer.build import InquirerConfig, Stage, main
from entrl.nursery.inquirer.lessons import Script

__all__ = ["InquirerConfig", "Script", "Stage", "main"]
