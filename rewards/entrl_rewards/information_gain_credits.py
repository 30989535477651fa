"""What each question of a rollout was worth: the credit g_t of its events, by the environment's belief.

The table of credits stands at the top of `entrl_rewards.information_gain`.
"""

import math
from typing import Any

from entrl.beliefs import FactoredBelief


def credits(environment: Any, credit: str) -> list[float]:
    """g_t of each event in the credit's own unit, 0 for a submission; ValueError where the environment cannot know."""
    events = environment._events
    if credit == "target_prob":
        return _probability_gains(environment)
    floor = -log2_size(environment._estimator) if credit == "target" else 0.0
    return [_credit(event, credit, floor) for event in events]


def _credit(event: Any, credit: str, floor: float) -> float:
    step = event.step
    if credit == "none" or step is None or event.correct is not None:
        return 0.0
    if credit == "resolved":
        return float(event.resolved)
    if credit == "regret":
        best = event.best_expected
        return min(_known(step.expected, event, "expected gain") / best, 1.0) if best else 0.0
    if credit == "target":
        if event.contradiction and step.target_log_gain is None:
            return 0.0  # a factored belief that went back to its prior does not say
        return max(_known(step.target_log_gain, event, "target gain"), floor)
    return _known(getattr(step, credit), event, f"{credit} gain")


def _known(value: float | None, event: Any, what: str) -> float:
    if value is None:
        raise ValueError(
            f"event {event.number} ({event.key!r}) has no {what}; its environment's belief does not know it"
        )
    return float(value)


def _probability_gains(environment: Any) -> list[float]:
    """b_t(h*) - b_(t-1)(h*), from the prior and the log gains; they sum to last - first."""
    start = level = log2_prior(environment)
    forgets = environment._estimator.on_contradiction == "reset"
    gains = []
    for event in environment._events:
        step, before = event.step, level
        if step is not None and event.correct is None:
            if event.contradiction:
                level = start if forgets else level
            else:
                level += _known(step.target_log_gain, event, "target gain")
        gains.append(2.0**level - 2.0**before)
    return gains


def log2_prior(environment: Any) -> float:
    """log2 b0 of what the environment hides; a factored belief multiplies its slots."""
    prior = environment._estimator._prior
    if not hasattr(prior, "slots"):
        return prior.log2_prob(environment._target)
    truth = environment._truth
    if isinstance(prior, FactoredBelief):
        return math.fsum(belief.log2_prob(truth[name]) for name, belief in prior.slots.items())
    index = tuple(values.index(truth[name]) for name, values in prior.slots.items())
    return math.log2(prior.probs[index])


def log2_size(estimator: Any) -> float:
    """log2 of the number of hypotheses, of combinations where the belief is factored."""
    belief = estimator.belief
    if hasattr(belief, "slots"):
        return math.fsum(math.log2(len(slot)) for slot in belief.slots.values())
    return math.log2(len(belief))
