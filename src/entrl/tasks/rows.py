"""The row every task yields, and the table made of them."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN

if TYPE_CHECKING:
    from datasets import Dataset

Mode = Literal["auto", "slow", "fast"]
Form = Literal["chat", "line"]  # of a puzzle: rules and question as a message, or the bare problem as a string
MODES = {"auto": "", "slow": THINK_OPEN, "fast": THINK_OPEN + THINK_CLOSE}  # what a prompt ends with
TEST_EVERY = 5  # one text in five is a test problem's; more would make slow generators slower still
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."


class Row(TypedDict):
    """One problem."""

    prompt: str | list[dict[str, str]]
    answer: str | None  # None: no gold answer
    verifier: str  # JSON, see entrl_rewards.accuracy
    problem_id: str
    level: NotRequired[str]


def as_dataset(rows: Sequence[Row], *, name: str) -> "Dataset":
    """A table with every column in every row; ids must be unique, or paired comparisons would mispair."""
    if not rows:
        raise ValueError(f"task {name!r} yields no rows; give it some, or check its split and options (test_every)")
    ids = [row["problem_id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"task {name!r}: problem_id {twice!r} occurs more than once; ids must be unique")
    from datasets import Dataset

    return Dataset.from_list([{**row, "level": row.get("level", "")} for row in rows])


def chat(question: str, *, instruction: str = "", system: str = "") -> list[dict[str, str]]:
    """Messages for a chat template: system prompt if any, question, instruction after an empty line."""
    text = f"{question}\n\n{instruction}" if instruction else question
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def short_prompt(question: str, *, system: str, mode: Mode = "auto") -> str | list[dict[str, str]]:
    """A question in a line as it is, with the tags of a mode (Dualformer's) behind it; or as chat messages.

    ValueError for a mode beside a system prompt: what a chat template puts behind the question comes after it.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if system and mode != "auto":
        raise ValueError(f"mode {mode} ends the prompt, and a chat template writes on behind; leave system or mode out")
    return chat(question, system=system) if system else question + MODES[mode]


def verifier_json(kind: str, **fields: Any) -> str:
    """The `verifier` column as one JSON string (a struct column would need equal keys in every row)."""
    return json.dumps({"kind": kind, **fields}, sort_keys=True)


def digest(text: str) -> int:
    """A number that depends on the text only: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def side_of(text: str) -> str:
    """The side of the split, `train` or `test`, of the problem that a text stands for."""
    return "train" if digest(text) % TEST_EVERY else "test"
