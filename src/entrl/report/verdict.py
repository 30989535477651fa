"""Did it work, at what cost, is it healthy: a run's verdict in words, computed from what the run wrote.

    accuracy    after - before on the same problems, with its 95 % interval: "higher" where the interval is above 0,
                "lower" where it is below, "not lower" where it holds 0 and its lower end is above -2 points, else
                "not distinguishable". Of samples and of greedy answers, which need not agree: the headline then says
                which of them it means; where neither moved, the samples count, whose length is told beside it
    length      "shorter" or "longer" where the interval of the difference excludes 0 and it is at least a tenth

Source:  own design; `docs/report.md` says what each verdict means. Intervals: `entrl.stats.pairing`
Needs:   eval_before.json and eval_after.json; without them it says what could not be measured
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from entrl.diagnosis.curves import end_mean, start_mean
from entrl.report.health import Health, health_of
from entrl.report.metrics import Number, by_task, named
from entrl.report.read import RunRecord, series
from entrl.report.summary import duration, seconds_between
from entrl.settings.json_lines import is_number
from entrl.stats.pairing import PairedDifference, non_inferior, paired_difference, problem_value

Tone = Literal["good", "bad", "open"]

MARGIN = 0.02  # accuracy; "not lower" allows for less than this, as the studies do
NOTED = 0.10  # share of the length before; a smaller change is not in the headline
LENGTHS = {  # the first that both evaluations have: what became shorter or longer, and its unit
    "length/think": ("thinking", "tokens"),
    "questions/sampled": ("questions", "a dialogue"),
    "mean_length_sampled": ("completions", "tokens"),
}
ACCURACIES = {"sampled_accuracy": "when sampled", "greedy_accuracy": "when greedy"}
NEVER_JUDGED = "Accuracy: no problem was judged both before and after training, so there is no gain to tell."
HEADLINES: dict[tuple[str, str], tuple[Tone, str]] = {
    ("higher", "shorter"): ("good", "More accurate{how}, {what} shorter"),
    ("higher", "longer"): ("good", "More accurate{how}, {what} longer"),
    ("higher", "alike"): ("good", "More accurate{how}"),
    ("not lower", "shorter"): ("good", "{What} shorter, accuracy not lower"),
    ("not lower", "longer"): ("open", "{What} longer, accuracy not higher"),
    ("unclear", "shorter"): ("open", "{What} shorter; whether accuracy held cannot be told"),
    ("unclear", "longer"): ("open", "{What} longer; no measurable change in accuracy"),
    ("lower", "shorter"): ("bad", "Less accurate{how}, {what} shorter"),
    ("lower", "longer"): ("bad", "Less accurate{how}, {what} longer"),
    ("lower", "alike"): ("bad", "Less accurate{how}"),
    ("mixed", "shorter"): ("open", "Accuracy {how}, {what} shorter"),
    ("mixed", "longer"): ("open", "Accuracy {how}, {what} longer"),
    ("mixed", "alike"): ("open", "Accuracy {how}"),
}
NOTHING: tuple[Tone, str] = ("open", "Little changed: accuracy not distinguishable, length within a tenth")


class Verdict(NamedTuple):
    """What the first screen and the terminal say of a run."""

    tone: Tone
    headline: str
    results: list[str]  # sentences: accuracy, length
    entropies: list[str]  # sentences; on the page the curves tell it
    cost: str
    health: Health

    @property
    def healthy(self) -> bool | None:
        """None: nothing was logged that would tell."""
        return False if self.health.findings else True if self.health.looked_at else None

    @property
    def health_words(self) -> str:
        if self.health.findings:
            return "; ".join(self.health.findings)
        if not self.health.looked_at:
            return "not known: no training metrics were logged"
        return f"healthy ({', '.join(self.health.looked_at)})"


def verdict_of(run: RunRecord) -> Verdict:
    """The verdict of one run, finished or not, evaluated or not."""
    health = health_of(run)
    ended = _ending(run)
    before, after = by_task(run.eval_before), by_task(run.eval_after)
    shared = [task for task in before if task in after]
    if shared:
        parts = [_compare(before[task], after[task], f"{task}: " * bool(task)) for task in shared]
        tone, headline = _together([(part.tone, part.headline) for part in parts])
        results = [sentence for part in parts for sentence in part.results]
        entropies = [part.entropy for part in parts if part.entropy]
    else:
        tone, headline, results = _unmeasured(run)
        entropies = []
    if ended is not None:
        tone, headline, results = ended.tone, ended.headline, [*ended.results, *results]
    return Verdict(tone, headline, results, entropies, cost_of(run), health)


class _Part(NamedTuple):
    tone: Tone
    headline: str
    results: list[str]
    entropy: str = ""


def _ending(run: RunRecord) -> _Part | None:
    """How a run ended that did not finish."""
    status = str(run.manifest.get("status") or "unknown")
    if status == "finished" or (status == "unknown" and run.eval_after):
        return None
    where, error = _progress(run), run.manifest.get("error")
    why = [f"It stopped with {error}."] if error else []
    if status == "failed":
        return _Part("bad", f"Failed {where}", why)
    if status == "interrupted":
        how = [] if "resume=true" in str(error) else ["resume=true goes on from its last checkpoint."]
        return _Part("open", f"Interrupted {where}", [*why, *how])
    return _Part("open", f"Not finished: {status}, {where}", ["It is still running, or was killed."])


def _progress(run: RunRecord) -> str:
    steps = run.train[-1]["step"] if run.train else 0
    trainer = run.recipe.get("trainer")
    planned = trainer.get("max_steps") if isinstance(trainer, Mapping) else None
    return f"after {steps:,} of {planned:,} steps" if is_number(planned) and planned > 0 else f"after {steps:,} steps"


def _unmeasured(run: RunRecord) -> tuple[Tone, str, list[str]]:
    """Where no task was evaluated both before and after training."""
    after = [f"{f'{task}: ' * bool(task)}{_level(found)}" for task, found in by_task(run.eval_after).items()]
    if after and not run.eval_before:
        said = "Not measured before training (eval_before.json is missing), so a gain cannot be told."
        return "open", "Measured after training only", [*after, said]
    if after:
        return "open", "No task was evaluated both before and after", after
    missing = "eval_after.json is missing"
    if not run.eval_before:
        missing = "eval_before.json is missing, eval_after.json is missing"
    return "open", "Not measured", [f"No evaluation of the trained model ({missing}).", *_trend(run)]


def _trend(run: RunRecord) -> list[str]:
    values = series(run.train, "reward")[1]
    first, last = start_mean(values), end_mean(values)
    if first is None or last is None or len(values) < 6:
        return []
    return [f"Training reward {first:.2f} → {last:.2f} (first and last steps, the run's own samples: no test)."]


def _level(evaluation: Mapping[str, Any]) -> str:
    """Accuracy of one evaluation alone."""
    texts = []
    for name, how in ACCURACIES.items():
        number = named(name)
        if (value := number.read(evaluation)) is not None:
            ends = evaluation.get(number.interval)
            around = " (95 % interval [{}, {}])".format(*map(number.text, ends)) if isinstance(ends, list) else ""
            texts.append(f"{how} {number.text(value)} %{around}")
    return f"Accuracy on {_problems(evaluation)}: {', '.join(texts)}." if texts else "No problem was judged."


def _problems(evaluation: Mapping[str, Any]) -> str:
    count, split = evaluation.get("n_problems") or len(evaluation.get("problems") or ()), evaluation.get("split")
    return f"{count:,} {split} problems" if split in ("test", "train", "validation") else f"{count:,} problems"


def _compare(before: Mapping[str, Any], after: Mapping[str, Any], task: str) -> _Part:
    """One task, before and after."""
    moved = {}
    texts = []
    for name, how in ACCURACIES.items():
        if (found := _accuracy(before, after, named(name), how)) is not None:
            moved[how], text = found
            texts.append(text)
    accuracy, how = _agreed(moved)
    what, length, long_words = _length(before, after)
    tone, headline = HEADLINES.get((accuracy, length), NOTHING)
    if accuracy == "lower" and how:  # not by both: no verdict against the run
        tone = "open"
    headline = headline.format(what=what, What=what.capitalize(), how=how)
    said = f"Accuracy on {_problems(after)}: {', '.join(texts)}." if texts else NEVER_JUDGED
    entropy = _entropy(before, after)
    return _Part(tone, headline, [f"{task}{text}" for text in (said, long_words) if text], entropy and task + entropy)


def _agreed(moved: Mapping[str, str]) -> tuple[str, str]:
    """What samples and greedy answers say together, and words for whose it is where they do not agree."""
    found = {d: [how for how, other in moved.items() if other == d] for d in ("higher", "lower")}
    if found["higher"] and found["lower"]:
        return "mixed", f"higher {found['higher'][0]}, lower {found['lower'][0]}"
    for direction, hows in found.items():
        if hows:
            return direction, f" {hows[0]}" if len(hows) < len(moved) else ""
    return next(iter(moved.values()), "unclear"), ""


def _accuracy(before: Mapping[str, Any], after: Mapping[str, Any], number: Number, how: str) -> tuple[str, str] | None:
    """("higher" | "not lower" | "unclear" | "lower", words); None where no problem was judged on both sides."""
    judged = [{p["id"] for p in e.get("problems") or () if problem_value(p, number.problem) is not None}
              for e in (before, after)]  # fmt: skip
    old, new = number.read(before), number.read(after)
    if old is None or new is None or not set.intersection(*judged):
        return None
    text = f"{how} {number.text(old)} → {number.text(new)} %"
    try:
        found = paired_difference(before, after, number.problem)
    except ValueError as reason:
        return "unclear", f"{text} ({number.text(new - old, sign=True)} points, no interval: {reason})"
    diff, lo, hi = (number.text(value, sign=True) for value in found[:3])
    return _direction(found), f"{text} ({diff} points, 95 % interval [{lo}, {hi}])"


def _direction(found: PairedDifference) -> str:
    if found.lo > 0:
        return "higher"
    if found.hi < 0:
        return "lower"
    return "not lower" if non_inferior(found.diff, found.lo, MARGIN) else "unclear"


def _length(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, str, str]:
    """(of what, "shorter" | "longer" | "alike", sentence)."""
    for name, (what, unit) in LENGTHS.items():
        number = named(name)
        old, new = number.read(before), number.read(after)
        if old is None or new is None:
            continue
        answers = _answer_length(before, after) if name == "length/think" else ""
        text = f"{what.capitalize()} {number.text(old)} → {number.text(new)} {unit}"
        try:
            found = paired_difference(before, after, number.problem)
        except ValueError:
            return what, "alike", f"{text}{answers}."
        change = "alike"
        if abs(found.diff) >= NOTED * old and not found.lo <= 0 <= found.hi:
            change = "shorter" if found.diff < 0 else "longer"
        lo, hi = number.text(found.lo, sign=True), number.text(found.hi, sign=True)
        return what, change, f"{text} ({number.text(found.diff, sign=True)} [{lo}, {hi}]){answers}."
    return "completions", "alike", ""


def _answer_length(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    number = named("length/answer")
    old, new = number.read(before), number.read(after)
    return "" if old is None or new is None else f", answers {number.text(old)} → {number.text(new)}"


def _entropy(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    pairs = {"thinking": "entropy/think", "in answers": "entropy/answer"}
    if named("entropy/think").read(after) is None:
        pairs = {"all tokens": "entropy/all"}
    found = [(where, named(name).read(before), named(name).read(after)) for where, name in pairs.items()]
    parts = [f"{where} {old:.3f} → {new:.3f}" for where, old, new in found if old is not None and new is not None]
    return f"Entropy in {', '.join(parts)} nats." if parts else ""


def _together(parts: list[tuple[Tone, str]]) -> tuple[Tone, str]:
    """Several tasks: the worst tone, and how many say what."""
    if len({headline for _, headline in parts}) == 1:
        return parts[0]
    tones = [tone for tone, _ in parts]
    worst: Tone = "bad" if "bad" in tones else "open" if "open" in tones else "good"
    counted = {headline: [h for _, h in parts].count(headline) for _, headline in parts}
    return worst, "; ".join(f"{headline} ({n} of {len(parts)} tasks)" for headline, n in counted.items())


def cost_of(run: RunRecord) -> str:
    """Steps, time, hardware and tokens, as far as the run wrote them down."""
    last = run.train[-1] if run.train else {}
    steps, seconds, tokens = (last.get(key) for key in ("step", "seconds", "tokens"))
    words = f"{steps:,} steps" if is_number(steps) else "No step logged"
    if is_number(seconds):
        words += f" in {duration(seconds)}"
        whole = seconds_between(run.manifest)
        if whole is not None and whole > seconds and not run.manifest.get("resumed_from"):
            words += f" ({duration(whole)} with loading and evaluations)"
    parts = [f"{words}{_hardware(run.manifest)}"]
    if is_number(tokens):
        parts.append(f"{tokens:,.0f} tokens generated")
    return ", ".join(parts)


def _hardware(manifest: Mapping[str, Any]) -> str:
    device, count = str(manifest.get("device") or ""), manifest.get("world_size")
    number = count if is_number(count) else 1
    if device.startswith("cpu"):
        return f" on {number} CPU process{'es' * (number > 1)}"
    return f" on {number} × {manifest.get('device_name') or device}" if device else ""
