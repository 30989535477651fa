"""Lessons for the tiny inquirer: dialogues about procedural tables, played by a script that does not ask well.

    practice   a random number of random questions, then the target's name: what can be known from the answers so far
    script     random questions, now and then one that was asked before; the name when one row is left, mostly,
               and sometimes earlier, one of the rows that are left

The script never looks at what a question is worth: it asks the words that are true of one row, or of all, as readily as
those that split the table. So a policy that starts from it has something to learn: better questions, fewer of them, no
name too early. What it need not learn is to read the table: the lessons also teach the *answers*, whose probability is
the share of the rows still possible that have the word, and that takes the whole belief.

Lessons are text as the chat template writes it, to the letter (a test compares), so that making one costs little.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from entrl.environments.rows import INSTRUCTION, TEST_EVERY
from entrl.environments.tables import ATTRIBUTES, FEW, FEW_NAMES, IDLE, NAMES, Table, animals, procedural_table
from entrl.nursery.inquirer.tokenizer import (
    ASSISTANT,
    CALL_END,
    END,
    RESULT,
    RESULT_END,
    SYSTEM,
    USER,
    call_opening,
    counter,
)
from entrl.tasks.rows import digest

TOOLS = (("ask", "attribute"), ("submit", "answer"))
SENTENCES = (
    INSTRUCTION + "\n\n",
    " (asked before)",
    "Correct.",
    "Wrong, it is",
    "The inquiry is over.",
    "; submit your answer.",
    "No questions left after ",
    "Error: unknown attribute '",
    "Error: unknown name '",
    "'; known: ",
)
MAX_QUESTIONS = 20  # the budget the lessons name; the task's default


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a dialogue goes; every number is a probability per turn."""

    repeat: float = 0.05  # ask something that was asked before
    early: float = 0.06  # name one of several rows that are left
    late: float = 0.15  # ask on although one row is left

    def __post_init__(self) -> None:
        for name in ("repeat", "early", "late"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability and must be in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A table, and what may follow it: the parts know nothing of each other."""

    prompt: str
    parts: tuple[str, ...]


def words() -> list[str]:
    """Everything a table can say, common words first: one token each."""
    levels = [*ATTRIBUTES[:IDLE], ATTRIBUTES[IDLE]]
    own = [word for level in levels for word in level[:FEW]] + [*NAMES[:FEW_NAMES]]
    animal = animals()
    rest = [word for level in levels for word in level[FEW:]]
    return list(dict.fromkeys(["no", "yes", *own, *animal.questions, *animal.hypotheses, *rest]))


def train_seeds(rng: random.Random) -> Iterator[int]:
    """Seeds of tables on the train side of the split; no test table is ever seen."""
    while True:
        seed = rng.randrange(2**31)
        if digest(f"table/{seed}") % TEST_EVERY:
            yield seed


def prompt_of(table: Table) -> str:
    """The dialogue up to the place where the model writes."""
    lines = [
        f"{name}:" + "".join(f" {word}" for word, true in zip(table.questions, row, strict=True) if true)
        for name, row in zip(table.hypotheses, table.values, strict=True)
    ]
    tools = ", ".join(f"{tool}({argument})" for tool, argument in TOOLS)
    return f"{SYSTEM} {tools}{END}{USER}{INSTRUCTION}\n\n" + "\n".join(lines) + ASSISTANT


def call(tool: str, value: str) -> str:
    """One assistant message."""
    return f"{call_opening(tool, dict(TOOLS)[tool])}{value}{CALL_END}{END}"


def dialogue(table: Table, rng: random.Random, *, script: Script | None) -> str:
    """What follows the prompt when the game is about a row drawn at random; practice without a script."""
    values = table.values
    target = rng.randrange(len(values))
    left = np.ones(len(values), dtype=bool)
    asked: list[int] = []
    stop = rng.randint(0, values.shape[1]) if script is None else MAX_QUESTIONS
    text = ""
    while len(asked) < stop and not (script and _ends(int(left.sum()), len(asked), script, rng)):
        question = _question(values.shape[1], asked, rng, repeat=script.repeat if script else 0.05)
        again = " (asked before)" if question in asked else ""
        asked.append(question)
        answer = values[target, question]
        left &= values[:, question] == answer
        seen = f"{counter(len(asked), MAX_QUESTIONS)} {('no', 'yes')[answer]}{again}"
        text += call("ask", table.questions[question]) + RESULT + seen + RESULT_END
    named = rng.choice([int(row) for row in np.flatnonzero(left)])
    right = "Correct." if named == target else f"Wrong, it is {table.hypotheses[target]}."
    return text + call("submit", table.hypotheses[named]) + RESULT + right + RESULT_END + END


def _ends(left: int, asked: int, script: Script, rng: random.Random) -> bool:
    chance = 1 - script.late if left == 1 else script.early if asked else 0.0
    return rng.random() < chance


def _question(count: int, asked: list[int], rng: random.Random, *, repeat: float) -> int:
    fresh = [question for question in range(count) if question not in asked]
    if asked and (not fresh or rng.random() < repeat):
        return rng.choice(asked)
    return rng.choice(fresh)


def drill(table: Table, rng: random.Random) -> str:
    """`fur yes wings no` and so on, then the name: a game without its wrapping, two tokens a question."""
    target = rng.randrange(len(table.values))
    order = rng.sample(range(len(table.questions)), rng.randint(1, len(table.questions)))
    pairs = (f"{table.questions[q]} {('no', 'yes')[table.values[target, q]]}" for q in order)
    return "".join(pairs) + call_opening(*TOOLS[1]) + table.hypotheses[target] + CALL_END


def lessons(
    seed: int, sizes: Sequence[tuple[int, int]], *, script: Script | None, drills: int, dialogues: int
) -> Iterator[Lesson]:
    """Without end; each about a table of its own, of a size drawn from `sizes` (rows, columns)."""
    rng = random.Random(seed)
    for table_seed in train_seeds(rng):
        rows, columns = rng.choice(sizes)
        table = procedural_table.__wrapped__(table_seed, rows=rows, columns=columns)  # past the cache: none comes twice
        parts = [drill(table, rng) for _ in range(drills)]
        parts += [dialogue(table, rng, script=script) for _ in range(dialogues)]
        yield Lesson(prompt=prompt_of(table), parts=tuple(parts))
