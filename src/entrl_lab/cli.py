"""The laboratory's commands: `entrl` finds them by the entry-point group `entrl.commands`. Nothing heavy at the top."""

import argparse
import json
import sys

from entrl.cli.parsers import Command, expanded, numbers, path
from entrl_lab.estimators import ESTIMATORS


def replicate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", type=expanded, metavar="STUDY", help="a YAML file, or a folder's name under recipes: entropy-mechanism"
    )
    parser.add_argument("--quick", action="store_true", help="the named study's short version: minutes, weak verdicts")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process (default 1)")
    parser.add_argument(
        "--arms", nargs="+", metavar="ARM", help="run only these arms now; results are of what is there"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing: results of the runs that are there")
    parser.add_argument(
        "--out",
        type=path,
        help="default: results.json in the study's folder of runs; tables (.md), picture (.svg) beside",
    )


def run_replicate(options: argparse.Namespace) -> int:
    from entrl_lab.replicate import RunsFailed, replicate

    try:
        replicate(
            options.study,
            out=options.out,
            jobs=options.jobs,
            quick=options.quick,
            arms=options.arms,
            report_only=options.report_only,
        )
    except RunsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, and the same command goes on with the others", file=sys.stderr)
        return 130
    return 0


def conformance_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=path, metavar="FILE.json")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print the computed values")
    parser.add_argument("--strict", action="store_true", help="fail on kinds that are not implemented")
    parser.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="cases to leave out: an id, a function, a leading part of either, or a glob; listed as excluded",
    )


def run_conformance(options: argparse.Namespace) -> int:
    from entrl_lab.conformance import conformance

    return int(conformance(options.files, options.strict, options.as_json, options.exclude))


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=path, metavar="RUN")
    parser.add_argument(
        "--controllers",
        nargs="+",
        required=True,
        metavar="SETTING",
        help="none, clip_cov:fraction=0.02, kl_cov:fraction=0.02,coef=1, steer:w_min=0.7, a+b for both at once",
    )
    parser.add_argument("--fractions", help="for settings that leave `fraction` open, such as 0.002,0.01,0.02,0.05")
    parser.add_argument("--steps", help="only these logged steps, such as 10,11,40")
    parser.add_argument("--target", help="nats a step (0 holds entropy) or a share of the plain loss's change (50%%)")
    parser.add_argument("--estimator", default=ESTIMATORS[0], choices=ESTIMATORS)
    parser.add_argument("--validate", action="store_true", help="really take each step and compare (needs state.pt)")
    parser.add_argument(
        "--exact-gradient", action="store_true", help="with --validate: the first-order part in parameter space as well"
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")


def run_replay(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entrl.runs.log import be_quiet
    from entrl.settings.json_lines import finite
    from entrl_lab.replay import parse_settings, parse_target, print_replay, replay

    be_quiet()
    fractions = numbers(options.fractions, float, "--fractions") if options.fractions else []
    found = replay(
        options.run_dir,
        parse_settings(options.controllers, fractions=fractions),
        steps=numbers(options.steps, int, "--steps") if options.steps else None,
        target=None if options.target is None else parse_target(options.target),
        estimator=options.estimator,
        validate=options.validate or options.exact_gradient,
        linear=options.exact_gradient,
        progress=lambda text: print(text, file=sys.stderr),
    )
    if options.as_json:
        print(json.dumps(finite(found.to_json()), indent=2))
    else:
        print_replay(found, Console(soft_wrap=True), estimator=options.estimator)
    return 0


def run_nursery(options: argparse.Namespace) -> int:
    from entrl_lab.nursery import main

    return int(main(options.words) or 0)


replicate = Command(
    help="Run a study: arms x paired seeds on one schedule, one JSON, one page.",
    group="study",
    arguments=replicate_arguments,
    run=run_replicate,
)
conformance = Command(
    help="Run our implementation on vector files; exit 1 when a case fails.",
    group="study",
    arguments=conformance_arguments,
    run=run_conformance,
)
replay = Command(
    help="Predict offline what other controllers would do to entropy in a run's windows.",
    group="study",
    arguments=replay_arguments,
    run=run_replay,
)
nursery = Command(
    help="Build the shipped tiny models from nothing (see its own --help).",
    group="build",
    run=run_nursery,
    own_parser=True,
)
