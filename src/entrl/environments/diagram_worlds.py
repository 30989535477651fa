"""Worlds of diagrams: which slots there are, how likely each combination is, and how one is written.

    p(s) ~ prod_i m_i(s_i) prod_rules f(s)         m_i ~ Dirichlet(3), drawn once per world; 345,600 combinations
    rules     timelines and Gantt charts go left to right (always), trees rather top down; radial layouts favour
              undirected connectors; many components favour few labels, few components many; swimlanes favour lanes
              f(s) = 1 where s keeps the rule, else the rule's factor

Source:  method card information-gain, section 10.2; slots, values, rules and Dirichlet(3) are ours (the attribute
    list of "Dialogue as Discovery" is unknown)
Needs:   numpy
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from entrl.beliefs import dependence_bits, marginals
from entrl.beliefs.information import Array
from entrl.environments.events import BadArguments, listed, matched, shown
from entrl.settings.names import suggest

# slot -> groups of values; a coarse answer names a group. Every value belongs to one slot only.
SLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "kind": (("flowchart", "swimlane"), ("tree", "network"), ("timeline", "gantt"), ("venn", "matrix")),
    "layout": (("left-right", "top-down"), ("radial", "circular"), ("grid",)),
    "components": (("few", "several"), ("many", "dozens")),
    "connector": (("arrows", "elbows"), ("lines", "dashes")),
    "grouping": (("boxes", "lanes"), ("layers", "ungrouped")),
    "palette": (("gray", "blues"), ("pastel", "vivid", "contrast")),
    "labels": (("sparse", "moderate"), ("dense",)),
    "annotation": (("unannotated",), ("callouts", "legend")),
    "aspect": (("square",), ("wide", "tall")),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Where `slot` has one of `values`, combinations whose `other` is not among `favoured` weigh `factor` as much."""

    slot: str
    values: tuple[str, ...]
    other: str
    favoured: tuple[str, ...]
    factor: float  # 0: never


RULES = (
    Rule(slot="kind", values=("timeline", "gantt"), other="layout", favoured=("left-right",), factor=0.0),
    Rule(slot="kind", values=("tree",), other="layout", favoured=("top-down",), factor=0.1),
    Rule(slot="kind", values=("swimlane",), other="grouping", favoured=("lanes",), factor=0.05),
    Rule(slot="layout", values=("radial", "circular"), other="connector", favoured=("lines", "dashes"), factor=0.05),
    Rule(slot="components", values=("many", "dozens"), other="labels", favoured=("sparse",), factor=0.05),
    Rule(slot="components", values=("few",), other="labels", favoured=("moderate", "dense"), factor=0.1),
)
CONCENTRATION = 3.0  # of the Dirichlet: uneven marginals, no value forgotten


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Which slots there are, and how likely each combination is."""

    world_id: str
    slots: dict[str, tuple[str, ...]]
    joint: Array  # one axis per slot, sums to 1

    @functools.cached_property
    def marginals(self) -> dict[str, Array]:
        return dict(zip(self.slots, marginals(self.joint), strict=True))

    @functools.cached_property
    def _cumulative(self) -> Array:
        return np.cumsum(self.joint.ravel())

    def specification(self, uniform: float) -> dict[str, str]:
        """The combination that a uniform number in [0, 1) falls on; never an impossible one."""
        total = self._cumulative
        index = np.unravel_index(np.searchsorted(total, uniform * total[-1], side="right"), self.joint.shape)
        return {slot: values[int(i)] for (slot, values), i in zip(self.slots.items(), index, strict=True)}

    def dependence_bits(self) -> float:
        """What independent slots overstate: sum of the slots' entropies less that of the joint."""
        return dependence_bits(self.joint)


def written(specification: Mapping[str, str]) -> str:
    """`kind=flowchart; layout=left-right`."""
    return "; ".join(f"{slot}={value}" for slot, value in specification.items())


