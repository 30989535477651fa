"""The scorers of reasoning-gym, for the entry a dataset made or can make again."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from entrl.verify.gym_scorers import refuse_evaluating


def reasoning_gym_score(text: str, spec: Mapping[str, Any]) -> float:
    """The score of the dataset that made the problem, for the entry it made or can make again."""
    dataset = _dataset(spec["dataset"], json.dumps(spec.get("config", {}), sort_keys=True))
    entry = spec["entry"] if "entry" in spec else dataset[spec["index"]]
    tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    return float(dataset.score_answer((tagged[-1] if tagged else text).strip(), entry))


@functools.lru_cache(maxsize=256)
def _dataset(name: str, config: str) -> Any:
    refuse_evaluating(name)
    from reasoning_gym import create_dataset

    return create_dataset(name, **{"seed": 0, "size": 1, **json.loads(config)})
