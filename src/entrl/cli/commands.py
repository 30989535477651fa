"""Which commands there are: ours, and those of other packages by the entry-point group `entrl.commands`.

    [project.entry-points."entrl.commands"]
    autopsy = "my_package.cli:autopsy"         # an `entrl.cli.parsers.Command`

A package that cannot be imported costs its own commands and no others; ours are found without looking at any package.
"""

import argparse
import shutil
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

from entrl.cli import build, evaluate, judge, play, run, sandbox
from entrl.cli.errors import BrokenCommand
from entrl.cli.parsers import Command
from entrl.errors import told
from entrl.settings.names import suggest

ENTRY_POINTS = "entrl.commands"
GROUPS = {
    "run": "run",
    "judge": "judge what came out",
    "study": "study",
    "build": "build what runs start from",
}
BUILT_IN: dict[str, Command] = {
    **run.COMMANDS,
    **evaluate.COMMANDS,
    **judge.COMMANDS,
    **sandbox.COMMANDS,
    **play.COMMANDS,
    **build.COMMANDS,
}


def find_command(name: str) -> Command:
    """LookupError for a name nobody has."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = plugins()
    if name in found:
        return load_plugin(found[name])
    known = [*BUILT_IN, *found]
    raise LookupError(f"no command {name!r}.{suggest(name, known)} There are {', '.join(known)}")


def plugins() -> dict[str, EntryPoint]:
    """Commands of other packages by name, unread; the first package on the path wins a name, ours before all."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in BUILT_IN:
            found.setdefault(entry.name, entry)
    return found


def load_plugin(entry: EntryPoint) -> Command:
    """The command it names; where there is none, one that says so."""
    whose = f"the command {entry.name!r} of the package {entry.dist.name if entry.dist else '?'} ({entry.value})"
    try:
        command = entry.load()
    except Exception as error:  # a stranger's module may raise anything, and must not take the other commands along
        return _broken(f"{whose} cannot be loaded: {told(error)}", error)
    if not isinstance(command, Command):
        return _broken(f"{whose} is no entrl.cli.parsers.Command but {type(command).__name__}")
    return command


def _broken(why: str, cause: Exception | None = None) -> Command:
    def run(options: argparse.Namespace) -> NoReturn:
        raise BrokenCommand(why) from cause

    return Command(help=why, group="not available", run=run, own_parser=True)


def overview() -> str:
    """What `entrl --help` prints: every command under its group, and what is wrong with those that cannot be had."""
    groups: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name, command in (BUILT_IN | {name: load_plugin(entry) for name, entry in plugins().items()}).items():
        groups.setdefault(command.group, []).extend(_entry(name, command.help))
    lines = ["usage: entrl COMMAND [options]", "", "Entropy-aware RL post-training on TRL.", ""]
    for title, entries in groups.items():
        lines += [f"{GROUPS.get(title, title)}:", *entries, ""] if entries else []
    lines += ["anywhere:", *_entry("--help", "also of one command: entrl train --help"), *_entry("--version", "")]
    lines += _entry("--traceback", "show the full traceback of an error")
    return "\n".join(lines)


def _entry(name: str, text: str) -> Iterator[str]:
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    head = f"  {name:<12} "
    yield from textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]
