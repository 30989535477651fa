"""The command line: arguments -> objects -> one call. No maths; heavy imports happen inside the subcommands.

Exit codes: 0 all right; 1 the command ran and the answer is no (plan has problems, a conformance case fails);
2 something the user set or passed is wrong, told in one line. Anything else keeps its traceback.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entrl import __version__
from entrl.engines.faults import RolloutError
from entrl.errors import CannotWrite, RunStopped, UnsupportedTRL
from entrl.runs.together import hush, is_hushed, lost_ranks, rank_prefix
from entrl.runs.wording import shown
from entrl.settings.paths import expand_path

USER_ERRORS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    ConnectionError,
    CannotWrite,
    UnsupportedTRL,
    RolloutError,
)
ENDLESS_SIZE = 200  # problems of a task that generates them without end, unless --size says otherwise
MUCH_TRUNCATED = 0.2  # share of completions from which on an accuracy says little, our choice
TEMPLATE_HELP = "such as '{enable_thinking: false}' or enable_thinking=false (default: as its run)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "nursery":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command is None:
        parser.print_help()
        return 0
    options.rest = rest
    try:
        return options.run(options)
    except USER_ERRORS as error:
        if options.traceback:
            raise
        _print_error(error)
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
            print(f"{rank_prefix()}ended with the other ranks ({_one_line(error)})", file=sys.stderr)
            return 2
        _print_error(error)  # before the noise of the ranks that lose this one
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(shown(str(error)).split()) or type(error).__name__


def _print_error(error: BaseException) -> None:
    """In one line, with the rank where there are several; not what another rank says alike."""
    if not is_hushed(error):
        print(f"{rank_prefix()}error: {_one_line(error)}{_origin(error)}", file=sys.stderr)
        print("(--traceback shows where)", file=sys.stderr, flush=True)


def _origin(error: BaseException) -> str:
    """Where the cause was raised, for errors of a user's own code that reach us wrapped (a reward that raises)."""
    cause = None if isinstance(error, CannotWrite) else error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if cause is not None else []
    return f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def path(text: str) -> Path:
    """A path among the arguments; a shell leaves `--out=~/x` and quoted ones as they are."""
    return Path(expanded(text))


