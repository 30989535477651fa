"""Is a run healthy: what went wrong or makes its curves mean something else, and the values that were looked at.

A face of the rule table (`entrl.diagnosis.rules`), beside what only a whole run shows: its evaluations, its verifier,
its controllers, what it warned of.
"""

from typing import NamedTuple

from entrl.diagnosis.looks import too_many
from entrl.diagnosis.rules import rule_of, said_of_the_start, seen, values_of
from entrl.report.metrics import by_task
from entrl.report.read import RunRecord, metric_names, series
from entrl.settings.json_lines import is_number

VERIFIER = {"verify_timeout": "timeouts", "verify_crash": "crashes"}
EVALUATED = {  # symptom: (metric of training, key of an evaluation, words for too many and for few enough)
    "truncated": ("completions/clipped_ratio", "truncation_rate", "truncated", "truncated"),
    "thinking not closed": (
        "pear/missing_close",
        "missing_close_rate",
        "never close their thinking",
        "without a closing tag",
    ),
}


class Health(NamedTuple):
    """`findings`: what is wrong, worst first. `looked_at`: name with value of each check that could be made."""

    findings: list[str]
    looked_at: list[str]
    notes: list[str]  # what is as it was asked to be, and still worth knowing


def health_of(run: RunRecord) -> Health:
    """Everything that changes how a run's numbers should be read."""
    symptoms = seen(run.train)
    wrong = [found.evidence for found in symptoms if not found.excuse]
    notes = [f"{found.evidence}; {found.excuse}" for found in symptoms if found.excuse]
    evaluated, well = _evaluated(run)
    findings = [*_verifier(run), *_controllers(run), *wrong, *evaluated]
    return Health([*findings, *_warned(run), *run.notes], [*well, *values_of(run.train)], notes)


def warnings_of(run: RunRecord) -> list[str]:
    """How the run ended, if not well, and what `health_of` finds."""
    status, error = str(run.manifest.get("status") or "unknown"), run.manifest.get("error")
    found = [] if status == "finished" else [f"status is {status}: the run did not finish"]
    return [*found, *([f"it stopped with {error}"] if error else []), *health_of(run).findings]


def _warned(run: RunRecord) -> list[str]:
    """What the run warned of. Of its first completions a rule says more, which has seen all of them."""
    said = run.manifest.get("warnings")
    warned = [str(w) for w in said] if isinstance(said, list) else []
    return [text for text in warned if not (run.train and said_of_the_start(text))]


def _evaluated(run: RunRecord) -> tuple[list[str], list[str]]:
    """(what is wrong, what is well) in the evaluation after training (the worst task), where training logged none."""
    wrong, well = [], []
    for symptom, (metric, key, words, fine) in EVALUATED.items():
        found = [v for result in by_task(run.eval_after).values() if is_number(v := result.get(key))]
        if not found or series(run.train, metric)[1]:
            continue
        share, most = max(found), rule_of(symptom).threshold
        if share > most:
            wrong.append(too_many(share, words, most, "in the evaluation after training"))
        else:
            well.append(f"{share:.0%} {fine}")
    return wrong, well


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
