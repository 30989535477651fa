"""How an evaluation scores what a model wrote: the same answers, by the same tags, as the trainer gives to rewards."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entrl.maths.phases import ThinkTags
from entrl.settings.names import load_object
from entrl.verify.golds import GoldCheck, check_golds

Score = Callable[..., list[float | None]]
Count = Callable[[str], float]  # how often something stands in a completion's text

DEFAULT_SCORE = "entrl_rewards.accuracy:reward"  # a string: the library takes rewards, it does not import them
WORTH_A_WORD = 16  # completions below which silence says nothing, our choice


def scorer(score: Score | str) -> Score:
    """`score` itself, or the method of the reward that it names."""
    if not isinstance(score, str):
        return score
    module, _, attribute = score.partition(":")
    return getattr(importlib.import_module(module), attribute or "reward").score


def counters(counts: Mapping[str, str], *, base: Path | None = None) -> dict[str, Count]:
    """Name -> function of a completion's text, from "module:function" or "file.py:function"; TypeError for others.

    base: the recipe's folder, where a file is looked for before the working directory
    """
    found = {name: load_object(where, base=base).value for name, where in counts.items()}
    for name, value in found.items():
        if not callable(value):
            raise TypeError(f"count {name!r} ({counts[name]}) is a {type(value).__name__}; name a function of a text")
    return found


def scores(
    score: Score,
    texts: Sequence[str],
    answers: Sequence[str],
    dataset: Any,
    *,
    times: int = 1,
) -> list[float | None]:
    """1, 0 or None per text, `times` texts for each row of the data set.

    answers: what each text answers; for a score that names `answer_texts`, as a reward does.
    """

    def repeated(column: str) -> list[Any]:
        values = dataset[column] if column in dataset.column_names else [None] * len(dataset)
        return [value for value in values for _ in range(times)]

    asks = "answer_texts" in inspect.signature(score).parameters
    known = {"answer_texts": list(answers)} if asks else {}
    found = score(list(texts), repeated("answer"), repeated("verifier"), **known)
    strange = next((s for s in found if s not in (0.0, 1.0, None)), None)
    if strange is not None:
        raise ValueError(f"score must give 0, 1 or None, got {strange}; cut graded scores at a threshold")
    return found


def checked_golds(score: Score, dataset: Any) -> GoldCheck | None:
    """The golds of an evaluation, where its score says by which kind they are judged; ValueError where none can be."""
    kind = getattr(getattr(score, "__self__", None), "judges", None)
    if kind is None:
        return None
    found = check_golds(dataset, default=kind)
    if problems := found.problems("evaluation"):
        raise ValueError(problems[0])
    for line in found.warnings("evaluation", f"so it is scored over {found.rows - len(found.bad):,} problems"):
        warnings.warn(line, stacklevel=3)
    return found


def tags_of(tokenizer: Any, think_open: str, think_close: str) -> ThinkTags | None:
    """The tags as tokens; None, with a warning, where the tokenizer cannot spell them."""
    try:
        return ThinkTags.from_tokenizer(tokenizer, open=think_open, close=think_close)
    except ValueError as error:  # its one message: the tokenizer cannot encode the tag
        warnings.warn(f"{error}; as it is, everything a completion says counts as its answer", stacklevel=3)
        return None


def warn_of_silence(completions: int, closed: int | None, scored: int, right: int, think_close: str) -> None:
    """Say so where the closing tag never occurs, or where nothing is right and nobody may have looked.

    closed: completions with a closing tag, None where the tokenizer cannot spell it. scored, right: answers.
    """
    if completions < WORTH_A_WORD:
        return
    if closed == 0:
        warnings.warn(
            f"the closing tag {think_close!r} stands in none of {completions} completions; give the model's own "
            "tags (think_open, think_close; on the command line --think-open and --think-close), unless it marks no "
            "thinking",
            stacklevel=3,
        )
    if not right:
        warnings.warn(
            f"none of {scored} completions is right; {closed or 0} of them close their thinking with {think_close!r}. "
            "Look at some before believing it: tags, template arguments, the limit of tokens, the golds",
            stacklevel=3,
        )
