"""`entrl play`: policies on the same rows of a game, one table, one JSON.

    entrl play twenty_questions --policy greedy --policy random --policy cip:temperature=0.25 --policy model:DIR

Policies: `guess`, `random`, `fixed`, `greedy`; `ip` and `cip` with `temperature` (of the exact belief, below 1
over-confident), `model` (a folder whose language model supplies the belief instead), `eps`, and for `cip` `alpha` and
`calibration`; `model:PATH`, a trained player. Options follow a colon: `cip:alpha=0.2,calibration=100`.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entrl.environments.loader import load_environment
from entrl.environments.play import Episode, Policy, paired, play, score
from entrl.environments.policies import PLAIN
from entrl.environments.pursuit import (
    ConformalPursuit,
    InformationPursuit,
    exact_beliefs,
    language_beliefs,
    pursuit_coverage,
)
from entrl.settings.names import suggest

PURSUITS: dict[str, dict[str, Callable[[str], Any]]] = {
    "ip": {"temperature": float, "eps": float, "model": str},
    "cip": {"temperature": float, "eps": float, "model": str, "alpha": str, "calibration": int},
}
FACTS = (
    "problem_id",
    "table_id",
    "target",
    "correct",
    "submitted",
    "score",
    "questions",
    "repeats",
    "contradictions",
    "invalid",
    "refused",
    "h0",
)
SHOWN = ("success", "questions", "gain_per_question", "normalised_gain", "entropy_area", "repeat_rate", "invalid")


def run_play(options: argparse.Namespace) -> int:
    """What the command does with its parsed arguments; see `entrl.cli.main`."""
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
        "entrl": _version(),
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


def distinct(specs: Sequence[str]) -> list[str]:
    twice = [spec for spec in specs if list(specs).count(spec) > 1]
    if twice:
        raise ValueError(f"--policy {twice[0]} is given twice; each policy plays every row once")
    return list(specs)


def parse_policy(spec: str, options: argparse.Namespace) -> Policy:
    """The policy of `greedy`, `cip:alpha=0.2` or `model:PATH`; ValueError for anything else."""
    name, _, rest = spec.partition(":")
    if name == "model":
        return _model_policy(spec, rest, options)
    known = [*PLAIN, *PURSUITS, "model:PATH"]
    if name in PLAIN and not rest:
        return PLAIN[name](name=spec, seed=options.seed)
    if name not in PURSUITS:
        hint = f"{name} takes no options." if name in PLAIN else f"no policy {name!r}.{suggest(name, known)}"
        raise ValueError(f"--policy {spec}: {hint} There are {', '.join(known)}")
    given = parse_options(rest, PURSUITS[name], spec)
    beliefs = _beliefs(given.pop("model", None), given.pop("temperature", 1.0), options)
    made: Callable[..., Policy] = InformationPursuit if name == "ip" else ConformalPursuit
    return made(name=spec, seed=options.seed, beliefs=beliefs, **given)


def parse_options(text: str, kinds: Mapping[str, Callable[[str], Any]], spec: str) -> dict[str, Any]:
    """`alpha=0.2,calibration=100`, each value of its kind."""
    found = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if not equals or key not in kinds:
            raise ValueError(
                f"--policy {spec}: unknown option {word!r}.{suggest(key, kinds)} It takes {', '.join(kinds)}"
            )
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise ValueError(f"--policy {spec}: {key} must be a number, got {value!r}") from None
    return found


def _beliefs(path: str | None, temperature: float, options: argparse.Namespace) -> Any:
    if path is None:
        return functools.partial(exact_beliefs, temperature=temperature)
    from entrl.models.load import load_policy

    return language_beliefs(*load_policy(path, dtype=options.dtype), temperature=temperature)


def _model_policy(spec: str, path: str, options: argparse.Namespace) -> Policy:
    from entrl.environments.model_policy import ModelPolicy
    from entrl.evaluation.asked import settled, template_kwargs
    from entrl.models.load import load_policy

    if not path:
        raise ValueError("--policy model needs a folder or a hub id: model:PATH")
    asked, taken = settled(path, {"chat_template_kwargs": template_kwargs(options.chat_template_kwargs)})
    if taken is not None and "chat_template_kwargs" in asked:
        print(f"asking {spec} as its run did: {taken}", file=sys.stderr)
    model, tokenizer = load_policy(path, dtype=options.dtype)
    return ModelPolicy(
        model=model,
        tokenizer=tokenizer,
        name=spec,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        max_completion_length=options.max_completion_length,
        chat_template_kwargs=asked.get("chat_template_kwargs") or {},
    )


def summary(played: Episode, *, transcript: bool) -> dict[str, Any]:
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


def _version() -> str:
    import entrl

    return entrl.__version__
