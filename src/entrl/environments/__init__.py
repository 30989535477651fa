"""Games of asking for TRL's `environment_factory`: what is hidden, the tools to find it, and what each answer told.

`TwentyQuestions` over a table, `DiagramSpecification` over slots; `load_environment` finds these and a user's own.
Rows to play come from `entrl.tasks.load_task("twenty_questions", ...)`. Nothing here imports torch or trl.
"""

from entrl.environments.diagram import DiagramShort, DiagramSpecification, ScoredDiagramSpecification
from entrl.environments.events import InquiryEnv, OwnReward, TurnEvent
from entrl.environments.loader import ENVIRONMENTS, load_environment
from entrl.environments.table_files import find_table, load_table
from entrl.environments.tables import ATTRIBUTES, NAMES, Table, animals, level_of, procedural_table
from entrl.environments.twenty_questions import ScoredTwentyQuestions, TwentyQuestions, TwentyQuestionsAny

__all__ = [
    "ATTRIBUTES",
    "ENVIRONMENTS",
    "NAMES",
    "DiagramShort",
    "DiagramSpecification",
    "InquiryEnv",
    "OwnReward",
    "ScoredDiagramSpecification",
    "ScoredTwentyQuestions",
    "Table",
    "TurnEvent",
    "TwentyQuestions",
    "TwentyQuestionsAny",
    "animals",
    "find_table",
    "level_of",
    "load_environment",
    "load_table",
    "procedural_table",
]
