"""`entrl report`, `entrl compare`, `entrl advise`, `entrl try-reward`: what came out of a run."""

import argparse
import json
from typing import Any

from entrl.cli.parsers import Command, path
from entrl.runs.wording import shown


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN")
    parser.add_argument("--out", type=path, help="default: report.html in the first run folder")


def run_report(options: argparse.Namespace) -> int:
    from entrl.report import write_report

    print(write_report(options.runs, options.out or options.runs[0] / "report.html"))
    return 0


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", type=path, metavar="RUN_A")
    parser.add_argument("run_b", type=path, metavar="RUN_B")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")


def run_compare(options: argparse.Namespace) -> int:
    from entrl.report.compare import compare_runs, comparison_json, print_comparison

    comparison = compare_runs(options.run_a, options.run_b)
    if options.as_json:
        print(comparison_json(comparison))
    else:
        print_comparison(comparison)
    return 0


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of completions; write 1 or more")
    return int(text)


def try_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reward", metavar="FILE[:FUNCTION]", help="as `use` in a recipe: a file, a module, a bare name")
    parser.add_argument("args", nargs="*", metavar="KEY=VALUE", help="arguments of the reward, such as alpha=0.5")
    parser.add_argument("--on", type=path, required=True, metavar="RUN|FILE", help="a run folder, or completions.jsonl")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds it may take (default 600)")
    parser.add_argument("--limit", type=count, metavar="N", help="look at the first N completions alone")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")


def run_try(options: argparse.Namespace) -> int:
    from entrl.runs.stored import read_stored
    from entrl.runs.try_reward import try_apart
    from entrl.settings.overrides import apply_override

    args: dict[str, Any] = {}
    for word in options.args:
        apply_override(args, word)
    stored = read_stored(options.on, limit=options.limit)
    tried = try_apart(options.reward, args, stored, seconds=options.timeout)
    print(json.dumps(tried.to_json(), indent=2, ensure_ascii=False) if options.as_json else shown(tried.render()))
    return 1 if tried.problems else 0


def advise_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder, of a run that is over or under way")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the findings as JSON")


def run_advise(options: argparse.Namespace) -> int:
    from entrl.diagnosis.rules import seen, values_of
    from entrl.report.read import read_run

    run = read_run(options.run)
    found = seen(run.train)
    wrong = [one for one in found if not one.excuse]
    if options.as_json:
        print(json.dumps({"steps": len(run.train), "findings": [one.as_json() for one in wrong]}, indent=2))
        return 0
    for one in found:
        print(shown(f"note: {one.evidence}; {one.excuse}" if one.excuse else one.text))
    if not wrong:
        well = f" ({', '.join(values_of(run.train))})" if values_of(run.train) else ""
        print(f"no symptom in {len(run.train)} logged steps{well}" if run.train else "nothing was logged yet")
    return 0


COMMANDS = {
    "advise": Command(
        help="Say what a run's metrics show to be wrong, and which key of its recipe to change.",
        group="judge",
        arguments=advise_arguments,
        run=run_advise,
    ),
    "report": Command(
        help="Write one self-contained HTML page about one or several runs.",
        group="judge",
        arguments=report_arguments,
        run=run_report,
    ),
    "compare": Command(
        help="Paired differences of two runs on the same problems, with 95 % intervals.",
        group="judge",
        arguments=compare_arguments,
        run=run_compare,
    ),
    "try-reward": Command(
        help="Call a reward on completions that were kept; exit 1 when training could not use it.",
        group="judge",
        arguments=try_arguments,
        run=run_try,
    ),
}
