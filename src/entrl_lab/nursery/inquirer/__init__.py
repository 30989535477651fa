"""The tiny inquirer and the tiny specifier: small models that call tools, warm-started on games a script plays badly.

    entrl nursery --model tiny-inquirer --out DIR      twenty questions
    entrl nursery --model tiny-specifier --out DIR     the diagram game

`tokenizer` makes the phrases and the chat template, `lessons` the dialogues, `calibration` measures what came out,
`build` teaches and writes. The shipped models lie in `entrl/models/shipped`.
"""

from entrl_lab.nursery.inquirer.build import main
from entrl_lab.nursery.inquirer.config import InquirerConfig, Stage
from entrl_lab.nursery.inquirer.lessons import Script

__all__ = ["InquirerConfig", "Script", "Stage", "main"]
