"""`entrl try-reward`: a reward called on completions that were kept, and everything about what it returned.

It is loaded as recipes load theirs, and called as the trainer does: once per rollout, with the columns and signals that
are known of it. Nothing is trained.
"""

import dataclasses
import inspect
import math
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrl.errors import told
from entrl.runs.plan.checks import required_names
from entrl.runs.plan.limits import NotBack, apart
from entrl.runs.plan.loading import is_own, load_apart, with_limit
from entrl.runs.recipe import LONGEST_TRIAL_S
from entrl.runs.reward_call import called, signals_of
from entrl.runs.specs import load_reward
from entrl.runs.stored import Stored
from entrl.runs.wording import one_line
from entrl.settings.arguments import TRL_KEYWORDS
from entrl.settings.names import Loaded, find_file, import_file
from entrl.trainers.shared.first_look import think_tags_of
from entrl.trainers.shared.rewards import SCORED_SIGNALS, SHARED_SIGNALS, RewardError, guarded

SHOWN = 160  # characters of a completion


@dataclass(kw_only=True)
class Tried:
    """values: one per completion, None where the reward gave none; NaN and infinity as they came."""

    reward: str
    file: str | None
    completions: int
    asked: dict[str, bool] = field(default_factory=dict)  # column or signal it names -> whether it is there
    values: list[float | None] = field(default_factory=list)
    odd: dict[str, int] = field(default_factory=dict)  # "None", "NaN", "infinite", "not a number" -> how many
    seconds: list[float] = field(default_factory=list)  # of each call
    groups: int = 0
    flat: int = 0  # groups whose values are all the same
    spread: float | None = None  # mean standard deviation within a group
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ends: list[tuple[float, str]] = field(default_factory=list)  # lowest and highest, with their completion

    @property
    def finite(self) -> list[float]:
        return [v for v in self.values if v is not None and math.isfinite(v)]

    def to_json(self) -> dict[str, Any]:
        finite = self.finite
        summary = {
            "mean": statistics.fmean(finite) if finite else None,
            "std": statistics.pstdev(finite) if finite else None,
            "min": min(finite, default=None),
            "max": max(finite, default=None),
            "seconds_per_call": statistics.fmean(self.seconds) if self.seconds else None,
        }
        found = dataclasses.asdict(self) | summary
        found["values"] = [v if v is None or math.isfinite(v) else str(v) for v in self.values]
        return found

    def render(self) -> str:
        rows = [("reward", f"{self.reward}  ({self.file})"), ("completions", f"{self.completions:,}")]
        there = [f"{name} ({'there' if given else 'NOT there'})" for name, given in sorted(self.asked.items())]
        rows.append(("asks for", ", ".join(there) or "nothing but completions"))
        if finite := self.finite:
            mean, std = statistics.fmean(finite), statistics.pstdev(finite)
            rows.append(("values", f"mean {mean:.4g}, std {std:.4g}, {min(finite):.4g} to {max(finite):.4g}"))
        if self.odd:
            rows.append(("besides", ", ".join(f"{count} {what}" for what, count in self.odd.items())))
        if self.groups:
            rows.append(("groups", f"{self.groups}, {self.flat} without spread; mean std within one {self.spread:.4g}"))
        if self.seconds:
            calls = f"{statistics.fmean(self.seconds) * 1e3:.3g} ms a call, the longest {max(self.seconds) * 1e3:.3g}"
            rows.append(("time", f"{calls} ({len(self.seconds)} calls)"))
        rows += [(f"{value:.4g} for", text) for value, text in self.ends]
        width = max(len(label) for label, _ in rows)
        lines = [f"{label:<{width}}  {text}" for label, text in rows]
        return "\n".join(
            [*lines, *(f"problem: {one_line(p)}" for p in self.problems), *(f"note: {one_line(n)}" for n in self.notes)]
        )


def find_reward(name: str, args: Mapping[str, Any], *, base: Path | None = None) -> Loaded:
    """As `rewards: [{use, args}]` would; a file alone means the one function or class that it defines."""
    if name.endswith(".py"):
        name = f"{name}:{_only_one(name, base)}"
    return load_reward(name, args, base=base)


def _only_one(name: str, base: Path | None) -> str:
    module = import_file(find_file(name, base))
    own = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if hasattr(module, "reward"):
        return "reward"
    if len(own) != 1:
        raise ValueError(f"{name} defines {', '.join(own) or 'no function'}; write one of them as {name}:NAME")
    return own[0]


def try_apart(name: str, args: Mapping[str, Any], stored: Stored, *, seconds: float) -> Tried:
    """Load it and call it, each in a fork first that has `seconds`; one that does not come back is a problem of it.

    ValueError for seconds beyond what can be waited, and as `find_reward` for what cannot be loaded.
    """
    if not 0 < seconds <= LONGEST_TRIAL_S:
        raise ValueError(f"--timeout must be above 0 and at most {LONGEST_TRIAL_S} seconds (a day), got {seconds:g}")
    try:
        load_apart(lambda: find_reward(name, args), name, seconds=seconds)
        loaded = find_reward(name, args)
        if sys.platform != "linux" or not is_own(name):
            return try_reward(loaded, stored)
        return apart(seconds, lambda: try_reward(loaded, stored), f"reward {name}")
    except NotBack as error:
        return Tried(reward=name, file=None, completions=len(stored.rows), problems=[with_limit(error, "--timeout")])