def world_id(*, slots: int | Sequence[str] = len(SLOTS), dependencies: bool = True, world: int = 0) -> str:
    """The name of a world. slots: how many of SLOTS from the first, or which. ValueError."""
    if isinstance(slots, bool | str):
        raise ValueError(f"slots must be a number or a list of names, got {slots!r}")
    if isinstance(slots, int):
        if not 1 <= slots <= len(SLOTS):
            raise ValueError(f"slots must be in 1..{len(SLOTS)}, got {slots}")
        chosen = list(SLOTS)[:slots]
    else:
        for name in slots:
            if name not in SLOTS:
                raise ValueError(f"no slot {name!r}.{suggest(str(name), SLOTS)} There are {', '.join(SLOTS)}")
        chosen = [name for name in SLOTS if name in slots]
        if not chosen:
            raise ValueError(f"slots is empty; name at least one of {', '.join(SLOTS)}")
    if isinstance(world, bool) or not isinstance(world, int) or world < 0:
        raise ValueError(f"world must be a whole number >= 0, got {world!r}")
    return f"diagram:world={world},slots={'+'.join(chosen)},dependencies={int(dependencies)}"


_WORLD = re.compile(r"diagram:world=(\d+),slots=([a-z+]+),dependencies=([01])")


@functools.lru_cache(maxsize=16)
def find_world(name: str) -> World:
    """The world of a `world_id`. Rules apply where both of their slots are there. ValueError."""
    match = _WORLD.fullmatch(name)
    chosen = match[2].split("+") if match else []
    if match is None or any(slot not in SLOTS for slot in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(f"unknown diagram world {name!r}; make it with entrl.environments.diagram_worlds.world_id")
    slots = {slot: tuple(value for group in SLOTS[slot] for value in group) for slot in chosen}
    order = list(SLOTS)
    sizes = [np.full(len(values), CONCENTRATION) for values in slots.values()]
    drawn = [
        np.random.default_rng([int(match[1]), order.index(slot)]).dirichlet(size)
        for slot, size in zip(slots, sizes, strict=True)
    ]  # a slot has the same marginal in every selection of slots, before the rules
    joint = functools.reduce(np.multiply.outer, drawn)
    for rule in RULES if match[3] == "1" else ():
        if rule.slot in slots and rule.other in slots:
            joint = joint * _factors(rule, slots)
    joint /= joint.sum()
    joint.flags.writeable = False
    return World(world_id=name, slots=slots, joint=joint)


def _factors(rule: Rule, slots: Mapping[str, Sequence[str]]) -> Array:
    """The rule's factor over all combinations, with axes of length 1 for the slots it does not mention."""
    applies = np.isin(slots[rule.slot], rule.values)
    broken = ~np.isin(slots[rule.other], rule.favoured)
    table = np.where(applies[:, None] & broken[None, :], rule.factor, 1.0)
    names = list(slots)
    first, second = names.index(rule.slot), names.index(rule.other)
    shape = [1] * len(names)
    shape[first], shape[second] = table.shape
    return (table if first < second else table.T).reshape(shape)


def checked_target(target: object, world: World) -> dict[str, str]:
    try:
        truth = parse_specification(target, world.slots)
    except BadArguments as error:
        raise ValueError(f"target {target!r} of world {world.world_id!r}: {error}") from error
    missing = [slot for slot in world.slots if slot not in truth]
    if missing:
        raise ValueError(f"target {target!r} says nothing about {', '.join(missing)}")
    return truth


def parse_specification(text: object, slots: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Slot to value from `kind=flowchart; layout=left-right`, in the order of `slots`; slots may be missing.

    Also read: commas or lines between, a colon for the equals sign, a value without its slot (each belongs to one), and
    a mapping, since a model may write the argument as an object. Raises BadArguments for nothing, an unknown slot or
    value, and two different values of one slot.
    """
    owner = {value: slot for slot, values in slots.items() for value in values}
    if isinstance(text, Mapping):
        parts = [f"{slot}={value}" for slot, value in text.items()]
    elif isinstance(text, str):
        parts = [part for part in re.split(r"[;,\n]", text) if part.strip()]
    else:
        parts = []
    if not parts:
        raise BadArguments(f'write the specification as "slot=value; slot=value", got {shown(text)}')
    found: dict[str, str] = {}
    for part in parts:
        name, sign, value = re.split(r"([=:])", part, maxsplit=1) if re.search("[=:]", part) else ("", "", part)
        slot = matched(name, slots, "slot") if sign else owner[matched(value, owner, "value")]
        known = matched(value, slots[slot], f"value of {slot}")
        if found.setdefault(slot, known) != known:
            raise BadArguments(f"two values for {slot}: {found[slot]} and {known}")
    return {slot: found[slot] for slot in slots if slot in found}


def values_listed(world: World) -> str:
    """One line per slot: `kind: flowchart, swimlane, ...`."""
    return "\n".join(f"{slot}: {listed(values)}" for slot, values in world.slots.items())
