"""How the models that ask are built: sizes, rates and the curriculum."""

from dataclasses import dataclass, field

from entrl_lab.nursery.inquirer.calibration import INQUIRER, SPECIFIER, Measured
from entrl_lab.nursery.inquirer.lessons import DIAGRAM_TOOLS, TOOLS, Script, Tools

NAMES_OF_MODELS = ("tiny-inquirer", "tiny-specifier")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the curriculum: tables of these sizes (rows, columns) for so many optimiser steps."""

    steps: int
    batch: int  # tables a step
    sizes: tuple[tuple[int, int], ...]
    drills: int  # per table
    dialogues: int  # per table
    diagrams: float  # share of lessons about a diagram instead
    questions: int = 99  # of a drill at most; 0: look-ups
    practice: bool  # dialogues of random length instead of the script's


SMALL = ((4, 4), (6, 6), (8, 8))
CURRICULUM = (
    Stage(steps=1200, batch=12, sizes=SMALL, drills=12, dialogues=0, diagrams=0.0, practice=True),
    Stage(steps=1200, batch=8, sizes=SMALL, drills=6, dialogues=6, diagrams=0.0, practice=True),
    Stage(steps=1600, batch=8, sizes=((6, 6), (8, 8)), drills=4, dialogues=6, diagrams=0.1, practice=False),
)


SPECIFIER_CURRICULUM = (Stage(steps=1000, batch=8, sizes=(), drills=0, dialogues=6, diagrams=1.0, practice=False),)


@dataclass(frozen=True, kw_only=True)
class InquirerConfig:
    """How the model is built. Widths, rates and the curriculum are ours, chosen for about 20 minutes on one core.

    name: `tiny-inquirer` learns twenty questions, `tiny-specifier` the diagram game (about 5 minutes).
    """

    name: str = NAMES_OF_MODELS[0]
    seed: int = 0
    curriculum: tuple[Stage, ...] = CURRICULUM
    learning_rate: float = 3e-3  # AdamW's
    embedding_std: float = 0.1
    warmup_steps: int = 50
    decay_share: float = 0.3  # of all steps, at the end: linear to 0
    max_norm: float = 1.0  # gradients are clipped to it
    layers: int = 3
    width: int = 64
    heads: int = 4  # an even number
    head_dim: int = 32
    intermediate: int = 192
    max_positions: int = 2048
    threads: int = 1  # part of the config: another count sums in another order and gives other weights
    script: Script = field(default_factory=Script)
    games: int = 300  # of the measurement, on test tables

    def __post_init__(self) -> None:
        for name in ("threads", "games", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.name not in NAMES_OF_MODELS:
            raise ValueError(f"name must be one of {', '.join(NAMES_OF_MODELS)}; got {self.name!r}")
        if not self.curriculum:
            raise ValueError("the curriculum is empty; give it at least one stage")
        for name in ("learning_rate", "embedding_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @property
    def specifies(self) -> bool:
        return self.name == "tiny-specifier"

    @property
    def taught_tools(self) -> Tools:
        """Whose calls are taught from the first token of a dialogue on."""
        return DIAGRAM_TOOLS if self.specifies else TOOLS

    @property
    def measured(self) -> Measured:
        return SPECIFIER if self.specifies else INQUIRER

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.curriculum)