def expanded(text: str) -> str:
    """The same for what may also be a name or KIND:PATH: a model, a task, a policy."""
    kind, colon, rest = text.partition(":")
    try:
        return f"{kind}:{expand_path(rest, 'the path')}" if colon else expand_path(text, "the path")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="entrl", description="Entropy-aware RL post-training on TRL.")
    parser.add_argument("--version", action="version", version=f"entrl {__version__}")
    parser.set_defaults(command=None, traceback=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, add_help=name != "nursery")
        sub.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
        sub.set_defaults(run=run, command=name)
        return sub

    sub = command("train", run_train, "Train a recipe, evaluating before and after, into a run folder.")
    sub.add_argument("recipe", type=path)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="trainer.learning_rate=1e-5, resume=true, ...")

    sub = command("plan", run_plan, "Check a recipe and show its batch arithmetic; exit 1 when it would not train.")
    sub.add_argument("recipe", type=path)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="also world_size=8")
    sub.add_argument("--accelerate-config", type=path, metavar="FILE", help="the file `accelerate launch` will get")
    sub.add_argument("--device-memory", type=float, metavar="GIB", help="of one GPU; refuses what does not fit")
    sub.add_argument("--generate-rate", type=float, metavar="N", help="measured tokens per second of one engine")
    sub.add_argument("--train-rate", type=float, metavar="N", help="measured tokens per second of one trainer process")
    sub.add_argument("--mean-length", type=float, metavar="N", help="tokens of a completion (default: the longest)")
    sub.add_argument("--mean-prompt", type=float, metavar="N", help="tokens of a prompt (default: the longest)")
    sub.add_argument("--bandwidth", type=float, metavar="N", help="bytes per second from trainer to engines")

    sub = command("serve", run_serve, "Start a vLLM server that generates for a recipe; stays until it is ended.")
    sub.add_argument("recipe", type=path)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    sub.add_argument("--replica", type=int, default=0, help="which of trainer.vllm_replicas, from 0 on (default 0)")
    sub.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    sub.add_argument("--port", type=int, help="default: the replica's in the recipe")
    sub.add_argument("--timeout", type=float, default=600.0, help="seconds it may need to start (default 600)")
    sub.add_argument("--no-api-key", action="store_true", help="answer everybody who reaches it")
    sub.add_argument("--vllm-args", default="", metavar="TEXT", help="further options of vLLM, in one string")
    sub.add_argument("--dry-run", action="store_true", help="print the command and do nothing")

    sub = command("eval", run_eval, "Evaluate a model or adapter folder: accuracy, pass@k, length, entropy by phase.")
    sub.add_argument("model", type=expanded, help="folder, adapter folder, hub id, or tiny-reasoner")
    sub.add_argument(
        "--task",
        type=expanded,
        required=True,
        help="sums, reasoning_gym:NAME, jsonl:PATH, csv:PATH, gsm8k, math-500, ...",
    )
    sub.add_argument("--task-args", default="{}", metavar="YAML", help="options of the task, such as '{max_terms: 3}'")
    sub.add_argument("-k", default="1", help="of pass@k, such as 1,8,32")
    sub.add_argument("--samples", type=int, help="sampled completions per problem (default: the largest k)")
    sub.add_argument("--size", type=int, help="number of problems (default: all; 200 where a task has no end)")
    sub.add_argument("--split", default="test", choices=("train", "test"))
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--max-new-tokens", type=int, default=512)
    sub.add_argument("--batch-size", type=int, default=64)
    sub.add_argument("--dtype", default="auto", help="of the weights (default: as saved)")
    sub.add_argument("--think-open", metavar="TAG", help="opens the thinking (default: as its run, else <think>)")
    sub.add_argument("--think-close", metavar="TAG", help="closes it (default: as its run, else </think>)")
    sub.add_argument("--chat-template-kwargs", metavar="YAML", help=TEMPLATE_HELP)
    sub.add_argument("--out", type=path, help="write the JSON here")

    sub = command("report", run_report, "Write one self-contained HTML page about one or several runs.")
    sub.add_argument("runs", nargs="+", type=path, metavar="RUN")
    sub.add_argument("--out", type=path, help="default: report.html in the first run folder")

    sub = command("compare", run_compare, "Paired differences of two runs on the same problems, with 95 %% intervals.")
    sub.add_argument("run_a", type=path, metavar="RUN_A")
    sub.add_argument("run_b", type=path, metavar="RUN_B")
    sub.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")

    sub = command("conformance", run_conformance, "Run our implementation on vector files; exit 1 when a case fails.")
    sub.add_argument("files", nargs="+", type=path, metavar="FILE.json")
    sub.add_argument("--json", action="store_true", dest="as_json", help="print the computed values")
    sub.add_argument("--strict", action="store_true", help="fail on kinds that are not implemented")
    sub.add_argument(
        "--exclude",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="cases to leave out: an id, a function, a leading part of either, or a glob; listed as excluded",
    )

    sub = command("merge", run_merge, "Fold a LoRA adapter into its base model.")
    sub.add_argument("adapter", type=path)
    sub.add_argument("--out", type=path, required=True)
    sub.add_argument("--base", type=expanded, help="base model, where the one the adapter names has moved")
    sub.add_argument("--dtype", default="float32", help="of the merged weights (default float32)")

    sub = command("replicate", run_replicate, "Run a study: arms x paired seeds on one schedule, one JSON, one page.")
    sub.add_argument(
        "study", type=expanded, metavar="STUDY", help="a YAML file, or a folder's name under recipes: entropy-mechanism"
    )
    sub.add_argument("--quick", action="store_true", help="the named study's short version: minutes, weak verdicts")
    sub.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process (default 1)")
    sub.add_argument("--out", type=path, help="default: results.json in the study's folder of runs; the page beside it")

    sub = command("curate", run_curate, "Choose SFT answers whose length fits the difficulty of their problem (AdaCS).")
    sub.add_argument("answers", type=path, metavar="ANSWERS.jsonl", help="problem_id, prompt, completion, correct, ...")
    sub.add_argument("--out", type=path, required=True, help="folder for train.jsonl and report.json")
    sub.add_argument("--per-bracket", type=int, help="answers of each bracket (default: what the poorest has)")
    sub.add_argument("--per-problem", type=int, default=1, help="answers of a problem; 0 = no limit (default 1)")
    sub.add_argument("--brackets", type=int, default=8, help="steps of the pass rate from 0 to 1 (default 8)")
    sub.add_argument("--tolerance", type=float, help="largest distance from the target, as a share of it")
    sub.add_argument("--vanilla", action="store_true", help="ignore lengths: the control")
    sub.add_argument("--only-correct", action="store_true", help="take verified right answers alone")
    sub.add_argument("--fallback", default="error", help="error, or nearest: sources without pass rate 0 or 1")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--tokenizer", type=expanded, metavar="MODEL", help="counts lengths where the file has none (else characters)"
    )

    sub = command("cold-start", run_cold_start, "Teach a model by SFT on chosen answers, so that RL can start from it.")
    sub.add_argument("recipe", type=path)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="sft.max_steps=100, overwrite=true, ...")

    sub = command("offline", run_offline, "Teach a model which question to ask, from scored candidates (GRPO or DPO).")
    sub.add_argument("recipe", type=path)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="method=dpo, trainer.max_steps=50, ...")

    sub = command("play", run_play, "Let policies ask on the same rows of a game, and score how they did.")
    sub.add_argument("task", help="twenty_questions, diagram, or a task whose rows --environment can play")
    sub.add_argument(
        "--policy",
        action="append",
        type=expanded,
        required=True,
        metavar="SPEC",
        help="greedy, random, model:PATH, ...",
    )
    sub.add_argument("--task-args", default="{}", metavar="YAML", help="options of the task, such as '{rows: 8}'")
    sub.add_argument("--environment", metavar="USE", help="default: the one of the task's name")
    sub.add_argument("--env-args", default="{}", metavar="YAML", help="options of the environment")
    sub.add_argument("--size", type=int, default=200, help="games (default 200)")
    sub.add_argument("--split", default="test", choices=("train", "test"))
    sub.add_argument("--seed", type=int, default=1, help="of the rows, of random policies and of sampling")
    sub.add_argument("--temperature", type=float, default=0.0, help="of model:PATH (default 0, greedy)")
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--max-completion-length", type=int, default=2048, help="tokens of a whole game after its prompt")
    sub.add_argument("--batch-size", type=int, default=32, help="games side by side")
    sub.add_argument("--dtype", default="auto", help="of the weights (default: as saved)")
    sub.add_argument("--chat-template-kwargs", metavar="YAML", help=f"of model:PATH; {TEMPLATE_HELP}")
    sub.add_argument("--no-coverage", action="store_true", help="leave out the coverage report of ip and cip")
    sub.add_argument("--transcripts", action="store_true", help="write every message into the JSON")
    sub.add_argument("--out", type=path, help="write the JSON here")

    sub = command(
        "replay", run_replay, "Predict offline what other controllers would do to entropy in a run's windows."
    )
    sub.add_argument("run_dir", type=path, metavar="RUN")
    sub.add_argument(
        "--controllers",
        nargs="+",
        required=True,
        metavar="SETTING",
        help="none, clip_cov:fraction=0.02, kl_cov:fraction=0.02,coef=1, steer:w_min=0.7, a+b for both at once",
    )
    sub.add_argument("--fractions", help="for settings that leave `fraction` open, such as 0.002,0.01,0.02,0.05")
    sub.add_argument("--steps", help="only these logged steps, such as 10,11,40")
    sub.add_argument("--target", help="nats a step (0 holds entropy) or a share of the plain loss's change (50%%)")
    sub.add_argument("--estimator", default="natural", choices=("natural", "policy_gradient", "pooled"))
    sub.add_argument("--validate", action="store_true", help="really take each step and compare (needs state.pt)")
    sub.add_argument(
        "--exact-gradient", action="store_true", help="with --validate: the first-order part in parameter space as well"
    )
    sub.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")

    command("nursery", run_nursery, "Build the tiny reasoner from nothing (see its own --help).")
    return parser


