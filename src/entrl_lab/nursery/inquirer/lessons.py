"""Lessons for the tiny inquirer: dialogues played by a script that does not ask well.

    practice   a random number of random questions, then the target's name: what can be known from the answers so far
    script     random questions, now and then one that was asked before; the name when one row is left, mostly,
               and sometimes earlier, one of the rows that are left
    diagram    random slots, now and then one that is known; all slots once they are known, mostly, and sometimes
               earlier, with values drawn for the rest. One lesson in ten of the inquirer's last stage: too few to
               learn the game, which the tiny specifier is taught and nothing else

The script never looks at what a question is worth: it asks the words that are true of one row, or of all, as readily as
those that split the table. So a policy that starts from it has something to learn: better questions, fewer of them, no
name too early. Games name what an answer rules out (`TwentyQuestions(name_ruled_out=True)`): a model of this size was
not brought to search the table by attributes, and finds a name that is in the table and was not ruled out.

Lessons are text as the chat template writes it, to the letter (a test compares), so that making one costs little.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from entrl.environments.diagram_worlds import SLOTS, World, find_world, world_id, written
from entrl.environments.tables import ATTRIBUTES, FEW, FEW_NAMES, IDLE, NAMES, Table, animals, procedural_table
from entrl.environments.twenty_questions import INSTRUCTION
from entrl.tasks.inquiries import _request
from entrl.tasks.rows import side_of
from entrl_lab.nursery.inquirer.tokenizer import (
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

T = TypeVar("T")
Tools = tuple[tuple[str, str], ...]  # (name, its one argument)
TOOLS: Tools = (("ask", "attribute"), ("submit", "answer"))
DIAGRAM_TOOLS: Tools = (("ask", "slot"), ("submit", "specification"))
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
    "I need a diagram",
    "Ask me about one slot at a time, then submit all slots as slot=value; slot=value.\n\n",
)
SLOT_PHRASES = tuple(phrase for slot in SLOTS for phrase in (f"{slot}=", f" {slot}="))
BUDGETS = (4, 6, 8, 20, 20, 20, 20, 20)  # questions a lesson allows, mostly the task's default
DIAGRAM_BUDGETS = (2, 3, 4, 6, 6, 6)


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a dialogue goes; every number is a probability per turn."""

    repeat: float = 0.05  # ask something that was asked before, or a slot that is known
    early: float = 0.06  # submit while it is open
    late: float = 0.15  # ask on although nothing is open

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
    """Everything a table or a diagram can say: one token each."""
    levels = [*ATTRIBUTES[:IDLE], ATTRIBUTES[IDLE]]
    own = [word for level in levels for word in level[:FEW]] + [*NAMES[:FEW_NAMES]]
    animal = animals()
    rest = [word for level in levels for word in level[FEW:]]
    slots = [word for slot, groups in SLOTS.items() for word in (slot, *(value for group in groups for value in group))]
    known = ["no", "yes", "not", "sure", "or", "with", "Right", "Slots", "Attributes", "Names"]
    return list(dict.fromkeys([*known, *own, *animal.questions, *animal.hypotheses, *slots, *rest]))


def train_seeds(rng: random.Random) -> Iterator[int]:
    """Seeds of tables on the train side of the split; no test table is ever seen."""
    while True:
        seed = rng.randrange(2**31)
        if side_of(f"table/{seed}") == "train":
            yield seed


def prompt_of(table: Table) -> str:
    """The dialogue up to the place where the model writes."""
    lines = [
        f"{name}:" + "".join(f" {word}" for word, true in zip(table.questions, row, strict=True) if true)
        for name, row in zip(table.hypotheses, table.values, strict=True)
    ]
    return opened(f"{INSTRUCTION}\n\n" + "\n".join(lines), TOOLS)


def opened(content: str, tools: Tools) -> str:
    """System message, the user's message, and the opening of the reply."""
    signatures = ", ".join(f"{tool}({argument})" for tool, argument in tools)
    return f"{SYSTEM} {signatures}{END}{USER}{content}{ASSISTANT}"


def call(tool: tuple[str, str], value: str) -> str:
    """One assistant message."""
    return f"{call_opening(*tool)}{value}{CALL_END}{END}"


def answered(number: int, budget: int, answer: str, *, again: bool, out: Sequence[str] = ()) -> str:
    """What the environment says to a question; out: names that the answer rules out."""
    return f"{RESULT}{counter(number, budget)} {answer}{ruled_out(out)}{' (asked before)' if again else ''}{RESULT_END}"


def ruled_out(names: Sequence[str]) -> str:
    return f"; not {', '.join(names)}" if names else ""


def dialogue(table: Table, rng: random.Random, *, script: Script | None) -> str:
    """What follows the prompt when the game is about a row drawn at random; practice without a script."""
    values = table.values
    target = rng.randrange(len(values))
    left = np.ones(len(values), dtype=bool)
    asked: list[int] = []
    budget = rng.choice(BUDGETS)
    stop = rng.randint(0, values.shape[1]) if script is None else budget
    text = ""
    while len(asked) < min(stop, budget) and not (script and _ends(left.sum() == 1, bool(asked), script, rng)):
        question = _question(range(values.shape[1]), asked, rng, repeat=script.repeat if script else 0.05)
        again = question in asked
        asked.append(question)
        answer = values[target, question]
        kept = left & (values[:, question] == answer)
        out = [table.hypotheses[int(row)] for row in np.flatnonzero(left & ~kept)]
        left = kept
        text += call(TOOLS[0], table.questions[question])
        text += answered(len(asked), budget, ("no", "yes")[answer], again=again, out=out)
    named = rng.choice([int(row) for row in np.flatnonzero(left)])
    right = "Correct." if named == target else f"Wrong, it is {table.hypotheses[target]}."
    return text + call(TOOLS[1], table.hypotheses[named]) + RESULT + right + RESULT_END + END


