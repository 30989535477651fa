"""`entrl train`, `entrl plan`, `entrl serve`: a recipe's run."""

import argparse
import contextlib
import json
import os
from typing import Any

from entrl.cli.errors import USER_ERRORS, one_line
from entrl.cli.parsers import Command, add_recipe, path
from entrl.runs.together import hush
from entrl.runs.wording import shown


def train_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "trainer.learning_rate=1e-5, resume=true, ...")


def run_train(options: argparse.Namespace) -> int:
    from entrl.runs.recipe import load_recipe
    from entrl.settings.overrides import split_overrides

    overrides, how = split_overrides(options.overrides)
    _permit(how)
    try:
        recipe = load_recipe(options.recipe, overrides)  # before the heavy imports: a typo should not wait for them
    except USER_ERRORS as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            hush(error)  # ranks of one machine read the same files
        raise
    from entrl.runs.train import train

    train(recipe, resume=how.get("resume", False), overwrite=how.get("overwrite", False))
    return 0


def _permit(how: dict[str, Any]) -> None:
    """`sandbox=unsafe`: a person said so, here; nothing that a recipe says comes this way."""
    if how.get("sandbox") == "unsafe":
        from entrl.sandbox import permit_unsafe

        permit_unsafe()


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "also world_size=8")
    parser.add_argument("--accelerate-config", type=path, metavar="FILE", help="the file `accelerate launch` will get")
    parser.add_argument("--explain", action="store_true", help="show every term of memory and disk, with its formula")
    parser.add_argument(
        "--device-memory",
        type=float,
        metavar="GIB",
        help="of one GPU (default: launch.device_memory_gib, else torch's)",
    )
    for name, whose in (("generate", "engine"), ("train", "trainer process")):
        parser.add_argument(
            f"--{name}-rate", type=rate, metavar="N[-M]", help=f"measured tokens per second of one {whose}, or a range"
        )
    parser.add_argument("--mean-length", type=float, metavar="N", help="tokens of a completion (default: the longest)")
    parser.add_argument("--mean-prompt", type=float, metavar="N", help="tokens of a prompt (default: the longest)")
    parser.add_argument("--bandwidth", type=float, metavar="N", help="bytes per second from trainer to engines")


def rate(text: str) -> tuple[float, float]:
    """A number, or two with a dash between: the slowest and the fastest that was measured."""
    low, dash, high = text.partition("-")
    try:
        return float(low), float(high if dash else low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write 2000 or 1500-2500") from None


def run_plan(options: argparse.Namespace) -> int:
    from entrl.runs.folder import holds_run
    from entrl.runs.plan import Measured, plan
    from entrl.runs.recipe import load_recipe

    try:
        from entrl.settings.overrides import split_overrides

        overrides, how = split_overrides(options.overrides)
        _permit(how)
        measured = Measured(
            device_gib=options.device_memory,
            generate=options.generate_rate,
            train=options.train_rate,
            length=options.mean_length,
            prompt=options.mean_prompt,
            bandwidth=options.bandwidth,
        )
        recipe = load_recipe(options.recipe, overrides)
        found = plan(recipe, accelerate_config=options.accelerate_config, measured=measured, explain=options.explain)
    except USER_ERRORS as error:
        if options.traceback:
            raise
        print(f"problem: {one_line(error)}")
        return 1
    with contextlib.suppress(ValueError):  # of a folder that is not ours, said among the problems
        if (held := holds_run(recipe.run_dir)) is not None and not (how.get("resume") or how.get("overwrite")):
            found.warnings.append(held)
    print(shown(found.render()))
    return 0 if found.ok else 1


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.runs.doctor.examination import PROMPTS

    add_recipe(parser, "as for train")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"prompts answered for real (default {PROMPTS})")
    parser.add_argument("--seed", type=int, default=0, help="of which prompts, and of what is drawn (default 0)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print everything as JSON")


def run_doctor(options: argparse.Namespace) -> int:
    from entrl.runs.doctor import examine
    from entrl.runs.doctor.page import render
    from entrl.runs.log import be_quiet
    from entrl.runs.recipe import load_recipe
    from entrl.settings.overrides import split_overrides

    if options.prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {options.prompts}")
    overrides, how = split_overrides(options.overrides)
    _permit(how)
    be_quiet()
    found = examine(load_recipe(options.recipe, overrides), prompts=options.prompts, seed=options.seed)
    print(json.dumps(found.as_json(), indent=2) if options.as_json else shown(render(found)))
    return 0 if found.ok else 1


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "as for train")
    parser.add_argument("--replica", type=int, default=0, help="which of trainer.vllm_replicas, from 0 on (default 0)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, help="default: the replica's in the recipe")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds it may need to start (default 600)")
    parser.add_argument("--no-api-key", action="store_true", help="answer everybody who reaches it")
    parser.add_argument("--vllm-args", default="", metavar="TEXT", help="further options of vLLM, in one string")
    parser.add_argument("--dry-run", action="store_true", help="print the command and do nothing")


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


COMMANDS = {
    "train": Command(
        help="Train a recipe, evaluating before and after, into a run folder.",
        group="run",
        arguments=train_arguments,
        run=run_train,
    ),
    "plan": Command(
        help="Check a recipe and show its batch arithmetic; exit 1 when it would not train.",
        group="run",
        arguments=plan_arguments,
        run=run_plan,
    ),
    "doctor": Command(
        help="Answer a few prompts of a recipe for real and show what is wrong; exit 1 where it should not be trained.",
        group="run",
        arguments=doctor_arguments,
        run=run_doctor,
    ),
    "serve": Command(
        help="Start a vLLM server that generates for a recipe; stays until it is ended.",
        group="run",
        arguments=serve_arguments,
        run=run_serve,
    ),
}