def try_reward(loaded: Loaded, stored: Stored) -> Tried:
    """Call it on everything that is stored."""
    tried = Tried(reward=loaded.source, file=loaded.file, completions=len(stored.rows), notes=list(stored.notes))
    shared = _shared(stored)
    given = {*stored.columns, *TRL_KEYWORDS, *(name for name, value in shared.items() if value is not None)}
    asked = _asked(loaded.value)
    tried.asked = {name: name in given for name in sorted(asked - {"completions", "prompts"})}
    scored = set(getattr(loaded.value, "needs", ())) & set(SCORED_SIGNALS)
    if lacking := sorted((required_names(loaded.value) | scored) - given):
        have = ", ".join(sorted(stored.columns)) or "none"
        tried.problems.append(
            f"{loaded.source} needs {', '.join(lacking)}, which the stored completions have not (columns: {have}); "
            f"{_cure(lacking)}"
        )
        return tried
    (guard,) = guarded([loaded.value], **shared)
    for rows in stored.calls():
        _call(guard, rows, tried)
    _judge(tried, stored)
    return tried


def _cure(lacking: list[str]) -> str:
    if "token_logprobs" in lacking:
        return "log-probabilities are not kept; look at this reward in a run of a few steps"
    if "token_entropies" in lacking:
        return (
            "a run keeps entropies where one of its rewards or controllers reads them; take such a run, or train a few "
            "steps with this reward"
        )
    return "add the column to the file, or name a run whose data has it"


def _asked(reward: Any) -> set[str]:
    named = {
        p.name
        for p in inspect.signature(reward).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in TRL_KEYWORDS - {"completions"}
    }
    return named | set(getattr(reward, "columns", ())) | set(getattr(reward, "needs", ()))


def _shared(stored: Stored) -> dict[str, Any]:
    """Values of `SHARED_SIGNALS`; None for those that are not known of these completions."""
    tags = None
    if stored.tokenizer is not None and stored.recipe is not None:
        from entrl.runs.plan.checks import build_args

        tags = think_tags_of(stored.tokenizer, build_args(stored.recipe, 1), needed=False, warn=lambda _: None)
    known = {"gather": list, "training": True, "tokenizer": stored.tokenizer, "think_tags": tags}
    return {name: known[name] for name in SHARED_SIGNALS}


def _call(guard: Any, rows: list[dict[str, Any]], tried: Tried) -> None:
    start = time.perf_counter()
    try:
        values = guard.sized(called(guard.called, signals_of(rows)), rows=len(rows))
    except RewardError as error:
        if str(error) not in tried.problems:
            tried.problems.append(str(error))
        tried.values += [None] * len(rows)
        tried.odd["not judged"] = tried.odd.get("not judged", 0) + len(rows)
        return
    finally:
        tried.seconds.append(time.perf_counter() - start)
    tried.values += [_number(value, tried) for value in values]


def _number(value: Any, tried: Tried) -> float | None:
    """The value as a number; what is none is counted."""
    what, number = None, None
    if value is None:
        what = "None"
    else:
        try:
            number = float(value)
            what = None if math.isfinite(number) else "NaN" if math.isnan(number) else "infinite"
        except (TypeError, ValueError):
            what = f"not a number ({type(value).__name__})"
        except OverflowError:  # an integer that no float holds
            number, what = math.inf, "infinite"
        except Exception as error:  # whatever its __float__ raises
            what = f"not a number ({told(error)})"
    if what is not None:
        tried.odd[what] = tried.odd.get(what, 0) + 1
    return number


def _judge(tried: Tried, stored: Stored) -> None:
    """Problems that training would stop on or learn nothing from, and the spread within groups."""
    for what, count in tried.odd.items():
        if what not in ("None", "not judged"):
            tried.problems.append(
                f"{count} of {tried.completions} values are {what}; training stops there: return a "
                "finite number, or None where it does not apply"
            )
    finite = tried.finite
    if not finite and not tried.problems:
        tried.problems.append("it returned None for every completion: it applies to none of them, and pays nothing")
    if len(finite) > 1 and len(set(finite)) == 1:
        tried.problems.append(
            f"it returned {finite[0]:g} for every completion: a reward that never differs trains nothing"
        )
    _spread(tried, stored)
    if finite:
        pairs = zip(tried.values, stored.rows, strict=True)
        texts = [(v, _text(row["completion"])) for v, row in pairs if v is not None and math.isfinite(v)]
        tried.ends = list(dict.fromkeys([min(texts), max(texts)]))


def _spread(tried: Tried, stored: Stored) -> None:
    groups: dict[Any, list[float]] = {}
    for value, row, step in zip(tried.values, stored.rows, stored.steps, strict=True):
        if value is not None and math.isfinite(value):
            key = (step, row["group_index"] if "group_index" in row else _text(row["prompt"]))
            groups.setdefault(key, []).append(value)
    several = [values for values in groups.values() if len(values) > 1]
    tried.groups, tried.flat = len(several), sum(len(set(values)) == 1 for values in several)
    tried.spread = statistics.fmean(map(statistics.pstdev, several)) if several else None
    if several and tried.flat == len(several) and len(set(tried.finite)) > 1:
        tried.problems.append(
            f"{tried.reward} is the same for all completions of a prompt, in each of {len(several)} groups: only "
            "differences within a group train"
        )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "\n".join(str(turn.get("content")) for turn in value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
