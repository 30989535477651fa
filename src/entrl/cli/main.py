"""The command line: arguments -> objects -> one call. No maths; heavy imports happen inside the commands.

Exit codes: 0 all right; 1 the command ran and the answer is no (plan has problems, a conformance case fails);
2 something the user set or passed is wrong, told in one line; 141 nobody reads the output any more. Anything else keeps
its traceback.
"""

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Sequence

from entrl.cli.commands import find_command, overview
from entrl.cli.errors import USER_ERRORS, one_line, print_error
from entrl.cli.parsers import Command, add_global_options
from entrl.errors import RunStopped
from entrl.runs.together import is_hushed, leave_ranks, lost_ranks, rank_prefix


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code. Leaves by SystemExit where the words themselves are wrong, as argparse does."""
    try:
        code = _run(argv)
    except BrokenPipeError as error:
        if not reader_left():
            print_error(error)
            return 2
        return 141
    return 141 if reader_left() else code


def reader_left() -> bool:
    """Whether nobody reads what is printed any more, as after `| head`; it is thrown away from then on."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
        asked = select.poll()
        asked.register(sys.stdout.fileno(), 0)
        if any(events & select.POLLERR for _, events in asked.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False


def _run(argv: Sequence[str] | None) -> int:
    command, options = parse(sys.argv[1:] if argv is None else argv)
    if command is None:
        print(overview())
        return 0
    try:
        code = command.run(options)
        leave_ranks()
        return code
    except BrokenPipeError:
        raise
    except USER_ERRORS as error:
        if options.traceback:
            raise
        print_error(error)
        return 2
    except RunStopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as error:
        if not rank_prefix() or options.traceback:
            raise
        if lost_ranks(error) or is_hushed(error):  # the cause is what the other rank says
            print(f"{rank_prefix()}ended with the other ranks ({one_line(error)})", file=sys.stderr)
            return 2
        print_error(error)  # before the noise of the ranks that lose this one
        raise


def parse(words: Sequence[str]) -> tuple[Command | None, argparse.Namespace]:
    """(the command, its options); (None, ...) where none is named or help is asked for."""
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    parser = argparse.ArgumentParser(prog="entrl", usage="entrl COMMAND [options]", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    add_global_options(parser)
    options = parser.parse_args(words[:at], argparse.Namespace(traceback=False))
    if options.help or at == len(words):
        return None, options
    try:
        command = find_command(words[at])
    except LookupError as error:
        parser.error(str(error.args[0]))
    return command, command.parse(words[at], words[at + 1 :], options)
