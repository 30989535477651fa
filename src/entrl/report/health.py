"""Is a run healthy: what went wrong or makes its curves mean something else, and the values that were looked at.

Thresholds are those of the rule table (`entrl.diagnosis.rules`), which says what to change; here they are put into the
report's words, with what was looked at and found well.
"""

from typing import NamedTuple

from entrl.diagnosis.rules import FEW, NUMBERS, asked_for_less, end_mean, entropy_ends, threshold
from entrl.report.metrics import by_task
from entrl.report.read import RunRecord, metric_names, series
from entrl.settings.json_lines import is_number

TRUNCATED_SHARE, MISSING_TAGS = threshold("truncated"), threshold("thinking not closed")
ENTROPY_LEFT, ENTROPY_TIMES = threshold("entropy collapsed"), threshold("entropy surged")
FLAT_GROUPS, ALL_FLAT = threshold("groups flat"), threshold("rewards equal")
VERIFIER = {"verify_timeout": "timeouts", "verify_crash": "crashes"}


class Health(NamedTuple):
    """`findings`: what is wrong, worst first. `looked_at`: name with value of each check that could be made."""

    findings: list[str]
    looked_at: list[str]
    notes: list[str]  # what is as it was asked to be, and still worth knowing


def health_of(run: RunRecord) -> Health:
    """Everything that changes how a run's numbers should be read."""
    checks = [_broken(run), _truncated(run), _missing_tags(run), _flat(run), _entropy(run)]
    findings = [*_verifier(run), *_controllers(run), *(c.finding for c in checks if c and c.finding)]
    said = run.manifest.get("warnings")
    warned = [str(w) for w in said] if isinstance(said, list) else []
    notes = [c.note for c in checks if c and c.note]
    return Health([*findings, *warned, *run.notes], [c.value for c in checks if c and c.value], notes)


def warnings_of(run: RunRecord) -> list[str]:
    """How the run ended, if not well, and what `health_of` finds."""
    status, error = str(run.manifest.get("status") or "unknown"), run.manifest.get("error")
    found = [] if status == "finished" else [f"status is {status}: the run did not finish"]
    return [*found, *([f"it stopped with {error}"] if error else []), *health_of(run).findings]


class _Check(NamedTuple):
    value: str = ""
    finding: str = ""
    note: str = ""


def _broken(run: RunRecord) -> _Check | None:
    """A number that is none is read as None (`entrl.report.read`); a metric that was not logged has no key."""
    bad = {what: sum(key in row and row[key] is None for row in run.train) for key, what in NUMBERS.items()}
    found = [f"{what} in {count}" for what, count in bad.items() if count]
    return _Check(finding=f"not a number: {', '.join(found)} of {len(run.train)} logged steps") if found else None


def _truncated(run: RunRecord) -> _Check | None:
    found = _at_end(run, "completions/clipped_ratio", "truncation_rate")
    return _share(found, TRUNCATED_SHARE, "truncated", "truncated")


def _missing_tags(run: RunRecord) -> _Check | None:
    found = _at_end(run, "pear/missing_close", "missing_close_rate")
    return _share(found, MISSING_TAGS, "without a closing tag", "never close their thinking")


def _share(found: tuple[float | None, str], most: float, is_so: str, too_many: str) -> _Check | None:
    """A share of completions that is fine up to `most`."""
    share, when = found
    if share is None:
        return None
    if share <= most:
        return _Check(value=f"{share:.0%} {is_so}")
    return _Check(finding=f"{share:.0%} of completions {too_many} {when} (over {most:.0%})")


def _at_end(run: RunRecord, metric: str, key: str) -> tuple[float | None, str]:
    """A share at the end of training, or of the evaluation after it (the worst task) where it was not logged."""
    if (share := end_mean(series(run.train, metric)[1])) is not None:
        return share, "at the end of training"
    found = [v for result in by_task(run.eval_after).values() if is_number(v := result.get(key))]
    return (max(found) if found else None), "in the evaluation after training"


def _flat(run: RunRecord) -> _Check | None:
    shares = series(run.train, "groups/without_spread")[1]
    end = end_mean(shares)
    if end is None:
        return None
    empty = sum(share >= 1 for share in shares) / len(shares)
    if empty > ALL_FLAT and (empty == 1 or len(shares) >= FEW):
        return _Check(finding=f"in {empty:.0%} of rollouts every group had equal rewards: updates without any gradient")
    if end > FLAT_GROUPS:
        return _Check(finding=f"{end:.0%} of groups have equal rewards at the end: most samples give no gradient")
    return _Check(value=f"{end:.0%} of groups without spread")


def _entropy(run: RunRecord) -> _Check | None:
    ends = entropy_ends(run.train)
    if ends is None:
        return None
    first, last = ends
    left = last / first
    if left > ENTROPY_TIMES:
        return _Check(finding=f"entropy rose to {left:.1f} times its start ({first:.3f} → {last:.3f} nats)")
    if left >= ENTROPY_LEFT:
        return _Check(value=f"entropy at {left:.0%} of its start")
    text = f"entropy fell to {left:.0%} of its start ({first:.3f} → {last:.3f} nats)"
    if asked_for_less(run.train):
        return _Check(note=f"{text}: PEAR asks for that; little is left to explore")
    return _Check(finding=f"{text}: little is left to explore")


def _verifier(run: RunRecord) -> list[str]:
    found = []
    for metric in metric_names(run.train):
        if (what := VERIFIER.get(metric.rpartition("/")[2])) is not None:
            bad = sum(value > 0 for value in series(run.train, metric)[1])
            if bad:
                found.append(f"verifier: {what} in {bad} of {len(run.train)} logged steps")
    for which, evaluation in (("before", run.eval_before), ("after", run.eval_after)):
        for task, result in by_task(evaluation).items():
            unverified, where = result.get("unverified"), f" ({task})" if task else ""
            if is_number(unverified) and unverified:
                found.append(f"verifier: {unverified} answers unverified in the evaluation {which} training{where}")
    return found


def _controllers(run: RunRecord) -> list[str]:
    selected = {m: series(run.train, m)[1] for m in metric_names(run.train) if m.endswith("/selected")}
    found = [
        f"{metric.removesuffix('/selected')} selected 0 tokens in {values.count(0)} of {len(values)} logged steps"
        for metric, values in selected.items()
        if 2 * values.count(0) > len(values)
    ]
    for entry in run.recipe.get("controllers") or []:
        use = str(entry.get("use")) if isinstance(entry, dict) else str(entry)
        if run.train and use in {"kl_cov", "clip_cov"} and f"{use}/selected" not in selected:
            found.append(f"the recipe asks for {use}, but no selected tokens were ever logged")
    return found
