"""Does the covariance say how entropy will change? Predicted against measured, within states.

    windows   predicted: first-order change of the logged window under the loss in use, by `entrl_lab.replay.predict`;
              measured: mean over the same tokens of entropy after the step minus before it, so states do not move
    metrics   predicted: -dynamics/cov_mean and -dynamics/state_cov of a step; measured: change of probe/entropy, the
              entropy on fixed prefixes, from one probe to the next (predictions between two probes are added)

A prediction has no unit of its own (the step of a shared network is not the theorem's eta), so rank correlation and
agreement in sign are what is asked of it. Intervals: for the windows a bootstrap that draws whole runs, since windows
of a run follow one another (single windows where there are fewer than LEAST_RUNS runs); Student's t over seeds for the
metrics.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entrl.stats.intervals import interval_entry
from entrl.trainers.grpo.window_log import LoggedWindow, logged_steps, windows_root
from entrl_lab.replay import ESTIMATORS, read_windows, token_gain
from entrl_lab.replay.agreement import Interval, over_windows, spearman
from entrl_lab.replay.predict import predicted_changes
from entrl_lab.replay.settings import logged_setting
from entrl_lab.replicate.folders import NotMeasured, TaskRuns, series

TITLE = "Predicted against measured change of entropy"
PAPER = (
    "dH is about -eta Cov(log pi, pi A) for policy gradient (Theorem 1) and -eta Cov(log pi, A) for natural policy "
    "gradient (Theorem 2); the curves of covariance and of the entropy's step-wise decrease follow each other (Fig. 8, "
    "by eye)."
)
MONITORS = ("dynamics/cov_mean", "dynamics/state_cov")
LEAST_POINTS = 4  # per run, for a rank correlation
LEAST_RUNS = 5  # below it a bootstrap over runs says nothing


class WindowPair(NamedTuple):
    """One window: predicted change by estimator (arbitrary unit), measured mean change (nats), tokens' correlation."""

    seed: int
    step: int
    predicted: dict[str, float]
    measured: float
    tokens: dict[str, float]


def analyse(runs: TaskRuns, *, arm: str | None = None) -> dict[str, Any]:
    arm = arm or runs.reference
    folders = runs.arm(arm)
    pairs = [pair for seed, folder in folders.items() for pair in window_pairs(seed, folder)]
    by_window = {e: _agreement(pairs, e) for e in ESTIMATORS} if pairs else None
    by_metric = {m: found for m in MONITORS if (found := _monitored(list(folders.values()), m)) is not None}
    if by_window is None and not by_metric:
        raise NotMeasured(
            f"runs of {arm!r} have no logged windows (trainer.log_windows) and no probe (trainer.probe_every) beside "
            "dynamics/cov_mean"
        )
    return {
        "arm": arm,
        "windows": by_window,
        "falling": sum(p.measured < 0 for p in pairs) / len(pairs)
        if pairs
        else None,  # what "always falls" would score
        "pairs": [p._asdict() for p in pairs],
        "metrics": by_metric,
        "saw": _saw(arm, pairs, by_window, by_metric),
        "verdict": _verdict(by_window, by_metric),
    }


def window_pairs(seed: int, folder: Path) -> list[WindowPair]:
    """Every logged window of a run whose entropies were measured again after the step."""
    windows = read_windows(folder) if logged_steps(windows_root(folder)) else []
    return [_pair(seed, w) for w in windows if w.entropies_after_BT is not None and bool(w.rows.mask_BT.any())]


def _pair(seed: int, window: LoggedWindow) -> WindowPair:
    assert window.entropies_after_BT is not None
    mask_BT = window.rows.mask_BT
    gain_BT = token_gain(window, logged_setting(window.options.controllers).controllers).gain_BT
    changed_N = (window.entropies_after_BT - window.entropies_BT)[mask_BT].double().tolist()
    centred_N = (window.log_probs_BT + window.entropies_BT)[mask_BT].double()
    natural_N = -gain_BT[mask_BT] * centred_N
    by_token = {"natural": natural_N, "policy_gradient": natural_N * window.log_probs_BT[mask_BT].double().exp()}
    return WindowPair(
        seed=seed,
        step=window.step,
        predicted={str(k): float(v) for k, v in predicted_changes(window, gain_BT).items()},
        measured=sum(changed_N) / len(changed_N),
        tokens={name: spearman(values_N.tolist(), changed_N) for name, values_N in by_token.items()},
    )


