"""What to replay: words of the command line -> controllers, one `Setting` each.

none                                     the plain loss
clip_cov:fraction=0.02                   a controller as in a recipe, with options
clip_cov:fraction=0.02+ce_gppo           several at once
my_controllers.py:brake:strength=0.5     one's own, named as in a recipe
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.controllers.hooks import Controller
from entrl.settings.groups import parse_yaml
from entrl.settings.names import load_controller

PLAIN = "none"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Controllers that act together; none of them for the plain loss."""

    label: str
    controllers: tuple[Controller, ...] = ()

    def fresh_controllers(self) -> list[Controller]:
        """Copies, so that what a controller counts while one window is replayed does not reach the next."""
        return copy.deepcopy(list(self.controllers))


def parse_settings(words: Sequence[str], *, fractions: Sequence[float] = (), base: Path | None = None) -> list[Setting]:
    """One setting per word, several where `fractions` fill in an option `fraction` that the word leaves open.

    The plain loss comes first, asked for or not: everything is told relative to it.
    """
    settings = [Setting(label=PLAIN)]
    for word in words:
        open_ended = fractions and any(
            "fraction" in _fields(load_controller(name, args, base=base).value) and "fraction" not in args
            for name, args in split_setting(word)
        )
        for fraction in fractions if open_ended else (None,):
            settings.append(make_setting(word, fraction=fraction, base=base))
    labels = [s.label for s in settings]
    return [s for i, s in enumerate(settings) if s.label not in labels[:i]]


def make_setting(word: str, *, fraction: float | None = None, base: Path | None = None) -> Setting:
    """One word -> its controllers; `fraction` goes to those that have the option and were not given it."""
    controllers, labels = [], []
    for name, args in split_setting(word):
        if fraction is not None and "fraction" not in args:
            plain = load_controller(name, args, base=base).value
            args = {**args, "fraction": fraction} if "fraction" in _fields(plain) else args
        controllers.append(load_controller(name, args, base=base).value)
        shown = ",".join(f"{k}={v}" for k, v in args.items())
        labels.append(f"{name}:{shown}" if shown else name)
    setting = Setting(label="+".join(labels) or PLAIN, controllers=tuple(controllers))
    check_setting(setting)
    return setting


def split_setting(word: str) -> list[tuple[str, dict[str, Any]]]:
    """'a:x=1,y=2+b' -> [('a', {x: 1, y: 2}), ('b', {})]; empty for the plain loss."""
    if word.strip() == PLAIN:
        return []
    return [_split_one(part.strip(), word) for part in word.split("+")]


def _split_one(part: str, word: str) -> tuple[str, dict[str, Any]]:
    name, colon, last = part.rpartition(":")
    if not colon or "=" not in last:
        name, last = part, ""
    if not name or name == PLAIN:
        raise ValueError(
            f"{word!r} names no controller; write 'none' alone, 'name', or 'name:option=value,option=value'"
        )
    args = {}
    for pair in filter(None, last.split(",")):
        key, equals, text = pair.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise ValueError(f"{pair!r} in {word!r} should read option=value, such as clip_cov:fraction=0.02")
        args[key.strip()] = parse_yaml(text, name=word)
    return name, args


def _fields(value: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(value) if f.init}


def check_setting(setting: Setting) -> None:
    """ValueError where a replay of one logged window cannot say what the controllers would do."""
    for controller in setting.controllers:
        if controller.needs_reference:
            raise ValueError(
                f"{controller.name} acts on the KL to the reference model, which a logged window does not hold; "
                "compare it by training, with `entrl replicate`"
            )
        if type(controller).on_rollout is not Controller.on_rollout:
            raise ValueError(
                f"{controller.name} replaces advantages from the rewards of a rollout, which a logged window does not "
                "hold (groups without spread have advantage 0 whatever their rewards); compare it by training, with "
                "`entrl replicate`"
            )
    roles = [c.role for c in setting.controllers if c.role is not None]
    ranges = {c.clip_range for c in setting.controllers if c.clip_range is not None}
    names = [c.name for c in setting.controllers]
    for what, clash in (
        (f"two controllers of role {_twice(roles)}", _twice(roles) is not None),
        (f"controllers with different ratio ranges {sorted(ranges)}", len(ranges) > 1),
        (f"{_twice(names)} twice", _twice(names) is not None),
    ):
        if clash:
            raise ValueError(f"{setting.label!r} holds {what}, which training refuses; replay them one by one")


def _twice(values: Sequence[str]) -> str | None:
    return next((v for v in values if values.count(v) > 1), None)


def logged_setting(controllers: Sequence[Mapping[str, Any]], *, base: Path | None = None) -> Setting:
    """The controllers a run acted with, out of the names and options its windows carry.

    Raises ValueError where one cannot be built again (a controller of one's own, known by its name alone), and for
    controllers that only change advantages nothing is built: the window holds the advantages they left. One that acts
    on the KL to the reference is left out as well: that term is no part of what a replay computes.
    """
    found = []
    for entry in controllers:
        controller = _rebuilt(entry, base)
        if type(controller).on_rollout is Controller.on_rollout and not controller.needs_reference:
            found.append(controller)
    return Setting(label="as logged", controllers=tuple(found))


def _rebuilt(entry: Mapping[str, Any], base: Path | None) -> Controller:
    inside = entry["options"].get("controller")
    if isinstance(inside, Mapping):  # a guard is the controller it wraps, with the knob where it stood
        return _rebuilt(inside, base)
    return load_controller(entry["name"], entry["options"], base=base).value
