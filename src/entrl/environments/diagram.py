"""Diagram specification: find out what somebody wants drawn, slot by slot, from a user who may know little about it.

p is the world's (`entrl.environments.diagram_worlds`). The belief is one per slot with the marginals of p as its prior
(what counting examples gives), or p itself (`belief="exact"`), which shows what the assumption of independence costs.

Users, drawn once per (episode, slot):
    expert         names the value
    intermediate   with probability `coarse` names a group of values that contains it; recognises it when it is named
    novice         with probability `unsure` is not sure, whatever the value; otherwise knows the group only
What a user does not know stays unknown, and the belief knows that: it keeps, per slot, how likely each state of
knowledge is for each value, so asking again about a slot somebody is not sure of is worth exactly 0.

    row columns   table_id, target, expertise (expert), named (""), user_noise (0), max_questions (6), seed (0)

`named` is the slot that the opening request gives away; the belief starts from it. `user_noise` is the probability that
an answer is about another value of the slot, drawn once per question.

Source:  method card information-gain, section 10.2
Needs:   numpy

V values of a slot, M = 3 states of knowledge (exact, coarse, unsure), A answers.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from entrl.beliefs import Factored
from entrl.beliefs.errors import InvalidDistribution
from entrl.beliefs.estimators import Observation, OnContradiction
from entrl.beliefs.information import Array, entropy_bits
from entrl.environments.diagram_worlds import SLOTS, checked_target, find_world, parse_specification, written
from entrl.environments.events import (
    CERTAIN,
    BadArguments,
    InquiryEnv,
    OwnReward,
    draw,
    matched,
    pick,
    shown,
)
from entrl.environments.joint import JointBelief, JointSlots

NOT_SURE = "not sure"
CHOICE_ANSWERS = ("no", "yes", NOT_SURE)
EXACT, COARSE, UNSURE = range(3)
Expertise = Literal["expert", "intermediate", "novice"]


@functools.lru_cache(maxsize=len(SLOTS))
def open_question(slot: str) -> tuple[tuple[str, ...], Array]:
    """ "What is it?": the answers, and (V, M, A) 0 or 1, which of them a user gives who knows this much.

    An answer is the value, a group of several, or not knowing. Do not write into the table.
    """
    groups = SLOTS[slot]
    values = [value for group in groups for value in group]
    answers = (*values, *(" or ".join(group) for group in groups if len(group) > 1), NOT_SURE)
    table = np.zeros((len(values), 3, len(answers)))
    for v, value in enumerate(values):
        group = next(group for group in groups if value in group)
        for state, said in ((EXACT, value), (COARSE, " or ".join(group)), (UNSURE, NOT_SURE)):
            table[v, state, answers.index(said)] = 1.0
    table.flags.writeable = False
    return answers, table


class DiagramShort(InquiryEnv):
    """Tools `ask(slot)` and `submit(specification)`: few words, for small models."""

    _DEFAULT_BUDGET = 6

    def __init__(
        self,
        *,
        belief: Literal["factored", "exact"] = "factored",
        on_contradiction: OnContradiction = "ignore",
        coarse: float = 0.5,
        unsure: float = 0.4,
        assumed_noise: float | None = None,
        slot_in_answer: bool = False,
    ) -> None:
        """coarse, unsure: probabilities of the users described above (ours). assumed_noise: what the belief takes the
        user's noise to be; None: what it is. slot_in_answer: answers to "what is it?" read "layout=radial" and not
        "radial", as submissions are written, which spares a small model to look up what it had asked.
        """
        if belief not in ("factored", "exact"):
            raise ValueError(f"belief must be 'factored' or 'exact', got {belief!r}")
        for name, value in {"coarse": coarse, "unsure": unsure, "assumed_noise": assumed_noise or 0.0}.items():
            if not 0 <= value <= 1:
                raise InvalidDistribution(f"{name} must be in [0, 1], got {value}")
        self._belief_kind = belief
        self._coarse, self._unsure, self._assumed = coarse, unsure, assumed_noise
        self._slot_in_answer = slot_in_answer
        super().__init__(on_contradiction=on_contradiction)

    def reset(self, **row: Any) -> None:
        """Start the episode of one row; ValueError for a world, target, slot or expertise that does not exist."""
        if not isinstance(row.get("table_id"), str):
            raise ValueError(f"the row has no column 'table_id' with a world's name, got {sorted(row)}")
        world = find_world(row["table_id"])
        truth = checked_target(row.get("target"), world)
        expertise, named = row.get("expertise") or "expert", row.get("named") or ""
        if expertise not in get_args(Expertise):
            raise ValueError(f"expertise must be one of {', '.join(get_args(Expertise))}; got {expertise!r}")
        if named and named not in world.slots:
            raise ValueError(f"named slot {named!r} is not in world {world.world_id!r}")
        self._clear(row)
        self._world, self._truth, self._target = world, truth, written(truth)
        self._expertise: str = expertise
        self._belief_noise = self._noise if self._assumed is None else self._assumed
        prior = {"expert": (1, 0, 0), "intermediate": (1 - self._coarse, self._coarse, 0)}
        self._states: Array = np.array(prior.get(expertise, (0, 1 - self._unsure, self._unsure)), dtype=np.float64)
        self._forget()
        self._estimator = self._build(named)

    def _forget(self) -> None:
        """(V, M) per slot: how likely each state of knowledge is for each value; at first independent of the value."""
        self._known = {slot: np.tile(self._states, (len(v), 1)) for slot, v in self._world.slots.items()}

    def _build(self, named: str) -> Factored | JointSlots:
        """The prior, given what the opening request says."""
        world = self._world
        at = world.slots[named].index(self._truth[named]) if named else 0
        if self._belief_kind == "factored":
            counts: dict[str, Any] = dict(world.marginals)
            if named:
                counts[named] = np.eye(len(world.slots[named]))[at]
            return Factored(world.slots, counts, on_contradiction=self._on_contradiction)
        joint = world.joint
        if named:
            shape = [1] * joint.ndim
            shape[list(world.slots).index(named)] = -1
            joint = joint * np.eye(len(world.slots[named]))[at].reshape(shape)
            joint = joint / joint.sum()
        return JointSlots(JointBelief(world.slots, joint), on_contradiction=self._on_contradiction)

    def ask(self, slot: str) -> str:
        """
        Ask what the user wants for one slot.

        Args:
            slot: The slot to ask about.

        Returns:
            The answer.
        """
        return self._call(lambda: self._ask(slot), question=True)

    def submit(self, specification: str) -> str:
        """
        Submit the specification. This ends the inquiry.

        Args:
            specification: All slots, written as "slot=value; slot=value".

        Returns:
            How many slots are right.
        """
        return self._call(lambda: self._submit(specification), question=False)

    def _ask(self, slot: object) -> str:
        name = matched(slot, self._world.slots, "slot")
        answers, table = open_question(name)
        return self._observed("ask", name, name, answers, table)

    def _observed(self, tool: str, slot: str, key: str, answers: tuple[str, ...], table: Array) -> str:
        """Draw the answer to a question with the (V, M, A) `table`, and take it in."""
        truth = self._world.slots[slot].index(self._truth[slot])
        where = (self._seed, self._world.world_id, self._target)
        state = pick(self._states, draw(*where, slot, "state"))
        answer = pick(_noisy(table, self._noise)[truth, state], draw(*where, key))
        told = _noisy(table, self._belief_noise)
        likelihood = np.einsum("vm,vma->va", self._known[slot], told)
        best, before = self._best_expected(slot, key, likelihood), self._certain()
        seen: Observation = self._estimator.observe(
            slot, question=key, likelihood=likelihood, answer=answer, target=truth
        )
        if seen.contradiction and self._on_contradiction == "reset":
            self._forget()
        elif not seen.contradiction and not seen.repeated:
            self._known[slot] = _learned(self._known[slot], told[:, :, answer])
        resolved = max(len(self._certain() - before), 0)
        said = answers[seen.answer]
        text = f"{slot}={said}" if self._slot_in_answer and tool == "ask" else said
        return self._question(tool, key, text, seen, best_expected=best, resolved=resolved)

    def _best_expected(self, slot: str, key: str, likelihood: Array) -> float:
        """Of "what is it?" about each slot not asked that way yet, and of this question."""
        belief, asked = self._estimator.belief, set(self._estimator.asked)
        gains = [0.0 if key in asked else belief.expected_gain(slot, likelihood)]
        for name in self._world.slots:
            if name not in asked and name != key:
                told = _noisy(open_question(name)[1], self._belief_noise)
                gains.append(belief.expected_gain(name, np.einsum("vm,vma->va", self._known[name], told)))
        return max(gains)

    def _marginal(self, slot: str) -> Array:
        """(V,) what is believed about one slot now."""
        belief = self._estimator.belief
        return belief.marginal(slot) if isinstance(belief, JointBelief) else belief.slots[slot].probs

    def _certain(self) -> set[str]:
        return {slot for slot in self._world.slots if float(entropy_bits(self._marginal(slot))) <= CERTAIN}

    def _submit(self, specification: object) -> str:
        given = parse_specification(specification, self._world.slots)
        right = sum(given.get(slot) == value for slot, value in self._truth.items())
        total = len(self._truth)
        return self._submission(written(given), right / total, f"Right: {right} of {total}.")


class DiagramSpecification(DiagramShort):
    """With a third tool, `ask_choice(slot, options)`: is it one of these?"""

    def ask_choice(self, slot: str, options: list[str]) -> str:
        """
        Ask whether the user wants one of several values for a slot.

        Args:
            slot: The slot to ask about.
            options: Values of that slot.

        Returns:
            The answer.
        """
        return self._call(lambda: self._ask_choice(slot, options), question=True)

    def _ask_choice(self, slot: object, options: object) -> str:
        name = matched(slot, self._world.slots, "slot")
        given = options.split(",") if isinstance(options, str) else options
        if not isinstance(given, list | tuple) or not given:
            raise BadArguments(f"options must be a list of values of {name}, got {shown(options)}")
        values = self._world.slots[name]
        wanted = {matched(one, values, f"value of {name}") for one in given}
        chosen = [value for value in values if value in wanted]  # one order, so that repeats are known
        key = f"{name}: {' or '.join(chosen)}"
        return self._observed("ask_choice", name, key, CHOICE_ANSWERS, self._choice_table(name, chosen))

    def _choice_table(self, slot: str, chosen: Sequence[str]) -> Array:
        """(V, M, 3) 0 or 1. An intermediate user recognises the value; a novice knows the group at most."""
        values = self._world.slots[slot]
        table = np.zeros((len(values), 3, 3))
        for v, value in enumerate(values):
            group = next(g for g in SLOTS[slot] if value in g)
            inside = sum(one in chosen for one in group)
            exact = int(value in chosen)
            coarse = 1 if inside == len(group) else 0 if inside == 0 else 2
            table[v, EXACT, exact] = 1.0
            table[v, COARSE, coarse if self._expertise == "novice" else exact] = 1.0
            table[v, UNSURE, 2] = 1.0
        return table


class ScoredDiagramSpecification(OwnReward, DiagramSpecification):
    """`DiagramSpecification` that brings its own reward."""


def _noisy(table: Array, noise: float) -> Array:
    """With probability `noise` the user speaks of another value, each as likely; (V, M, A)."""
    count = len(table)
    return (1 - noise) * table + noise * (table.sum(0, keepdims=True) - table) / (count - 1) if noise else table


def _learned(known: Array, told: Array) -> Array:
    """P(state | value, answer), (V, M) each; values that the answer rules out keep what they had."""
    weights = known * told
    total = weights.sum(1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), known)