def _agreement(pairs: Sequence[WindowPair], estimator: str) -> dict[str, Any]:
    def rank(some: Sequence[WindowPair]) -> float:
        return spearman([p.predicted[estimator] for p in some], [p.measured for p in some])

    def signs(some: Sequence[WindowPair]) -> float:
        return sum((p.predicted[estimator] > 0) == (p.measured > 0) for p in some) / len(some)

    def of_tokens(some: Sequence[WindowPair]) -> float:
        known = [p.tokens[estimator] for p in some if not math.isnan(p.tokens[estimator])]
        return sum(known) / len(known) if known else math.nan

    statistics = {"spearman": rank, "same_sign": signs}
    if estimator in pairs[0].tokens:
        statistics["spearman_of_tokens"] = of_tokens
    blocks = [[p for p in pairs if p.seed == seed] for seed in dict.fromkeys(p.seed for p in pairs)]
    by = "runs" if len(blocks) >= LEAST_RUNS else "windows"
    if by == "windows":
        blocks = [[p] for p in pairs]
    found = {
        name: over_windows(blocks, lambda some, of=of: of([p for block in some for p in block]))
        for name, of in statistics.items()
    }
    return {"windows": len(pairs), "resampled": by, **{k: _plain(v) for k, v in found.items()}}


def _plain(x: Interval) -> dict[str, float | None]:
    return {"mean": _known(x.value), "lo": _known(x.lo), "hi": _known(x.hi)}


def _known(x: float) -> float | None:
    return None if math.isnan(x) else x


def _monitored(folders: Sequence[Path], metric: str) -> dict[str, Any] | None:
    """Rank correlation and sign agreement per run, over seeds; None where no run has both metrics."""
    points = [found for f in folders if (found := monitored_points(f, metric)) is not None]
    if not points:
        return None
    ranks = [r for x, y in points if not math.isnan(r := spearman(x, y))]
    signs = [sum((a > 0) == (b > 0) for a, b in zip(x, y, strict=True)) / len(x) for x, y in points]
    return {
        "runs": len(points),
        "spearman": interval_entry(ranks),
        "same_sign": interval_entry(signs),
        "points": [{"predicted": x, "measured": y} for x, y in points],
    }


def monitored_points(folder: Path, metric: str) -> tuple[list[float], list[float]] | None:
    """(summed -covariance, change of probe entropy) between consecutive probes of a run; None where not logged.

    Both numbers of row s are of the policy that update s starts from, so the updates from one probed row up to the
    row before the next make the change between the two probes.
    """
    steps, probe = series(folder, "probe/entropy")
    covariance = dict(zip(*(v.tolist() for v in series(folder, metric)), strict=True))
    x, y = [], []
    for first, second, before, after in zip(steps[:-1], steps[1:], probe[:-1], probe[1:], strict=True):
        between = [covariance[s] for s in range(int(first), int(second)) if s in covariance]
        if len(between) == second - first:
            x.append(-sum(between))
            y.append(float(after - before))
    return (x, y) if len(x) >= LEAST_POINTS else None


def _saw(arm: str, pairs: Sequence[WindowPair], windows: Any, metrics: Any) -> str:
    parts = []
    names = {"natural": "Theorem 2, state-centred", "policy_gradient": "Theorem 1", "pooled": "pooled covariance"}
    if windows:
        parts += [
            f"{names[e]}: rank correlation over {len(pairs)} windows {_interval(windows[e]['spearman'])}, same sign in "
            f"{_interval(windows[e]['same_sign'])}"
            for e in ESTIMATORS
        ]
        falling = sum(p.measured < 0 for p in pairs) / len(pairs)
        parts.append(
            f"entropy fell in {falling:.2f} of the windows, which is what guessing `falls` would score in sign"
        )
    for metric, found in metrics.items():
        parts.append(f"{metric} against the probe, per run: rank correlation {_interval(found['spearman'])}")
    return f"{arm}: " + "; ".join(parts)


def _interval(x: dict[str, float | None]) -> str:
    if x["mean"] is None:
        return "not defined"
    return f"{x['mean']:.2f}" if x["lo"] is None else f"{x['mean']:.2f} [{x['lo']:.2f}, {x['hi']:.2f}]"


def _verdict(windows: Any, metrics: Any) -> str:
    found = {f"windows, {e}": windows[e]["spearman"] for e in ESTIMATORS} if windows else {}
    found |= {m: metrics[m]["spearman"] for m in metrics}
    return "; ".join(f"{name}: {_word(x)}" for name, x in found.items())


def _word(x: dict[str, float | None]) -> str:
    if x["lo"] is None or x["hi"] is None:
        return "too few windows or seeds for an interval"
    if x["lo"] > 0:
        return "follows the measured change"
    return "opposite to the measured change" if x["hi"] < 0 else "no relation can be told"
