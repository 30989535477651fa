"""Entropy guard: move one option of another controller so that policy entropy stays in a band.

    s_k = H_k / H_0                                   smoothed entropy over the starting one
    a = log low + margin w,  b = log high - margin w, w = log(high / low): where the guard begins to act
    e_k = a - log s_k below a,  b - log s_k above b,  0 between
    m_k = clip(kp (e_k - e_{k-1}) + ki e_k, -rate, +rate) where e_k is not 0, else 0
    u_{k+1} = clip(u_k + sign m_k, u_min, u_max)      u: the knob on its scale; sign: +1 if raising it raises entropy

Entropy does not turn at once, so a guard that only acted outside the band would act too late to hold it: `margin` is
its run-up, a share of the band's log-width on either side (0: act outside only). Between a and b the knob holds still.
H_0 is the mean over the first `start_steps` steps, H_k an exponential average of what follows; natural logarithms.
u is log(knob) on the scale `log`, (knob - minimum) / (maximum - minimum) on the scale `linear` (for knobs that may be
0), so gains and `rate` are in nats of the knob or in shares of its range.

Source:  ours, to a need stated in issue 20 of PRIME-RL/Entropy-Mechanism-of-RL (a fixed setting collapses or surges in
    a long run). The nearest published loops are Skywork-OR1's adaptive entropy coefficient (arXiv 2505.22312: plus or
    minus a constant each step, clamped) and EntroPIC's PI control of sample weights (arXiv 2511.15248).
Differs: from both: a band instead of a target, shares of the starting entropy instead of nats, any knob of any
    controller, a rate limit. From Skywork: proportional to the error. From EntroPIC: no stored sum.
Needs:   a trainer that calls `on_step`; one read of the step's entropy per optimiser step

Why increments: the knob itself is the integral, and it is what gets clipped, so nothing can wind up behind a limit:
after any time there, the first error of the other sign moves the knob inwards by at least ki |e|. Why the
proportional part: policy entropy answers a knob with its rate of change, and an integral alone would swing around the
band. While entropy is outside but on its way back e_k - e_{k-1} pulls the knob back already.

The knob moves between optimiser steps only: the next `select`, `on_loss` and `on_rollout` see the new value. A knob
read in `on_rollout` waits for the next generation; set `every` to the updates per rollout there.
"""

import math
import warnings
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, ClassVar, Literal

from torch import Tensor

from entrl.controllers.hooks import Controller, LossSettings, LossTerms, LossView, Rows, StepFeedback, Window

DEFAULT_SPAN = 100.0  # without limits a knob on the log scale may go this many times up and down from where it starts
SMALLEST_SHARE = 1e-3  # of the starting entropy: keeps the logarithm finite when entropy is 0


def band_error(share: float, low: float, high: float) -> float:
    """Distance in nats from log share to [log low, log high]: positive below, negative above, 0 inside and on edges."""
    if share < low:
        return math.log(low / max(share, SMALLEST_SHARE))
    return -math.log(share / high) if share > high else 0.0


def hold_band(low: float, high: float, margin: float) -> tuple[float, float]:
    """The part of the band in which the knob holds still: `margin` of its log-width cut off at each end."""
    cut = (high / low) ** margin
    return low * cut, high / cut


def guard_move(error: float, previous: float, *, kp: float, ki: float, rate: float) -> float:
    """Change wanted of entropy's drive, in units of u, at most `rate` either way; 0 for no error."""
    if error == 0:
        return 0.0
    return min(max(kp * (error - previous) + ki * error, -rate), rate)