def _ends(known: bool, begun: bool, script: Script, rng: random.Random) -> bool:
    chance = 1 - script.late if known else script.early if begun else 0.0
    return rng.random() < chance


def _question(all_of_them: Sequence[T], asked: Sequence[T], rng: random.Random, *, repeat: float) -> T:
    fresh = [question for question in all_of_them if question not in asked]
    if asked and (not fresh or rng.random() < repeat):
        return rng.choice(asked)
    return rng.choice(fresh)


def diagram_prompt(world: World, truth: Mapping[str, str], named: str) -> str:
    """As `prompt_of`, for a request that gives one slot away."""
    return opened(_request(world, dict(truth), named, "values"), DIAGRAM_TOOLS)


def diagram_dialogue(
    world: World,
    truth: Mapping[str, str],
    named: str,
    rng: random.Random,
    *,
    script: Script | None,
    slot_in_answer: bool = False,
) -> str:
    """What follows the prompt of a request by a user who knows. slot_in_answer: the option of the environment."""
    script = script or Script()
    slots = list(world.slots)
    known = [named]
    asked: list[str] = []
    budget = rng.choice(DIAGRAM_BUDGETS)
    text = ""
    while len(asked) < budget and not _ends(len(set(known)) == len(slots), bool(asked), script, rng):
        slot = _question(slots, known, rng, repeat=script.repeat)
        again = slot in asked
        known.append(slot)
        asked.append(slot)
        said = f"{slot}={truth[slot]}" if slot_in_answer else truth[slot]
        text += call(DIAGRAM_TOOLS[0], slot) + answered(len(asked), budget, said, again=again)
    given = {slot: truth[slot] if slot in known else rng.choice(world.slots[slot]) for slot in slots}
    right = sum(given[slot] == truth[slot] for slot in slots)
    verdict = f"{RESULT}Right: {right} of {len(slots)}.{RESULT_END}"
    return text + call(DIAGRAM_TOOLS[1], written(given)) + verdict + END


def diagram_lesson(
    rng: random.Random,
    dialogues: int,
    *,
    script: Script | None,
    slots: Sequence[int] = (3, 4),
    alone: bool = False,
) -> Lesson:
    """A world of so many slots with marginals of its own. World 0 is left to the task.

    alone: lessons of a model that is taught nothing else. Answers repeat their slot, and wishes are uniform, so that
    no value can be guessed: neither the marginals nor the rules are learnt before RL.
    """
    names = rng.sample(list(SLOTS), rng.choice(slots))
    world = find_world(world_id(slots=names, world=rng.randrange(1, 1000)))
    truth = world.specification(rng.random())
    if alone:
        truth = {slot: rng.choice(values) for slot, values in world.slots.items()}
    named = rng.choice(list(world.slots))
    parts = [diagram_dialogue(world, truth, named, rng, script=script, slot_in_answer=alone) for _ in range(dialogues)]
    return Lesson(prompt=diagram_prompt(world, truth, named), parts=tuple(parts))


def drill(table: Table, rng: random.Random) -> str:
    """Some names ruled out, in one go or several, then a call with one of the others: the end of a game, alone."""
    names = list(table.hypotheses)
    gone = rng.sample(names, rng.randrange(len(names)))
    said = []
    while gone:
        count = rng.randint(1, len(gone))
        said.append(gone[:count])
        gone = gone[count:]
    out = {name for part in said for name in part}
    name = rng.choice([name for name in names if name not in out])
    return "".join(map(ruled_out, said)) + call_opening(*TOOLS[1]) + name + CALL_END


def diagram_lessons(seed: int, dialogues: int, *, script: Script, slots: Sequence[int] = (3, 4, 5)) -> Iterator[Lesson]:
    """Without end; for the tiny specifier."""
    rng = random.Random(seed)
    while True:
        yield diagram_lesson(rng, dialogues, script=script, slots=slots, alone=True)


def lessons(
    seed: int,
    sizes: Sequence[tuple[int, int]],
    *,
    script: Script | None,
    drills: int,
    dialogues: int,
    diagrams: float = 0.0,
) -> Iterator[Lesson]:
    """Without end; each about a table of its own, of a size drawn from `sizes` (rows, columns), or a diagram.

    drills, dialogues: parts per table. diagrams: probability that a lesson is about one.
    """
    rng = random.Random(seed)
    for table_seed in train_seeds(rng):
        if rng.random() < diagrams:
            yield diagram_lesson(rng, max(dialogues, 2), script=script)
            continue
        rows, columns = rng.choice(sizes)
        table = procedural_table.__wrapped__(table_seed, rows=rows, columns=columns)  # past the cache: none comes twice
        parts = [drill(table, rng) for _ in range(drills)]
        parts += [dialogue(table, rng, script=script) for _ in range(dialogues)]
        yield Lesson(prompt=prompt_of(table), parts=tuple(parts))
