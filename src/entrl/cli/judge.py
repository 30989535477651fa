"""`entrl report`, `entrl compare`: what came out of a run."""

import argparse

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


COMMANDS = {
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
