"""Adaptive cold start (AdaCS): choose SFT answers whose length fits the difficulty of their problem.

    L_target(p) = (1 - p) L(0) + p L(1)      p the problem's pass rate

L(0) and L(1) are the median lengths of the answers to problems with pass rate 0 and 1, per data source. Answers are
taken uniformly over brackets of the pass rate (the bracket p = 1 like any other), in each those nearest the target
of their own problem and source. The control ("vanilla") takes uniformly over brackets and at random inside.

Source:  ARES, arXiv 2510.08457v1, section 3.1; no selection code was published
Differs: the paper gives neither a tolerance nor counts. Nearness is |length - target| / target, so that sources of
         other lengths compete fairly in one bracket; equal distances are decided by the seed. A bracket that holds
         less than was asked for gives all it has, and is not filled up from others: the report says how many it lacks
Needs:   nothing; plain Python, and integers wherever pass rates are compared
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any, NamedTuple

FALLBACKS = ("error", "nearest")


@dataclass(frozen=True, kw_only=True)
class CurationSpec:
    """How answers are chosen. The defaults of what the paper leaves open are ours."""

    brackets: int = 8  # steps of the pass rate from 0 to 1, so one bracket more: 0, 1/8, ..., 1
    per_bracket: int | None = None  # answers of a bracket; None = as many as the poorest bracket that holds any
    per_problem: int | None = 1  # answers of a problem; None = no limit
    length_target: bool = True  # False: the control, which ignores lengths
    tolerance: float | None = None  # largest |length - target| / target that is taken; None = any
    only_correct: bool = False  # take verified right answers alone; pass rates and medians still see all of them
    fallback: str = "error"  # a source without pass rate 0 or 1: stop, or take the `nearest` pass rate it has
    seed: int = 0

    def __post_init__(self) -> None:
        if self.brackets < 1:
            raise ValueError(f"curation.brackets must be >= 1 (2 brackets: failed and solved), got {self.brackets}")
        for name in ("per_bracket", "per_problem"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"curation.{name} must be >= 1, got {value}; leave it out for the default")
        if self.tolerance is not None and self.tolerance < 0:
            raise ValueError(f"curation.tolerance is a share of the target and must be >= 0, got {self.tolerance}")
        if self.tolerance is not None and not self.length_target:
            raise ValueError("curation.tolerance has no meaning without a length target; drop one of the two")
        if self.fallback not in FALLBACKS:
            raise ValueError(f"curation.fallback must be one of {', '.join(FALLBACKS)}, got {self.fallback!r}")


class Source(NamedTuple):
    """The ends of one source's line of targets."""

    length_0: float  # tokens: median over all answers to problems with pass rate 0
    length_1: float  # the same, pass rate 1
    substituted: tuple[str, ...] = ()  # which of them are of the nearest pass rate there was


class Curated(NamedTuple):
    indices: list[int]  # of the rows taken, ascending
    report: dict[str, Any]  # plain objects for JSON; see `curate`


def target_length(pass_rate: float | Fraction, length_0: float, length_1: float) -> float:
    """Tokens an answer should have; from length_0 for unsolved problems to length_1 for those always solved."""
    if not 0 <= pass_rate <= 1:
        raise ValueError(f"pass rate must be in [0, 1], got {pass_rate}")
    return float((1 - pass_rate) * length_0 + pass_rate * length_1)


