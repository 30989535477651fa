"""What an environment's events look like from where the model sat: which answers it saw, in which turn it asked or
called wrongly, and what is logged of it.

Events and tool messages are not one to one. TRL takes an over-long tool result back out of the completion after the
tool has run (an event without a message), and answers unknown tools and wrong arguments itself (messages without an
event). Observations carry the environment's counter and are unique in an episode, so two pointers over exact texts
settle it.

Source:  TRL 1.16, GRPOTrainer._tool_call_loop; method card information-gain, sections 6.6, 6.7 and 7.3
Needs:   numpy, through entrl.environments
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from entrl.environments.events import malformed_call

ENVIRONMENT_ERROR = "Error: "  # how an environment answers bad arguments
TRL_ERROR = "{'error': "  # how the tool loop's own messages begin: unknown tool, wrong arguments, a tool that raised


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A completion beside the events of its environment. E events; a turn is an assistant message, counted from 0."""

    turns: int
    turn_E: tuple[int, ...]  # the turn that made the call
    seen_E: tuple[bool, ...]  # the observation is in the completion
    other: tuple[tuple[int, str], ...]  # (turn, text) of tool messages that no event wrote
    unread: tuple[int, ...] = ()  # turns whose call was malformed: TRL takes it for text, and the dialogue ends there


def follow(completion: Any, events: Sequence[Any]) -> Dialogue:
    """Match tool messages to events in order, each event once.

    An event whose message is not there belongs to the last turn: results are only ever taken back off the end.
    Raises TypeError for a completion that is no list of messages.
    """
    if isinstance(completion, str):
        raise TypeError("a completion is plain text, without tool messages; use prompts that are lists of messages")
    turn, at = -1, 0
    turn_of: dict[int, int] = {}
    other, unread = [], []
    for message in completion:
        if message["role"] == "assistant":
            turn += 1
            if malformed_call(message):
                unread.append(turn)
        if message["role"] != "tool":
            continue
        text = message["content"]
        found = next((i for i in range(at, len(events)) if events[i].observation == text), None)
        if found is None:
            other.append((max(turn, 0), str(text)))
        else:
            turn_of[found], at = max(turn, 0), found + 1
    last = max(turn, 0)
    return Dialogue(
        turns=turn + 1,
        turn_E=tuple(turn_of.get(i, last) for i in range(len(events))),
        seen_E=tuple(i in turn_of for i in range(len(events))),
        other=tuple(other),
        unread=tuple(unread),
    )


def invalid_turns(dialogue: Dialogue, environment: Any) -> list[int]:
    """The turn of each call that is malformed, has bad arguments or names no tool.

    Calls that were taken back count for the last turn.
    """
    turns = [*dialogue.unread]
    turns += [turn for turn, text in dialogue.other if text.startswith((TRL_ERROR, ENVIRONMENT_ERROR))]
    shown = sum(text.startswith(ENVIRONMENT_ERROR) for _, text in dialogue.other)
    return turns + [max(dialogue.turns - 1, 0)] * max(environment._invalid - shown, 0)


def metrics(dialogues: Sequence[Dialogue], environments: Sequence[Any], paid: Sequence[float]) -> dict[str, float]:
    """Means over the rollouts; gains in bits over what was seen."""
    found: dict[str, list[float]] = {}
    for dialogue, env, gain in zip(dialogues, environments, paid, strict=True):
        asked = [(e, seen) for e, seen in zip(env._events, dialogue.seen_E, strict=True) if e.correct is None]
        seen = [e for e, was in asked if was and e.step is not None]
        realised = math.fsum(e.step.realised for e in seen)
        expected = math.fsum(e.step.expected or 0.0 for e in seen)
        h0 = env._prior_entropy()
        row = {
            "paid": gain,
            "realised": realised,
            "expected": expected,
            "luck": realised - expected,
            "normalised": realised / h0 if h0 > 0 else 0.0,
            "questions": float(len(asked)),
            "gain_per_question": realised / len(seen) if seen else 0.0,
            "repeats": float(sum(e.repeated for e, _ in asked)),
            "contradictions": float(sum(e.contradiction for e, _ in asked)),
            "invalid": float(len(invalid_turns(dialogue, env))),
            "refused": float(env._refused),
            "unseen": float(sum(not was for was in dialogue.seen_E)),
            "submitted": float(env._correct is not None),
            "success": float(env._correct is True),
            "score": float(env._score or 0.0),
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}
