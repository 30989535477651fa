"""`entrl eval`: what a model can do, or several along training."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from entrl.cli.parsers import TEMPLATE_HELP, Command, add_dtype, add_out, add_rows, expanded, numbers

ENDLESS_SIZE = 200  # problems of a task that generates them without end, unless --size says otherwise
MUCH_TRUNCATED = 0.2  # share of completions from which on an accuracy says little, our choice
ANSWER_LENGTH, DIALOGUE_LENGTH = 512, 2048  # tokens of a completion, of a whole dialogue; our choice


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.models.shipped import bare_names
    from entrl.runs.specs import EVAL_ENGINES
    from entrl.tasks import task_names

    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        type=expanded,
        help=f"folder, adapter folder, hub id, or one of {', '.join(bare_names())}; several, such as "
        "RUN/checkpoints/*, give a curve",
    )
    parser.add_argument(
        "--task", type=expanded, required=True, action="append", help=f"{', '.join(task_names())}; may be given again"
    )
    add_rows(
        parser,
        size=None,
        size_help=f"number of problems (default: all; {ENDLESS_SIZE} where a task has no end)",
        seed_help="of generated problems and of sampling",
    )
    parser.add_argument("-k", default="1", help="of pass@k, such as 1,8,32")
    parser.add_argument("--samples", type=int, help="sampled completions per problem (default: the largest k)")
    parser.add_argument("--no-greedy", action="store_true", help="no greedy answer besides")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"default {ANSWER_LENGTH}, or {DIALOGUE_LENGTH} for a whole dialogue with an environment",
    )
    parser.add_argument("--batch-size", default="auto", help="answers written at once (default: what fits in memory)")
    parser.add_argument("--engine", choices=EVAL_ENGINES, help="what writes the answers (default: transformers)")
    parser.add_argument(
        "--server", action="append", default=[], metavar="URL", help="of a running vLLM server; may be given again"
    )
    add_dtype(parser)
    parser.add_argument("--think-open", metavar="TAG", help="opens the thinking (default: as its run, else <think>)")
    parser.add_argument("--think-close", metavar="TAG", help="closes it (default: as its run, else </think>)")
    parser.add_argument("--chat-template-kwargs", metavar="YAML", help=TEMPLATE_HELP)
    add_out(parser)


def run_eval(options: argparse.Namespace) -> int:
    from entrl.runs.log import be_quiet

    played = _played(options)
    spec = _spec(options)
    several = len(options.models) > 1
    _check_out(options.out, several)
    be_quiet()
    _is_main()  # joins the process group, if there is one
    if several:
        options.models = _only_models(options.models)
    else:
        result = _evaluated(options, options.models[0], spec, played, options.out)
        if _is_main():
            print(json.dumps(_without_problems(result), indent=2))
        return 0
    return _curve(options, spec, played)


def _check_out(out: Path | None, several: bool) -> None:
    """ValueError, before anything is loaded, for a place that cannot be written when all is evaluated."""
    if out is None:
        return
    if several and out.suffix == ".json":
        raise ValueError(f"--out of several models is a folder for a JSON each, got {out}; leave .json out")
    if several and out.exists() and not out.is_dir():
        raise ValueError(f"--out of several models is a folder for a JSON each, and {out} is a file; name another")
    if not several and out.is_dir():
        raise ValueError(f"--out of one model is a JSON, and {out} is a folder; name a file, such as {out}/eval.json")
    if not several and out.suffix == ".partial":
        raise ValueError(f"--out ends in .partial, which keeps what is finished of an evaluation, got {out}; use .json")


def _only_models(named: list[str]) -> list[str]:
    """Without the files and folders that hold no model, such as a run keeps between its checkpoints."""
    found = []
    for model in named:
        folder = Path(model)
        if not folder.exists() or any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            found.append(model)  # what does not exist is a name, or the loader says what is wrong
        else:
            _say(f"skipping {model}: it has neither config.json nor adapter_config.json")
    if not found:
        raise ValueError(f"none of {', '.join(named)} is a model: none has a config.json or an adapter_config.json")
    return found


def _played(options: argparse.Namespace) -> bool:
    """Whether the task is a game, with an environment of its own."""
    from entrl.tasks import INQUIRIES

    games = [task for task in options.task if task in INQUIRIES]
    if not games:
        return False
    if len(options.task) > 1:
        raise ValueError(f"the task {games[0]!r} is played, by an environment of its own; evaluate it alone")
    if (options.think_open, options.think_close) != (None, None):
        raise ValueError(
            f"the task {games[0]!r} is played, and thinking in a dialogue is not measured; leave out --think-open "
            "and --think-close"
        )
    return True


def _spec(options: argparse.Namespace) -> Any:
    from entrl.runs.specs import EvalSpec, EvalTask
    from entrl.settings.yaml import parse_yaml

    ks = numbers(options.k, int, "-k")
    size = options.batch_size if options.batch_size == "auto" else numbers(options.batch_size, int, "--batch-size")[0]
    several = len(options.task) > 1
    return EvalSpec(
        task="" if several else options.task[0],
        tasks=[EvalTask(task=task) for task in options.task] if several else [],
        split=options.split,
        size=options.size,
        samples=max(ks) if options.samples is None else options.samples,
        greedy=not options.no_greedy,
        k=ks,
        temperature=options.temperature,
        top_p=options.top_p,
        batch_size=size,
        seed=options.seed,
        engine=options.engine or ("vllm" if options.server else "transformers"),
        servers=options.server,
        args=parse_yaml(options.task_args, name="--task-args") or {},
    )


def _evaluated(
    options: argparse.Namespace, model: str, spec: Any, played: bool, out: Path | None, *, several: bool = False
) -> dict[str, Any]:
    """One model's evaluation, written to `out`; with `out`, one that was killed goes on where it was.

    several: it is one of several, whose records stay until all are evaluated
    """
    from entrl.environments import load_environment
    from entrl.evaluation.asked import settled, template_kwargs
    from entrl.models.load import load_policy, load_tokenizer
    from entrl.runs.evaluate import Asking, Subject, evaluate_subject, written
    from entrl.runs.specs import load_rows
    from entrl.runs.together import rank_prefix
    from entrl.tasks import is_endless

    given = {
        "think_open": options.think_open,
        "think_close": options.think_close,
        "chat_template_kwargs": template_kwargs(options.chat_template_kwargs),
    }
    asked, taken = settled(model, given)
    if taken is not None:
        _say(f"asking as the run did: {taken}")
    length = options.max_new_tokens or (DIALOGUE_LENGTH if played else ANSWER_LENGTH)
    asking = Asking(
        length=length,
        chat_template_kwargs=asked.pop("chat_template_kwargs", None) or {},
        tags={} if played else asked,
        environment=load_environment(spec.task, {}) if played else None,
    )
    subject = Subject(
        path=model,
        load=lambda: load_policy(model, dtype=options.dtype),
        tokenizer=lambda: load_tokenizer(model),
        dtype=options.dtype,
    )

    def rows(part: Any) -> Any:
        size = part.size or (ENDLESS_SIZE if is_endless(part.task) else None)
        return load_rows(part.task, part, size=size, base=None)

    partial = None if out is None else out.with_suffix(".partial")
    say = lambda text: print(f"{rank_prefix()}{text}", file=sys.stderr)  # noqa: E731
    result = evaluate_subject(spec, subject, asking, rows=rows, partial=partial, say=say)
    for task, part in result.get("tasks", {"": result}).items():
        if part["truncation_rate"] > MUCH_TRUNCATED:
            _say(
                f"warning: {part['truncation_rate']:.0%} of the sampled completions{' of ' * bool(task)}{task} hit the "
                f"limit of {length} tokens and mostly count as wrong; raise --max-new-tokens"
            )
    if out is not None:
        written(result, out, None if several else partial)
    return result


def _curve(options: argparse.Namespace, spec: Any, played: bool) -> int:
    """Several models, one after the other; --out is a folder with a JSON for each, curve.json and curve.html.

    What is finished of each model stays until all are, so that a kill loses the problems under way and no other.
    """
    from entrl.evaluation.records import clear_records
    from entrl.report.curve import curve_of, rows_of, step_of, write_curve
    from entrl.runs.together import alone_on_main

    out: Path | None = options.out
    known = sorted(options.models, key=lambda model: (step_of(model) is None, step_of(model) or 0))
    names, results = _names(known), {}
    for model, name in zip(known, names, strict=True):
        _say(f"evaluating {model}")
        file = None if out is None else out / f"{name}.json"
        results[name] = _evaluated(options, model, spec, played, file, several=True)
    if out is not None:

        def write() -> Path:
            page = write_curve(results, out)
            for name in names:
                clear_records(out / f"{name}.partial")
            return page

        _say(f"page {alone_on_main(write)}")
    if _is_main():
        headings, lines = rows_of(curve_of(results))
        widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
        for line in (headings, *lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _names(models: list[str]) -> list[str]:
    """File names that tell the models apart: the last parts of their paths that do."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]).strip("/-") for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the same model is named twice among {', '.join(models)}; name each once")


def _without_problems(result: dict[str, Any]) -> dict[str, Any]:
    if "tasks" in result:
        return {**result, "tasks": {task: _without_problems(part) for task, part in result["tasks"].items()}}
    return {key: value for key, value in result.items() if key != "problems"}


def _is_main() -> bool:
    import torch
    from accelerate import PartialState

    from entrl.runs.together import refuse_left_over

    refuse_left_over(os.environ)
    # Left to itself accelerate takes ranks without a GPU for so many lone processes (launch/cpu_2.yaml).
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process


def _say(text: str) -> None:
    """Once, whatever the number of ranks."""
    if _is_main():
        print(text, file=sys.stderr)


COMMANDS = {
    "eval": Command(
        help="Evaluate models or adapter folders: accuracy, pass@k, length, entropy by phase.",
        group="judge",
        arguments=eval_arguments,
        run=run_eval,
    ),
}