def bracket_of(pass_rate: Fraction, brackets: int) -> int:
    """0..brackets: the nearest multiple of 1/brackets, a tie goes up. Exact, whatever the pass rate."""
    scaled = 2 * pass_rate * brackets + 1
    return int(scaled // 2)


def _as_written(rate: Any) -> Fraction:
    """0.3 as 3/10, not as the nearest binary fraction, which lies on one side of a bracket's border."""
    return rate if isinstance(rate, Fraction) else Fraction(repr(float(rate)))


def pass_rates(rows: Sequence[Mapping[str, Any]]) -> list[Fraction | None]:
    """Per row, the pass rate of its problem: its `pass_rate`, else right answers over verified ones.

    None for a problem without any verified answer. Raises ValueError for a pass rate outside [0, 1], and for rows of
    one problem that disagree about it.
    """
    given: dict[tuple[str, str], Fraction] = {}
    counts: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        if row.get("pass_rate") is None:
            verdict = _verdict(row.get("correct"), i)
            counted = counts.setdefault(_problem(row), [0, 0])
            counted[0] += verdict == 1
            counted[1] += verdict is not None
            continue
        rate = _as_written(row["pass_rate"])
        if not 0 <= rate <= 1:
            raise ValueError(f"row {i} has pass_rate {row['pass_rate']}; it must be in [0, 1]")
        if given.setdefault(_problem(row), rate) != rate:
            raise ValueError(f"rows of problem {row['problem_id']!r} have different pass rates; make them equal")
    if both := given.keys() & counts.keys():
        raise ValueError(f"problem {min(both)[1]!r} has rows with and without pass_rate; give it to all or to none")
    measured = {problem: Fraction(c, n) if n else None for problem, (c, n) in counts.items()}
    return [(given | measured)[_problem(row)] for row in rows]


def _problem(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("source", "")), str(row["problem_id"])


def _verdict(correct: Any, index: int) -> int | None:
    if correct is None:
        return None
    if correct not in (0, 1):
        raise ValueError(f"row {index} has correct {correct!r}; write 1, 0, or null where nobody checked")
    return int(correct)


def source_lengths(
    rows: Sequence[Mapping[str, Any]], rates: Sequence[Fraction | None], *, fallback: str = "error"
) -> dict[str, Source]:
    """source -> the ends of its line of targets; ValueError for a source without one, unless `fallback` says else."""
    lengths: dict[str, dict[Fraction, list[float]]] = {}
    for row, rate in zip(rows, rates, strict=True):
        if rate is not None:
            lengths.setdefault(str(row.get("source", "")), {}).setdefault(rate, []).append(row["length"])
    found = {}
    for source, by_rate in sorted(lengths.items()):
        missing = tuple(f"length_{end}" for end in (0, 1) if Fraction(end) not in by_rate)
        if missing and fallback == "error":
            rate = " and ".join(name[-1] for name in missing)
            raise ValueError(
                f"source {source!r} has no problem with pass rate {rate} (it has {_span(by_rate)}), so its target "
                "lengths have no end there; add such problems, or set curation.fallback: nearest to take the nearest"
            )
        found[source] = Source(float(median(by_rate[min(by_rate)])), float(median(by_rate[max(by_rate)])), missing)
    return found


def _span(rates: Mapping[Fraction, Any]) -> str:
    return f"{float(min(rates)):.3g} to {float(max(rates)):.3g}"


def curate(rows: Sequence[Mapping[str, Any]], spec: CurationSpec) -> Curated:
    """Choose rows of {problem_id, source?, length, correct or pass_rate}; the same seed gives the same choice.

    The report: `sources` (lengths at both ends), `brackets` (per source and bracket: available, problems, eligible,
    taken, median lengths in tokens, target at the bracket's middle), `asked` per bracket, `lacking` per bracket,
    `unrated` rows. Raises ValueError where nothing can be taken.
    """
    rates = pass_rates(rows)
    ends = source_lengths(rows, rates, fallback=spec.fallback) if spec.length_target else {}
    rated = [i for i, rate in enumerate(rates) if rate is not None]
    random.Random(spec.seed).shuffle(rated)  # decides ties, and everything where lengths are ignored
    off = {i: _off_target(rows[i], rates[i], ends) for i in rated}
    order = sorted((i for i in rated if _eligible(rows[i], off[i], spec)), key=lambda i: off[i])  # stable
    queues: dict[int, list[int]] = {}
    taught: dict[tuple[str, str], int] = {}
    for i in order:
        problem = _problem(rows[i])
        taught[problem] = taught.get(problem, 0) + 1
        if spec.per_problem is None or taught[problem] <= spec.per_problem:
            queues.setdefault(bracket_of(_known(rates[i]), spec.brackets), []).append(i)
    if not queues:
        raise ValueError(f"none of the {len(rows)} answers can be taken; loosen tolerance, or check `correct`")
    asked = spec.per_bracket or min(len(queue) for queue in queues.values())
    taken = sorted(i for queue in queues.values() for i in queue[:asked])
    report = {
        "answers": len(rows),
        "taken": len(taken),
        "unrated": len(rows) - len(rated),
        "asked": asked,
        "lacking": {str(b): lack for b in range(spec.brackets + 1) if (lack := asked - len(queues.get(b, []))) > 0},
        "sources": {name: {**end._asdict(), "substituted": list(end.substituted)} for name, end in ends.items()},
        "brackets": _table(rows, rates, {i for q in queues.values() for i in q}, set(taken), ends, spec.brackets),
    }
    return Curated(taken, report)


def _known(rate: Fraction | None) -> Fraction:
    assert rate is not None  # rows without a pass rate were left out
    return rate


def _off_target(row: Mapping[str, Any], rate: Fraction | None, ends: Mapping[str, Source]) -> float:
    """|length - target| / target; 0 where lengths are ignored."""
    end = ends.get(str(row.get("source", "")))
    if end is None or rate is None:
        return 0.0
    target = target_length(rate, end.length_0, end.length_1)
    return abs(row["length"] - target) / max(target, 1.0)  # a target below one token is one of empty answers


def _eligible(row: Mapping[str, Any], off: float, spec: CurationSpec) -> bool:
    near = spec.tolerance is None or off <= spec.tolerance
    return near and (not spec.only_correct or row.get("correct") == 1)


def _table(
    rows: Sequence[Mapping[str, Any]],
    rates: Sequence[Fraction | None],
    eligible: set[int],
    taken: set[int],
    ends: Mapping[str, Source],
    brackets: int,
) -> list[dict[str, Any]]:
    """One entry per source and bracket that holds answers."""
    cells: dict[tuple[str, int], list[int]] = {}
    for i, rate in enumerate(rates):
        if rate is not None:
            cells.setdefault((str(rows[i].get("source", "")), bracket_of(rate, brackets)), []).append(i)
    found = []
    for (source, bracket), mine in sorted(cells.items()):
        end, chosen = ends.get(source), [i for i in mine if i in taken]
        middle = Fraction(bracket, brackets)
        found.append(
            {
                "source": source,
                "bracket": bracket,
                "pass_rate": float(middle),
                "available": len(mine),
                "problems": len({rows[i]["problem_id"] for i in mine}),
                "eligible": len(eligible & set(mine)),
                "taken": len(chosen),
                "median_length": float(median(rows[i]["length"] for i in mine)),
                "median_length_taken": float(median(rows[i]["length"] for i in chosen)) if chosen else None,
                "target": None if end is None else target_length(middle, end.length_0, end.length_1),
            }
        )
    return found
