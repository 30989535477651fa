"""`entrl eval`, `entrl report`, `entrl compare`: what came out of a run."""

import argparse
import json
import sys

from entrl.cli.parsers import TEMPLATE_HELP, Command, add_dtype, add_out, add_rows, expanded, numbers, path

ENDLESS_SIZE = 200  # problems of a task that generates them without end, unless --size says otherwise
MUCH_TRUNCATED = 0.2  # share of completions from which on an accuracy says little, our choice
ANSWER_LENGTH, DIALOGUE_LENGTH = 512, 2048  # tokens of a completion, of a whole dialogue; our choice


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.models.shipped import bare_names
    from entrl.tasks import task_names

    parser.add_argument(
        "model", type=expanded, help=f"folder, adapter folder, hub id, or one of {', '.join(bare_names())}"
    )
    parser.add_argument("--task", type=expanded, required=True, help=", ".join(task_names()))
    add_rows(
        parser,
        size=None,
        size_help=f"number of problems (default: all; {ENDLESS_SIZE} where a task has no end)",
        seed_help="of generated problems and of sampling",
    )
    parser.add_argument("-k", default="1", help="of pass@k, such as 1,8,32")
    parser.add_argument("--samples", type=int, help="sampled completions per problem (default: the largest k)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"default {ANSWER_LENGTH}, or {DIALOGUE_LENGTH} for a whole dialogue with an environment",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    add_dtype(parser)
    parser.add_argument("--think-open", metavar="TAG", help="opens the thinking (default: as its run, else <think>)")
    parser.add_argument("--think-close", metavar="TAG", help="closes it (default: as its run, else </think>)")
    parser.add_argument("--chat-template-kwargs", metavar="YAML", help=TEMPLATE_HELP)
    add_out(parser)


def run_eval(options: argparse.Namespace) -> int:
    from entrl.evaluation.answers import evaluate
    from entrl.evaluation.asked import settled, template_kwargs
    from entrl.models.load import load_policy
    from entrl.runs.folder import write_json
    from entrl.runs.log import be_quiet
    from entrl.runs.specs import EvalSpec, load_rows
    from entrl.settings.yaml import parse_yaml
    from entrl.tasks import INQUIRIES, is_endless

    played = options.task in INQUIRIES
    if played and (options.think_open, options.think_close) != (None, None):
        raise ValueError(
            f"the task {options.task!r} is played, and thinking in a dialogue is not measured; leave out --think-open "
            "and --think-close"
        )
    ks = numbers(options.k, int, "-k")
    spec = EvalSpec(
        task=options.task,
        split=options.split,
        size=options.size,
        samples=max(ks) if options.samples is None else options.samples,
        k=ks,
        temperature=options.temperature,
        top_p=options.top_p,
        batch_size=options.batch_size,
        seed=options.seed,
        args=parse_yaml(options.task_args, name="--task-args") or {},
    )
    given = {
        "think_open": options.think_open,
        "think_close": options.think_close,
        "chat_template_kwargs": template_kwargs(options.chat_template_kwargs),
    }
    asked, taken = settled(options.model, given)
    if taken is not None:
        print(f"asking as the run did: {taken}", file=sys.stderr)
    be_quiet()
    size = spec.size or (ENDLESS_SIZE if is_endless(spec.task) else None)
    dataset = load_rows(spec.task, spec, size=size, base=None)
    length = options.max_new_tokens or (DIALOGUE_LENGTH if played else ANSWER_LENGTH)
    common = {
        "samples": spec.samples,
        "k": spec.k,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "batch_size": spec.batch_size,
        "seed": spec.seed,
        "labels": {"model": options.model, "task": spec.task, "split": spec.split},
    }
    policy = load_policy(options.model, dtype=options.dtype)
    if played:
        from entrl.environments import load_environment
        from entrl.evaluation.dialogues import evaluate_dialogues

        template = asked.get("chat_template_kwargs")
        factory = load_environment(spec.task, {})
        result = evaluate_dialogues(
            *policy, dataset, factory, max_completion_length=length, chat_template_kwargs=template, **common
        )
    else:
        result = evaluate(*policy, dataset, max_new_tokens=length, **asked, **common)
    if result["truncation_rate"] > MUCH_TRUNCATED:
        print(
            f"warning: {result['truncation_rate']:.0%} of the sampled completions hit the limit of "
            f"{length} tokens and mostly count as wrong; raise --max-new-tokens",
            file=sys.stderr,
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "problems"}, indent=2))
    return 0


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
    "eval": Command(
        help="Evaluate a model or adapter folder: accuracy, pass@k, length, entropy by phase.",
        group="judge",
        arguments=eval_arguments,
        run=run_eval,
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
