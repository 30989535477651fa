"""`entrl sandbox`: where code that a model wrote would run here, and one program run there."""

import argparse
import sys

from entrl.cli.parsers import Command, path


def sandbox_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs="?", type=path, help="Python to run in it; it reads this command's input")
    parser.add_argument("--tier", help="bubblewrap or landlock (default: the first that works)")
    parser.add_argument("--seconds", type=float, default=10.0, help="it may run (default 10)")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="it may have (default 512)")


def run_sandbox(options: argparse.Namespace) -> int:
    from entrl.sandbox import Limits, open_sandbox, probe

    if options.program is None:
        for found in probe():
            print(f"{found.tier:<12} {'works' if found.works else f'not here: {found.why}'}")
        print(f"code of a model runs in {open_sandbox(tier=options.tier).tier}")
        return 0
    limits = Limits(wall_s=options.seconds, cpu_s=max(1, round(options.seconds)), memory_mib=options.memory)
    box = open_sandbox(tier=options.tier, limits=limits)
    source = options.program.read_text(encoding="utf-8")
    outcome = box.run(source, b"" if sys.stdin.isatty() else sys.stdin.buffer.read())
    sys.stdout.write(outcome.stdout.decode(errors="replace"))
    sys.stdout.flush()
    sys.stderr.write(outcome.stderr.decode(errors="replace"))
    print(f"{box.tier}: {outcome.status}, exit code {outcome.exit_code}, {outcome.seconds:.2f} s", file=sys.stderr)
    return 0 if outcome.status == "ok" else 1


COMMANDS = {
    "sandbox": Command(
        help="Show where code of a model would run here, or run a program there.",
        group="run",
        arguments=sandbox_arguments,
        run=run_sandbox,
    ),
}
