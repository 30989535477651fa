"""What a request asks of the sampler plugin: to record, to truncate. Importable without vLLM.

The wishes travel in `SamplingParams.extra_args["entrl"]`, as an object or its JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from entrl.maths.truncation import Rule


@dataclass(frozen=True, kw_only=True)
class TopHOptions:
    """Top-H truncation of one request; see `entrl.maths.truncation.top_h_keep`."""

    alpha: float  # share of the entropy the truncated distribution may keep, in (0, 1]
    rule: Rule = "paper"
    top_n: int | None = None  # only the n most likely tokens are looked at; None: all ("paper"), 100 ("reference")

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not 0 < self.alpha <= 1:
            raise ValueError(f"top_h alpha must be a number in (0, 1], got {self.alpha!r}; the paper uses 0.4")
        if self.rule not in get_args(Rule):
            raise ValueError(f"top_h rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")
        if self.top_n is not None and (not isinstance(self.top_n, int) or self.top_n < 1):
            raise ValueError(f"top_h top_n must be an integer >= 1 or null for all tokens, got {self.top_n!r}")


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What one request asks of the sampler."""

    record: bool = False  # entropy and kept mass of every sampled token
    key: str = ""  # under which they can be taken; children of n > 1 share it, so may whole batches
    top_h: TopHOptions | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.record, bool):
            raise ValueError(f"entrl record must be true or false, got {self.record!r}")
        if not isinstance(self.key, str):
            raise ValueError(f"entrl key must be text, got {self.key!r}")
        if self.record and not self.key:
            raise ValueError("entrl record needs a key under which the values can be taken; give a unique one")


def request_options(key: str, *, record: bool = True, top_h: TopHOptions | None = None) -> dict[str, str]:
    """The value of `SamplingParams.extra_args` in process, and of `vllm_xargs` over HTTP (which carries no objects)."""
    asked: dict[str, Any] = {"record": record, "key": key}
    if top_h is not None:
        asked["top_h"] = {"alpha": top_h.alpha, "rule": top_h.rule, "top_n": top_h.top_n}
    return {"entrl": json.dumps(asked)}


def read_options(extra_args: Mapping[str, Any] | None) -> RequestOptions | None:
    """The wishes in `extra_args["entrl"]`, a mapping or its JSON; None without any. ValueError on what is not known."""
    asked = (extra_args or {}).get("entrl")
    if asked is None:
        return None
    if isinstance(asked, str):
        try:
            asked = json.loads(asked)
        except json.JSONDecodeError as error:
            raise ValueError(f"extra_args['entrl'] is text but not JSON: {error}") from error
    asked = _fields(asked, "entrl", ("record", "key", "top_h"))
    top_h = asked.get("top_h")
    if top_h is not None:
        top_h = _fields(top_h, "entrl top_h", ("alpha", "rule", "top_n"))
        if "alpha" not in top_h:
            raise ValueError("entrl top_h needs alpha, the share of the entropy to keep; the paper uses 0.4")
        asked["top_h"] = TopHOptions(**top_h)
    options = RequestOptions(**asked)
    return options if options.record or options.top_h is not None else None


def _fields(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object with the keys {', '.join(known)}, got {value!r}")
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{name} has the unknown keys {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    return dict(value)