def run_train(options: argparse.Namespace) -> int:
    from entrl.runs.recipe import load_recipe
    from entrl.settings.overrides import split_overrides

    overrides, how = split_overrides(options.overrides)
    try:
        recipe = load_recipe(options.recipe, overrides)  # before the heavy imports: a typo should not wait for them
    except USER_ERRORS as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            hush(error)  # ranks of one machine read the same files
        raise
    from entrl.runs.train import train

    train(recipe, resume=how.get("resume", False), overwrite=how.get("overwrite", False))
    return 0


def run_plan(options: argparse.Namespace) -> int:
    from entrl.runs.plan import Measured, plan
    from entrl.runs.recipe import load_recipe
    from entrl.settings.overrides import split_overrides

    try:
        overrides, _ = split_overrides(options.overrides)
        measured = Measured(
            device_gib=options.device_memory,
            generate=options.generate_rate,
            train=options.train_rate,
            length=options.mean_length,
            prompt=options.mean_prompt,
            bandwidth=options.bandwidth,
        )
        recipe = load_recipe(options.recipe, overrides)
        found = plan(recipe, accelerate_config=options.accelerate_config, measured=measured)
    except USER_ERRORS as error:
        if options.traceback:
            raise
        print(f"problem: {_one_line(error)}")
        return 1
    print(shown(found.render()))
    return 0 if found.ok else 1


def run_serve(options: argparse.Namespace) -> int:
    from entrl.runs.recipe import load_recipe
    from entrl.settings.overrides import split_overrides

    overrides, _ = split_overrides(options.overrides)
    recipe = load_recipe(options.recipe, overrides)
    from entrl.runs.serve import serve

    return serve(
        recipe,
        replica=options.replica,
        host=options.host,
        port=options.port,
        dry_run=options.dry_run,
        timeout=options.timeout,
        key=not options.no_api_key,
        extra=options.vllm_args,
    )


