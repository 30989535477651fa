"""What each rule of the table sees in a run's curves: evidence in words, "" where the symptom is not there."""

from collections.abc import Callable

from entrl.diagnosis.curves import SHORT, Curves, Row, is_finite, tenth

Look = Callable[[Curves, float], str]

ENOUGH = 2  # rollouts, of many completions each, below which nothing is concluded from one number of theirs
FEW = 10  # rollouts below which a share of them is luck, so that all must be alike
NUMBERS = {"loss": "loss", "grad_norm": "gradient norm", "reward": "reward"}
ENTROPIES = ("policy_entropy/token_mean", "policy_entropy/response_mean", "entropy")
FLAT = "groups/without_spread"


def no_numbers(curves: Curves, most: float) -> str:
    """In the newest rows alone: one value that passed is over, weights that hold one never recover."""
    rows = curves.rows[-SHORT:]
    bad = {what: sum(key in row and not is_finite(row[key]) for row in rows) for key, what in NUMBERS.items()}
    found = [f"{what} in {count}" for what, count in bad.items() if count > most]
    return f"not a number: {', '.join(found)} of the last {len(rows)} logged steps" if found else ""


def no_reward(curves: Curves, most: float) -> str:
    def differs(_: int, row: Row) -> float | None:
        if not is_finite(row.get("reward")):
            return None
        parts = (row[name] for name in row if name == "reward" or name.startswith("rewards/"))
        return float(any(is_finite(part) and abs(part) > most for part in parts))

    paid = curves.read(("reward", "differs from", most), differs)
    count = tenth(len(paid))
    return f"every reward of the last {count} rollouts is 0" if count >= ENOUGH and not paid.newest(count) else ""


def equal(curves: Curves, most: float) -> str:
    flat = curves.read((FLAT, "all"), lambda _, row: float(row[FLAT] >= 1) if is_finite(row.get(FLAT)) else None)
    count = tenth(len(flat), FEW)
    empty = float(flat.newest(count) / max(count, 1))
    if count < ENOUGH or empty <= most or (count < FEW and empty < 1) or not flat.newest(tenth(count)):
        return ""
    last = "" if count < FEW else f"the last {count} "
    return f"in {empty:.0%} of {last}rollouts every group had equal rewards: updates without any gradient"


def mostly_equal(curves: Curves, most: float) -> str:
    flat = curves.of(FLAT)
    share = flat.end_mean()
    if share is None or len(flat) < SHORT or share <= most:
        return ""
    return f"{share:.0%} of groups have equal rewards in the last rollouts: most samples give no gradient"


def share_of(metric: str, words: str) -> Look:
    def look(curves: Curves, most: float) -> str:
        known = curves.of(metric)
        share = known.end_mean()
        if share is None or len(known) < ENOUGH or share <= most:
            return ""
        return too_many(share, words, most, "in the last rollouts")

    return look


def too_many(share: float, words: str, most: float, when: str) -> str:
    return f"{share:.0%} of completions {words} {when} (over {most:.0%})"


def end_of(metric: str, words: str) -> Callable[[Curves], str]:
    def value(curves: Curves) -> str:
        share = curves.of(metric).end_mean()
        return "" if share is None else f"{share:.0%} {words}"

    return value


def no_tag(curves: Curves, least: float) -> str:
    closed = curves.over("completions/thinking_closed", least)
    count = tenth(len(closed))
    if count < ENOUGH or closed.newest(count):
        return ""
    return f"the closing tag stands in no completion of the last {count} rollouts"


def still(curves: Curves, most: float) -> str:
    """Over two rollouts at least: one without spread has no gradient in all of its updates."""
    since = curves.since("reward", ENOUGH)
    norms = [row["grad_norm"] for row in since if is_finite(row.get("grad_norm"))]
    if len(norms) < SHORT:
        norms = curves.of("grad_norm").numbers[-SHORT:]
    if len(norms) < SHORT or not since or max(norms) > most:
        return ""
    return f"the gradient was exactly 0 in the last {len(norms)} logged steps"


def entropy_ends(curves: Curves) -> tuple[float, float] | None:
    """Entropy at the start and at the end, nats; None for fewer than four rows, or a start at 0."""
    known = next((found for name in ENTROPIES if len(found := curves.of(name))), curves.of(ENTROPIES[0]))
    first, last = known.start_mean(), known.end_mean()
    if len(known) <= SHORT or first is None or last is None or first <= 0:
        return None
    return first, last


def collapsed(curves: Curves, least: float) -> str:
    ends = entropy_ends(curves)
    if ends is None or ends[1] >= least * ends[0]:
        return ""
    return f"entropy fell to {ends[1] / ends[0]:.0%} of its start ({_nats(ends)}): little is left to explore"


def surged(curves: Curves, most: float) -> str:
    ends = entropy_ends(curves)
    if ends is None or ends[1] <= most * ends[0]:
        return ""
    return f"entropy rose to {ends[1] / ends[0]:.1f} times its start ({_nats(ends)})"


def _nats(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3f} \u2192 {ends[1]:.3f} nats"


def entropy_left(curves: Curves) -> str:
    ends = entropy_ends(curves)
    return "" if ends is None else f"entropy at {ends[1] / ends[0]:.0%} of its start"


def asked_for_less(curves: Curves) -> str:
    asked = curves.read(("pear/alpha", "set"), lambda _, row: float(bool(row.get("pear/alpha"))))
    return "PEAR asks for that" if asked.newest(len(asked)) else ""


def far(curves: Curves, most: float) -> str:
    known = curves.of("clip_ratio/region_mean")
    share = known.end_mean()
    if share is not None and len(known) >= SHORT and share > most:
        return f"{share:.0%} of tokens have a ratio to the policy that wrote them beyond the clip"
    for name in [name for name in curves.names if name.endswith("/abs_log_ratio")]:  # losses that do not clip
        known = curves.of(name)
        mean = known.end_mean()
        if mean is not None and len(known) >= SHORT and mean > most:
            return f"the log ratio to the policy that wrote the tokens is {mean:.2f} on average"
    return ""


# --- of a few sampled prompts, before the first step (`entrl doctor`) -------------------------------------------------


def at_start(metric: str, wrong: Callable[[float, float], bool], words: Callable[[float, float], str]) -> Look:
    """wrong, words: of the number and the threshold."""

    def look(curves: Curves, threshold: float) -> str:
        numbers = curves.of(f"start/{metric}").numbers
        return words(numbers[-1], threshold) if numbers and wrong(numbers[-1], threshold) else ""

    return look
