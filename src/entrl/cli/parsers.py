"""What a command is: its line in the help, its arguments, what it does; and the arguments that several share.

A command from outside is the same object, named by an entry point (`entrl.cli.commands`):

    # my_package/cli.py
    def arguments(parser):
        parser.add_argument("run", type=path)

    def run(options):
        from my_package.heavy import look      # not at the top: `entrl --help` imports this file
        return look(options.run)

    autopsy = Command(help="Say what a run died of.", group="study", arguments=arguments, run=run)
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrl.settings.paths import expand_path
from entrl.version import __version__

TEMPLATE_HELP = "such as '{enable_thinking: false}' or enable_thinking=false (default: as its run)"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `entrl`.

    help: one sentence, for the list of commands and the top of its own help
    group: the title it stands under in `entrl --help`
    arguments: adds them to the parser; called only when the command is, so it may import what it lists
    run: takes the parsed options, returns the exit code: 0 all right, 1 the answer is no. A ValueError (and the other
        `USER_ERRORS`) is told in one line with exit code 2
    own_parser: `run` reads its words itself, from `options.words`; `arguments` is not asked
    """

    help: str
    group: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    own_parser: bool = False

    def parse(self, name: str, words: Sequence[str], options: argparse.Namespace) -> argparse.Namespace:
        """`words` after the command's name, into `options`; leaves the program where they are wrong."""
        parser = argparse.ArgumentParser(
            prog=f"entrl {name}",
            description=self.help,
            add_help=not self.own_parser,
            allow_abbrev=not self.own_parser,  # of --traceback, say: it would take a word that is the command's own
        )
        add_global_options(parser)
        if self.own_parser:
            options, options.words = parser.parse_known_args(words, options)
            return options
        self.arguments(parser)
        return parser.parse_intermixed_args(words, options)


def add_global_options(parser: argparse.ArgumentParser) -> None:
    """What is accepted before a command and anywhere after it."""
    parser.add_argument("--version", action="version", version=f"entrl {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show the full traceback of an error"
    )


def path(text: str) -> Path:
    """A path among the arguments; a shell leaves `--out=~/x` and quoted ones as they are."""
    return Path(expanded(text))


def expanded(text: str) -> str:
    """The same for what may also be a name or KIND:PATH: a model, a task, a policy."""
    kind, colon, rest = text.partition(":")
    try:
        return f"{kind}:{expand_path(rest, 'the path')}" if colon else expand_path(text, "the path")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str, kind: type[int] | type[float], option: str) -> list[Any]:
    """'1,8,32' -> [1, 8, 32]."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas between, such as 1,8,32; got {text!r}") from None


def add_recipe(parser: argparse.ArgumentParser, overrides: str) -> None:
    """A file of settings and the words that change it; `overrides` says which."""
    parser.add_argument("recipe", type=path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=overrides)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Of the weights of a model that is loaded to be asked."""
    from entrl.models.load import DTYPES

    parser.add_argument(
        "--dtype", default="auto", help=f"of the weights: {', '.join(DTYPES)}, or as saved (auto, the default)"
    )


def add_rows(parser: argparse.ArgumentParser, *, size: int | None, size_help: str, seed_help: str) -> None:
    """Which rows of a task."""
    parser.add_argument(
        "--task-args", default="{}", metavar="YAML", help="options of the task, such as '{max_terms: 3}' or '{rows: 8}'"
    )
    parser.add_argument("--size", type=int, default=size, help=size_help)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--seed", type=int, default=1, help=seed_help)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path, help="write the JSON here")
