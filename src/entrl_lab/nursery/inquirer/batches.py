"""Lessons as tensors: what is taught of them, and which tokens may see which."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entrl_lab.nursery.inquirer.lessons import TOOLS, Lesson, Tools
from entrl_lab.nursery.inquirer.tokenizer import END, RESULT_END, call_opening

IGNORED = -100


class Batch(NamedTuple):
    """Padded on the right. A row is a prompt and its parts; each part sees the prompt and itself."""

    ids_BT: Tensor
    labels_BT: Tensor  # the ids to be predicted, IGNORED elsewhere
    positions_BT: Tensor  # every part begins right behind the prompt
    parts_BT: Tensor  # 0: the prompt, 1 ..: its parts, -1: padding


def batches(tokenizer: Any, taught: Iterator[Lesson], size: int, *, tools: Tools = TOOLS) -> Iterator[Batch]:
    """Lessons `size` at a time, with what they teach: the model's tokens, and the answers.

    tools: a part that begins with a call of one of these is a dialogue, and its first call is taught as well.
    """

    def one(text: str) -> int:
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        return token

    opens = {one(call_opening(*tool)) for tool in tools}
    marks = Marks(
        opens=opens,
        answers={one(" yes"), one(" no")},
        starts={one(RESULT_END)},
        end=tokenizer.convert_tokens_to_ids(END),
    )
    while True:
        part = list(islice(taught, size))
        texts = [text for lesson in part for text in (lesson.prompt, *lesson.parts)]
        spelt = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        rows = [[next(spelt) for _ in range(1 + len(lesson.parts))] for lesson in part]
        yield _packed(rows, marks, tokenizer.pad_token_id)


class Marks(NamedTuple):
    """Token ids that say what is taught."""

    opens: set[int]
    answers: set[int]
    starts: set[int]
    end: int


def _packed(rows: list[list[list[int]]], marks: Marks, pad: int) -> Batch:
    longest = max(sum(map(len, row)) for row in rows)
    batch = Batch(*(torch.full((len(rows), longest), fill) for fill in (pad, IGNORED, 0, -1)))
    for i, (prompt, *parts) in enumerate(rows):
        start = len(prompt)
        ids, labels, positions, numbers = list(prompt), [IGNORED] * start, list(range(start)), [0] * start
        for number, part in enumerate(parts, 1):
            ids += part
            labels += _labels(part, marks)
            positions += range(start, start + len(part))
            numbers += [number] * len(part)
        for tensor, values in zip(batch, (ids, labels, positions, numbers), strict=True):
            tensor[i, : len(ids)] = torch.tensor(values)
    return batch


def _labels(ids: list[int], marks: Marks) -> list[int]:
    """What is taught of one part. The first token of a part is predicted from the prompt: the trainer sees to that."""
    own = ids[0] in marks.opens  # a dialogue; a drill teaches its answers and what follows the call's opening
    labels = []
    for token in ids:
        labels.append(token if own or token in marks.answers else IGNORED)
        own = token in marks.starts or token in marks.opens or (own and token != marks.end)
    return labels


def sight(batch: Batch) -> Tensor:
    """(B, T, T) bool: who sees whom. Earlier tokens of the prompt and of the same part; padding sees itself."""
    parts_BT, length = batch.parts_BT, batch.parts_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool).tril()
    same_BTT = parts_BT[:, :, None] == parts_BT[:, None, :]
    return causal_TT & (same_BTT | (parts_BT == 0)[:, None, :])