@dataclass(kw_only=True)
class Guard(Controller):
    """Any controller, with one of its options moved to hold entropy in a band.

    To the trainer it is the wrapped controller: same name, role, hooks and metrics, plus the metrics `guard_*`. It
    moves the option of the very object it was given.
    """

    needs_feedback: ClassVar[bool] = True

    controller: Controller
    knob: str  # a field of `controller`
    band: tuple[float, float] = (0.8, 1.2)  # shares of the starting entropy
    margin: float = 0.25  # of the band's log-width, at either end, in which the guard acts already
    start_entropy: float | None = None  # nats; None: measured over the first steps, in which the knob stays put
    start_steps: int = 20  # optimiser steps
    minimum: float | None = None  # of the knob; None on the log scale: start / 100, or the nearest legal value
    maximum: float | None = None  # of the knob; None on the log scale: start * 100, or the nearest legal value
    scale: Literal["log", "linear"] = "log"
    raises_entropy: bool | None = None  # None: what the controller says of its knob; given, it overrules that
    # Gains are ours, chosen on a simulated plant with the noise of a small batch whose log-entropy drifts by 0.004 to
    # 0.02 a step and nat of the knob (tests/test_controllers_guard.py): damped over that range.
    kp: float = 15.0  # units of u per nat of change in error
    ki: float = 0.5  # units of u per nat of error and act
    rate: float = 0.2  # units of u per act
    smooth: float = 0.9  # weight of the past in the exponential average, per optimiser step; 0 = none
    every: int = 1  # optimiser steps per act
    collapse_share: float | None = None  # alarm below it; None: half the band's lower edge
    surge_share: float | None = None  # alarm above it; None: twice the band's upper edge
    patience: int = 10  # steps in a row before an alarm
    on_alarm: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if not isinstance(self.controller, Controller):
            raise TypeError(
                f"guard: controller must be a Controller, got {self.controller!r}; in a recipe nest it as "
                "controller: {use: kl_cov, args: {...}}"
            )
        if isinstance(self.controller, Guard):
            raise ValueError("guard: controller is a guard itself; two loops on one entropy fight, wrap what it wraps")
        self._check_numbers()
        self._sign = self._find_sign()
        self._minimum, self._maximum = self._find_limits()
        self._knob = float(getattr(self.controller, self.knob))
        self._start = self.start_entropy
        self._start_sum, self._start_count = 0.0, 0
        self._smoothed: float | None = None
        self._seen = 0  # steps with an entropy since the start is known
        self._skipped = 0
        self._error = 0.0
        self._low_steps, self._high_steps = 0, 0  # in a row beyond the alarm shares
        self._alarm = 0

    # Options

    def _check_numbers(self) -> None:
        try:
            low, high = (float(edge) for edge in self.band)  # a recipe gives a list
        except (TypeError, ValueError):
            raise ValueError(f"guard: band must be (low, high), got {self.band!r}") from None
        if not 0 < low < high < math.inf:
            raise ValueError(f"guard: band must be 0 < low < high as shares of the starting entropy, got {self.band}")
        self.band = (low, high)
        if low <= SMALLEST_SHARE:
            raise ValueError(f"guard: the band's lower edge must be above {SMALLEST_SHARE}, got {low}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"guard: margin must be in [0, 0.5), got {self.margin}; 0 acts outside the band only")
        if self.start_entropy is not None and not 0 < self.start_entropy < math.inf:
            raise ValueError(f"guard: start_entropy must be > 0 nats, got {self.start_entropy}; None measures it")
        for name in ("start_steps", "every", "patience"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"guard: {name} must be at least 1 step, got {getattr(self, name)}")
        for name in ("kp", "ki"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"guard: {name} must be finite and >= 0, got {getattr(self, name)}")
        if self.ki == 0:
            raise ValueError("guard: ki must be > 0; without it a constant error moves nothing")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"guard: rate must be finite and > 0, got {self.rate}")
        if not 0 <= self.smooth < 1:
            raise ValueError(f"guard: smooth must be in [0, 1), got {self.smooth}; 0 switches smoothing off")
        if self.scale not in ("log", "linear"):
            raise ValueError(f"guard: scale must be 'log' or 'linear', got {self.scale!r}")
        if self.on_alarm not in ("warn", "stop"):
            raise ValueError(f"guard: on_alarm must be 'warn' or 'stop', got {self.on_alarm!r}")
        if not 0 <= self._collapse_below < low:
            raise ValueError(f"guard: collapse_share must be in [0, {low:g}), got {self.collapse_share}")
        if not self._surge_above > high:
            raise ValueError(f"guard: surge_share must be above {high:g}, got {self.surge_share}")

    @property
    def _collapse_below(self) -> float:
        return self.band[0] / 2 if self.collapse_share is None else self.collapse_share

    @property
    def _surge_above(self) -> float:
        return self.band[1] * 2 if self.surge_share is None else self.surge_share

    def _find_sign(self) -> int:
        inner = self.controller
        if self.knob not in inner.options():
            raise ValueError(
                f"guard: {inner.name} has no option {self.knob!r}; its knobs are {', '.join(inner.knobs) or 'none'} "
                f"and its options {', '.join(inner.options())}; name one of them"
            )
        if self.raises_entropy is not None:
            return 1 if self.raises_entropy else -1
        if self.knob not in inner.knobs:
            raise ValueError(
                f"guard: {inner.name} does not say how {self.knob!r} acts on entropy (it does for "
                f"{', '.join(inner.knobs) or 'none of its options'}); set raises_entropy to true or false"
            )
        return inner.knobs[self.knob]

    def _find_limits(self) -> tuple[float, float]:
        """(minimum, maximum), both accepted by the controller's own checks and on either side of where it starts."""
        where = f"{self.controller.name}.{self.knob}"
        value = getattr(self.controller, self.knob)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"guard: {where} must start as a finite number, got {value!r}")
        if self.scale == "linear":
            if self.minimum is None or self.maximum is None:
                raise ValueError(f"guard: scale 'linear' has no natural range; set minimum and maximum of {where}")
            low, high = self.minimum, self.maximum
        else:
            if value <= 0:
                raise ValueError(f"guard: {where} starts at {value}, which has no logarithm; set scale: linear")
            low = self._reach(value, value / DEFAULT_SPAN) if self.minimum is None else self.minimum
            high = self._reach(value, value * DEFAULT_SPAN) if self.maximum is None else self.maximum
            if not low > 0:
                raise ValueError(f"guard: minimum of {where} must be > 0 on the log scale, got {low}")
        if not low <= value <= high or not low < high:
            raise ValueError(f"guard: {where} starts at {value}, outside [minimum, maximum] = [{low}, {high}]")
        edges = {bound: self._with(bound) for bound in (low, high)}
        if len({other.clip_range for other in edges.values()}) > 1:
            raise ValueError(
                f"guard: {where} sets the ratio range, which the trainer reads once at start; drive another knob"
            )
        return float(low), float(high)

    def _with(self, value: float) -> Controller:
        """The controller with the knob elsewhere, for its own checks to speak."""
        try:
            return replace(self.controller, **{self.knob: value})
        except ValueError as error:
            raise ValueError(f"guard: the controller refuses {self.knob}={value}: {error}") from error

    def _reach(self, legal: float, wanted: float) -> float:
        """The value nearest to `wanted` that the controller accepts, coming from a legal one (bisection)."""
        refused = wanted
        for _ in range(200):
            try:
                self._with(wanted)
                legal = wanted
            except ValueError:
                refused = wanted
            wanted = (legal + refused) / 2
            if wanted in (legal, refused):
                break
        return legal

    # What the trainer asks of any controller: the wrapped one answers. The class attributes are set below the class.

    @property
    def scope(self) -> Any:
        return self.controller.scope

    @property
    def clip_range(self) -> tuple[float, float] | None:
        return self.controller.clip_range

    def conflicts(self, loss: LossSettings) -> list[str]:
        return self.controller.conflicts(loss)

    def on_rollout(self, rewards_N: Tensor, groups_N: Tensor, advantages_N: Tensor) -> Tensor | None:
        return self.controller.on_rollout(rewards_N, groups_N, advantages_N)

    def select(self, window: Window) -> Any:
        return self.controller.select(window)

    def on_loss(self, rows: Rows, selection: Any, view: LossView) -> LossTerms:
        return self.controller.on_loss(rows, selection, view)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return self.controller.summarise(sums)

    def window_metrics(self, selection: Any) -> dict[str, Tensor | float]:
        return self.controller.window_metrics(selection)

    # The loop

    def on_step(self, feedback: StepFeedback) -> dict[str, float]:
        """Take in one step's entropy and move the knob; on the last of `patience` steps in alarm warn or raise.

        Raises RuntimeError on an alarm with on_alarm='stop', and where the measured starting entropy is 0.
        """
        inner = self.controller.on_step(feedback) if self.controller.needs_feedback else {}
        entropy = feedback.entropy
        if entropy is None or not math.isfinite(entropy):
            self._skipped += 1
        elif self._start is None:
            self._measure_start(entropy)
        else:
            past = entropy if self._smoothed is None else self._smoothed
            self._smoothed = self.smooth * past + (1 - self.smooth) * entropy
            self._seen += 1
            if self._seen % self.every == 0:
                self._act(self._smoothed / self._start)
            self._watch(self._smoothed / self._start, feedback.step)
        return inner | self._metrics()

    def _measure_start(self, entropy: float) -> None:
        self._start_sum += entropy
        self._start_count += 1
        self._smoothed = self._start_sum / self._start_count
        if self._start_count == self.start_steps:
            if self._smoothed <= 0:
                raise RuntimeError(
                    f"guard: entropy was 0 nats in the first {self.start_steps} steps, of which no share can be held; "
                    "give start_entropy in nats, or raise the sampling temperature"
                )
            self._start = self._smoothed

    def _act(self, share: float) -> None:
        error = band_error(share, *hold_band(*self.band, self.margin))
        move = guard_move(error, self._error, kp=self.kp, ki=self.ki, rate=self.rate)
        self._error = error
        if move:
            self._set_knob(self._moved(self._sign * move))

    def _moved(self, change: float) -> float:
        """The knob after a change of u, within its limits."""
        if self.scale == "log":
            value = self._knob * math.exp(change)
        else:
            value = self._knob + change * (self._maximum - self._minimum)
        return min(max(value, self._minimum), self._maximum)

    def _set_knob(self, value: float) -> None:
        self._knob = value
        setattr(self.controller, self.knob, value)

    def _watch(self, share: float, step: int) -> None:
        self._low_steps = self._low_steps + 1 if share < self._collapse_below else 0
        self._high_steps = self._high_steps + 1 if share > self._surge_above else 0
        alarm = int(self._high_steps >= self.patience) - int(self._low_steps >= self.patience)
        raised, self._alarm = alarm != 0 and alarm != self._alarm, alarm
        if raised and self.on_alarm == "stop":
            raise RuntimeError(
                f"{self._alarm_text(share, step)}. Stopped (on_alarm: stop): resume from a checkpoint saved before "
                f"step {step - self.patience + 1} with that changed, or set on_alarm: warn to go on"
            )
        if raised:
            warnings.warn(self._alarm_text(share, step), RuntimeWarning, stacklevel=3)

    def _alarm_text(self, share: float, step: int) -> str:
        assert self._start is not None
        assert self._smoothed is not None
        low = self._alarm < 0
        kind, side, edge = ("collapse", "below", self._collapse_below) if low else ("surge", "above", self._surge_above)
        where = f"{self.controller.name}.{self.knob} is {self._knob:.4g}"
        wanted = self._sign * (1 if low else -1)
        limit = self._maximum if wanted > 0 else self._minimum
        if self._knob == limit:
            end, advice = ("maximum", "raise") if wanted > 0 else ("minimum", "lower")
            state = f"{where}, its {end}: {advice} {end}, lower learning_rate, or take another knob"
        else:
            state = f"{where} and still moving (limit {limit:.4g}): raise rate or ki, or lower learning_rate"
        return (
            f"entropy {kind} at step {step}: {self._smoothed:.4g} nats is {share:.2f} of the starting "
            f"{self._start:.4g}, {side} {edge:.2f} for {self.patience} steps; {state}"
        )

    def _metrics(self) -> dict[str, float]:
        at_limit = int(self._knob == self._maximum) - int(self._knob == self._minimum)
        metrics = {
            "guard_knob": self._knob,
            "guard_at_limit": float(at_limit),
            "guard_error": self._error,
            "guard_alarm": float(self._alarm),
            "guard_skipped": float(self._skipped),
        }
        if self._smoothed is not None:
            metrics["guard_entropy"] = self._smoothed
            if self._start is not None:
                metrics["guard_share"] = self._smoothed / self._start
        return metrics

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state_dict(),
            "knob": self._knob,
            "start": self._start,
            "start_sum": self._start_sum,
            "start_count": self._start_count,
            "smoothed": self._smoothed,
            "seen": self._seen,
            "skipped": self._skipped,
            "error": self._error,
            "low_steps": self._low_steps,
            "high_steps": self._high_steps,
            "alarm": self._alarm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's loop; a knob outside the limits as they are now is moved to the nearer one."""
        self.controller.load_state_dict(state["controller"])
        self._set_knob(min(max(float(state["knob"]), self._minimum), self._maximum))
        self._start, self._smoothed = state["start"], state["smoothed"]
        self._start_sum, self._start_count = float(state["start_sum"]), int(state["start_count"])
        self._seen, self._skipped = int(state["seen"]), int(state["skipped"])
        self._error, self._alarm = float(state["error"]), int(state["alarm"])
        self._low_steps, self._high_steps = int(state["low_steps"]), int(state["high_steps"])


# Class attributes of a controller are constants there and questions to the wrapped one here.
_ASKED = ("name", "role", "supported_losses", "needs_stale_policy", "uses_loss_hook", "required_scaling")
for _name in (*_ASKED, "needs_reference", "needs_columns"):
    setattr(Guard, _name, property(attrgetter(f"controller.{_name}")))

controller = Guard
