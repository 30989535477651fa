"""Scores of reasoning-gym problems, for the entry a dataset made or can make again.

The score is the dataset's own, or our grader's where its own would run the text (see `entrl.verify.gym_scorers`).
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from entrl.verify.gym_graders import GRADERS
from entrl.verify.gym_scorers import check_dataset, hopeless

CALLS = "()[]{}\\'\"`;"  # what a config's words never need, and a call, a subscript or a string would


def reasoning_gym_score(text: str, spec: Mapping[str, Any]) -> float:
    """The score, from 0 to 1, of the dataset that made the problem. ValueError for a dataset that is not allowed."""
    name = str(spec["dataset"])
    check_dataset(name)
    dataset = _dataset(name, json.dumps(spec.get("config", {}), sort_keys=True))
    entry = spec["entry"] if "entry" in spec else dataset[spec["index"]]
    text = text.strip()
    if name in GRADERS:
        score = GRADERS[name](text, entry, dataset.config)
    else:
        score = 0.0 if hopeless(name, text) else _own_score(dataset, text, entry)
    return min(score, 1.0) if score > 0 else 0.0  # NaN is no score


def _own_score(dataset: Any, answer: str, entry: Mapping[str, Any]) -> float:
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:  # these scorers raise anything over an answer that is none
        dataset.score_answer(entry["answer"], entry)  # raises again when the entry is at fault, which is no verdict
        return 0.0


@functools.lru_cache(maxsize=256)
def _dataset(name: str, config: str) -> Any:
    from reasoning_gym import create_dataset

    options = json.loads(config)
    _check_words(options)
    return create_dataset(name, **{"seed": 0, "size": 1, **options})


def _check_words(value: Any) -> None:
    """Some generators put words of their config into expressions that they evaluate, such as the operators of a sum."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_words(part)
    if isinstance(value, str) and any(char in CALLS for char in value):
        raise ValueError(f"config of a reasoning-gym verifier: {value!r} holds one of {CALLS}; only plain words may")
