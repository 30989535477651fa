"""`entrl play`: policies on the same rows of a game, one table, one JSON.

    entrl play twenty_questions --policy greedy --policy random --policy cip:temperature=0.25 --policy model:DIR

`entrl.cli.policies` says what a policy may be.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrl.cli.parsers import TEMPLATE_HELP, Command, add_dtype, add_out, add_rows, expanded
from entrl.version import __version__

if TYPE_CHECKING:  # numpy and what plays, which the list of commands needs nothing of
    from entrl.environments.play import Episode

SHOWN = ("success", "questions", "gain_per_question", "normalised_gain", "entropy_area", "repeat_rate", "invalid")


def play_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.cli.policies import KNOWN
    from entrl.environments import ENVIRONMENTS
    from entrl.tasks import INQUIRIES

    parser.add_argument("task", help=f"{', '.join(INQUIRIES)}, or a task whose rows --environment can play")
    parser.add_argument(
        "--policy",
        action="append",
        type=expanded,
        required=True,
        metavar="SPEC",
        help=f"one of {', '.join(KNOWN)}; may be given several times",
    )
    add_rows(parser, size=200, size_help="games (default 200)", seed_help="of rows, of random policies, of sampling")
    parser.add_argument(
        "--environment", metavar="USE", help=f"{', '.join(ENVIRONMENTS)}, or your own (default: the task's name)"
    )
    parser.add_argument("--env-args", default="{}", metavar="YAML", help="options of the environment")
    parser.add_argument("--temperature", type=float, default=0.0, help="of model:PATH (default 0, greedy)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument(
        "--max-completion-length", type=int, default=2048, help="tokens of a whole game after its prompt"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="games side by side")
    add_dtype(parser)
    parser.add_argument("--chat-template-kwargs", metavar="YAML", help=f"of model:PATH; {TEMPLATE_HELP}")
    parser.add_argument("--no-coverage", action="store_true", help="leave out the coverage report of ip and cip")
    parser.add_argument("--transcripts", action="store_true", help="write every message into the JSON")
    add_out(parser)


def run_play(options: argparse.Namespace) -> int:
    from entrl.cli.policies import distinct, parse_policy
    from entrl.environments import load_environment
    from entrl.environments.play import paired, play, score
    from entrl.environments.pursuit import InformationPursuit, pursuit_coverage
    from entrl.runs.folder import write_json
    from entrl.runs.log import be_quiet
    from entrl.settings.json_lines import finite
    from entrl.settings.provenance import entrl_commit
    from entrl.settings.yaml import parse_yaml
    from entrl.tasks import load_task

    be_quiet()
    task_args = parse_yaml(options.task_args, name="--task-args") or {}
    env_args = parse_yaml(options.env_args, name="--env-args") or {}
    use = options.environment or options.task
    factory = load_environment(use, env_args)
    policies = [(spec, parse_policy(spec, options)) for spec in distinct(options.policy)]
    dataset = load_task({"task": options.task, **task_args}, split=options.split, size=options.size, seed=options.seed)
    rows: list[Any] = list(dataset)
    result: dict[str, Any] = {
        "entrl": __version__,
        "commit": entrl_commit(),
        "task": {"task": options.task, **task_args},
        "environment": {"use": use, "args": env_args},
        "split": options.split,
        "seed": options.seed,
        "n_problems": len(rows),
        "policies": {},
    }
    first: list[Episode] | None = None
    for spec, policy in policies:
        started = time.monotonic()
        print(f"playing {spec} ...", file=sys.stderr)
        played = play(factory, rows, policy, batch=options.batch_size)
        found: dict[str, Any] = {"seconds": time.monotonic() - started, **score(played, seed=options.seed)}
        if first is not None:
            found["minus_first"] = paired(first, played, seed=options.seed)
        first = first or played
        if isinstance(policy, InformationPursuit) and not options.no_coverage:
            found["coverage"] = pursuit_coverage(policy, factory, rows, played)
        found["episodes"] = [summary(e, transcript=options.transcripts) for e in played]
        result["policies"][spec] = found
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, finite(result))
    show(result)
    return 0


def summary(played: "Episode", *, transcript: bool) -> dict[str, Any]:
    """An episode for the JSON."""
    names = (
        "problem_id",
        "correct",
        "submitted",
        "score",
        "questions",
        "repeats",
        "contradictions",
        "invalid",
        "refused",
    )
    row = {name: getattr(played, name) for name in names}
    row |= {"h0": played.h0, "asked": [list(pair) for pair in played.asked]}
    row |= {"gains": list(played.gains), "expected": list(played.expected), "entropies": list(played.entropies)}
    return row | ({"transcript": list(played.transcript)} if transcript else {})


def show(result: Mapping[str, Any]) -> None:
    """The policies side by side, means with 95 % intervals; then the coverage of the pursuits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    table = Table("policy", *SHOWN, title=f"{result['n_problems']} games of {result['task']['task']}")
    for spec, found in result["policies"].items():
        table.add_row(Text(spec), *(_cell(found[name]) for name in SHOWN))
    console.print(table)
    for spec, found in result["policies"].items():
        if found.get("coverage"):
            console.print(_coverage_table(spec, found["coverage"]))


def _cell(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:.3g} ({value['lo']:.3g} to {value['hi']:.3g})"


def _coverage_table(spec: str, report: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    heads = ("histories", "answers", "n", "conformal", "size", "by probability", "size")
    table = Table(*heads, title=Text(f"{spec}: coverage, {1 - float(report['alpha']):g} wanted"))
    for kind in ("calibration-like", "self-chosen"):
        for length, row in report[kind].items():
            numbers = (f"{row[name]:.3g}" for name in ("coverage", "size", "naive", "naive_size"))
            table.add_row(kind, str(length), str(row["n"]), *numbers)
    return table


COMMANDS = {
    "play": Command(
        help="Let policies ask on the same rows of a game, and score how they did.",
        group="judge",
        arguments=play_arguments,
        run=run_play,
    )
}
