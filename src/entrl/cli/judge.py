"""`entrl report`, `entrl compare`: what came out of a run."""

import argparse
import json

from entrl.cli.parsers import Command, path


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


def advise_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder, of a run that is over or under way")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the findings as JSON")


def run_advise(options: argparse.Namespace) -> int:
    from entrl.diagnosis.rules import seen, values_of
    from entrl.report.read import read_run
    from entrl.runs.wording import shown

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
}