def run_eval(options: argparse.Namespace) -> int:
    from entrl.evaluation.answers import evaluate
    from entrl.evaluation.asked import settled, template_kwargs
    from entrl.models.load import load_policy
    from entrl.runs.folder import write_json
    from entrl.runs.log import be_quiet
    from entrl.runs.specs import EvalSpec, load_rows
    from entrl.settings.yaml import parse_yaml
    from entrl.tasks import is_endless

    ks = parse_ks(options.k)
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
    result = evaluate(
        *load_policy(options.model, dtype=options.dtype),
        dataset,
        samples=spec.samples,
        k=spec.k,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=options.max_new_tokens,
        batch_size=spec.batch_size,
        seed=spec.seed,
        **asked,
        labels={"model": options.model, "task": spec.task, "split": spec.split},
    )
    if result["truncation_rate"] > MUCH_TRUNCATED:
        print(
            f"warning: {result['truncation_rate']:.0%} of the sampled completions hit the limit of "
            f"{options.max_new_tokens} tokens and mostly count as wrong; raise --max-new-tokens",
            file=sys.stderr,
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "problems"}, indent=2))
    return 0


def parse_ks(text: str) -> list[int]:
    """'1,8,32' -> [1, 8, 32]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"-k takes numbers with commas between, such as 1,8,32; got {text!r}") from None


def run_report(options: argparse.Namespace) -> int:
    from entrl.report import write_report

    print(write_report(options.runs, options.out or options.runs[0] / "report.html"))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    from entrl.report.compare import compare_runs, comparison_json, print_comparison

    comparison = compare_runs(options.run_a, options.run_b)
    if options.as_json:
        print(comparison_json(comparison))
    else:
        print_comparison(comparison)
    return 0


def run_conformance(options: argparse.Namespace) -> int:
    from entrl_lab.conformance import conformance

    return int(conformance(options.files, options.strict, options.as_json, options.exclude))


def run_merge(options: argparse.Namespace) -> int:
    from entrl.models.merge import merge_adapter

    print(merge_adapter(options.adapter, options.out, base=options.base, dtype=options.dtype, say=print))
    return 0


def run_replicate(options: argparse.Namespace) -> int:
    from entrl_lab.replicate import RunsFailed, replicate

    try:
        replicate(options.study, out=options.out, jobs=options.jobs, quick=options.quick)
    except RunsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished runs are kept, and the same command goes on with the others", file=sys.stderr)
        return 130
    return 0


def run_curate(options: argparse.Namespace) -> int:
    from entrl.teach.answer_files import curate_file
    from entrl.teach.curation import CurationSpec

    spec = CurationSpec(
        brackets=options.brackets,
        per_bracket=options.per_bracket,
        per_problem=options.per_problem or None,
        length_target=not options.vanilla,
        tolerance=options.tolerance,
        only_correct=options.only_correct,
        fallback=options.fallback,
        seed=options.seed,
    )
    curate_file(options.answers, options.out, spec, tokenizer=options.tokenizer)
    return 0


def run_cold_start(options: argparse.Namespace) -> int:
    from entrl.settings.overrides import split_overrides
    from entrl.teach.cold_start import cold_start, load_cold_start

    overrides, how = split_overrides(options.overrides)
    if how.get("resume"):
        raise ValueError("a cold start is not resumed: one that was interrupted begins again by itself; drop resume")
    cold_start(load_cold_start(options.recipe, overrides), overwrite=how.get("overwrite", False))
    return 0


def run_offline(options: argparse.Namespace) -> int:
    from entrl.cli.offline import run_offline as offline

    return offline(options)


def run_play(options: argparse.Namespace) -> int:
    from entrl.cli.play import run_play as play

    return play(options)


def run_replay(options: argparse.Namespace) -> int:
    from rich.console import Console

    from entrl.runs.log import be_quiet
    from entrl.settings.json_lines import finite
    from entrl_lab.replay import parse_settings, parse_target, print_replay, replay

    be_quiet()
    fractions = parse_numbers(options.fractions, float, "--fractions") if options.fractions else []
    found = replay(
        options.run_dir,
        parse_settings(options.controllers, fractions=fractions),
        steps=parse_numbers(options.steps, int, "--steps") if options.steps else None,
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


def parse_numbers(text: str, kind: type[int] | type[float], option: str) -> list[Any]:
    """'1,8,32' -> [1, 8, 32]."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers with commas between, such as 1,8,32; got {text!r}") from None


def run_nursery(options: argparse.Namespace) -> int:
    from entrl_lab.nursery import main as nursery

    return int(nursery(options.rest) or 0)
