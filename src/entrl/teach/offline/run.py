"""Make an offline run's folder: groups, pairs, a measurement, training, the same measurement again.

    out/recipe.yaml  manifest.json  candidates.jsonl  [pairs.jsonl]  held_out.jsonl  metrics.jsonl  report.json  model/

A folder that is finished and was made from the same settings is kept; one that was interrupted is begun again.
"""

import copy
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from entrl.errors import said
from entrl.models.load import load_model, model_problems, new_adapter
from entrl.runs.card import draft_card, finish_card
from entrl.runs.folder import append_lines, now, read_json, write_json, write_text
from entrl.runs.lock import locked
from entrl.runs.ours import clear, read_manifest, refuse_foreign
from entrl.runs.wording import say
from entrl.settings.provenance import git_state, versions
from entrl.settings.secrets import mask_text, mask_words
from entrl.teach.cold_start.run import _threads, weights_sha256
from entrl.teach.made_model import is_made, made_from, one_process
from entrl.teach.offline.candidates import CandidateSpec, Made, PrefixSpec, make_groups, summary_of, write_groups
from entrl.teach.offline.measure import change, measure
from entrl.teach.offline.pairs import Pair, make_pairs, write_pairs
from entrl.teach.offline.preferences import loop_template, pair_rows
from entrl.teach.offline.rendering import Rendering
from entrl.teach.offline.rollout import OfflineReward, OfflineRollouts, group_rows, group_size
from entrl.teach.offline.spec import Offline
from entrl.version import __version__

DATA = ("candidates.jsonl", "pairs.jsonl", "held_out.jsonl")
WRITTEN = ("recipe.yaml", "manifest.json", *DATA, "metrics.jsonl", "report.json", "model")
Say = Callable[[str], None]


def offline(spec: Offline, *, overwrite: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Make the folder unless it is made already; returns its manifest. ValueError under several processes."""
    one_process("an offline run")
    console = console or Console(soft_wrap=True)
    if not overwrite and is_made(spec):
        say(console, f"{spec.folder} is finished and was made from these settings: kept")
        return read_json(spec.folder / "manifest.json")
    _refuse_foreign(spec.folder)
    with locked(spec.folder, lambda text: say(console, text), elsewhere="`out`"):
        return _offline(spec, console)


def _offline(spec: Offline, console: Console) -> dict[str, Any]:
    _refuse_foreign(spec.folder)
    clear(spec.folder, WRITTEN)
    manifest = _manifest(spec)
    write_json(spec.folder / "manifest.json", manifest)  # first: a folder without it is somebody else's
    write_text(spec.folder / "recipe.yaml", spec.to_yaml())
    try:
        manifest |= _make(spec, lambda text: say(console, text))
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        manifest |= {"status": status, "finished": now(), "error": mask_text(f"{type(error).__name__}: {said(error)}")}
        write_json(spec.folder / "manifest.json", manifest)
        raise
    manifest |= {"status": "finished", "finished": now()}
    write_json(spec.folder / "manifest.json", manifest)
    lines = report_lines(read_json(spec.folder / "report.json"))
    facts = {"Method": f"{spec.method} on fixed candidates, offline", "Steps": str(manifest["steps"])}
    finish_card(spec.folder, facts=facts, notes="\n".join(f"- {line}" for line in lines))
    return manifest


def _manifest(spec: Offline) -> dict[str, Any]:
    made = made_from(Path(spec.model.path).parent)
    return {
        "entrl": __version__,
        "name": spec.name,
        "method": spec.method,
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "config_hash": spec.config_hash(),
        "made_with": {spec.model.path: made} if made else {},
        "command": mask_words(sys.argv),
        "started": now(),
        "status": "running",
    }


def _refuse_foreign(folder: Path) -> None:
    refuse_foreign(folder, kind="an offline run's folder", place="`out`")
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("method") is None:
        raise ValueError(f"{folder} exists and is not an offline run's folder; set `out` to another place")


def _make(spec: Offline, say: Say) -> dict[str, Any]:
    from transformers import set_seed

    from entrl.runs.log import be_quiet  # brings transformers, as what follows

    be_quiet()
    with _threads(spec.threads):
        began = time.perf_counter()
        made, held, pairs = make_data(spec, say)
        if spec.method == "grpo":
            group_size(made.groups)
        args = build_args(spec, made)
        set_seed(args.seed)  # before an adapter draws its first weights
        lora = spec.build_lora()
        problems, notes = model_problems(spec.model, lora, args if spec.method == "grpo" else None)
        if problems:
            raise ValueError(problems[0])
        for note in notes:
            say(note)
        model, tokenizer = load_model(spec.model, lora)
        model.to(args.device)
        report: dict[str, Any] = {"method": spec.method, "data": _data_report(made, held, pairs)}
        before = _measured(spec, model, tokenizer, held, say, "before")
        started = time.perf_counter()
        model, steps, history = teach(spec, args, model, tokenizer, made, pairs)
        ended = time.perf_counter()
        after = _measured(spec, model, tokenizer, held, say, "after")
    if before is not None and after is not None:
        report |= {"before": before, "after": after, "change": change(before, after)}
    write_json(spec.folder / "report.json", report)
    append_lines(spec.folder / "metrics.jsonl", history)
    model.save_pretrained(spec.model_dir)
    tokenizer.save_pretrained(spec.model_dir)
    for line in report_lines(report):
        say(line)
    say(f"model {spec.model_dir}: {steps} steps, {ended - started:.0f} s")
    return {
        "steps": steps,
        "data_sha256": {name: _sha256(spec.folder / name) for name in DATA if (spec.folder / name).is_file()},
        "weights_sha256": weights_sha256(spec.model_dir),
        "seconds": {"before": round(started - began, 1), "training": round(ended - started, 1)},
    }


def make_data(spec: Offline, say: Say) -> tuple[Made, Made | None, list[Pair]]:
    """Groups to train on, groups to measure, and the pairs of dpo; written into the folder as well."""
    factory, data = spec.build_environment(), spec.data
    made = make_groups(factory, spec.load_rows(), data.prefixes, data.candidates)
    write_groups(spec.folder / "candidates.jsonl", made.groups)
    left_out = f"left out {made.flat} with nothing to choose and {made.repeated} copies"
    say(f"{len(made.groups)} prefixes with candidates; {left_out}")
    held = None
    if spec.held_out is not None:
        shape = PrefixSpec(
            per_row=spec.held_out.per_row,
            longest=data.prefixes.longest,
            policies=data.prefixes.policies,
            seed=data.prefixes.seed + 1,
        )
        every = CandidateSpec(submit=data.candidates.submit)
        held = make_groups(factory, spec.load_rows(held_out=True), shape, every)
        write_groups(spec.folder / "held_out.jsonl", held.groups)
    pairs: list[Pair] = []
    if spec.pairs is not None:
        pairs = make_pairs(made.groups, spec.pairs)
        write_pairs(spec.folder / "pairs.jsonl", pairs)
        say(f"{len(pairs)} pairs at least {spec.pairs.margin} bits apart")
    return made, held, pairs


def build_args(spec: Offline, made: Made) -> Any:
    """The trainer's config; `output_dir` is a place for what TRL wants to write, which is not kept."""
    scratch = tempfile.mkdtemp(prefix="entrl-offline-")
    if spec.method == "dpo":
        from trl import DPOConfig

        return DPOConfig(output_dir=scratch, **spec.trainer)
    from entrl.trainers.config import EntropyGRPOConfig  # brings trl

    size = group_size(made.groups)
    if (given := spec.trainer.get("num_generations", size)) != size:
        raise ValueError(
            f"trainer.num_generations is {given}, and every prefix has {size} candidates; leave it out, or set "
            f"data.candidates.count: {given}"
        )
    return EntropyGRPOConfig(output_dir=scratch, **{**spec.trainer, "num_generations": size})


def teach(
    spec: Offline, args: Any, model: Any, tokenizer: Any, made: Made, pairs: Sequence[Pair]
) -> tuple[Any, int, list[dict[str, Any]]]:
    """Train; the model (with its adapter), the optimiser steps, and what the trainer logged."""
    try:
        trainer = build_trainer(spec, args, model, tokenizer, made, pairs)
        trainer.train()
        draft_card(trainer, spec.model_dir, name=spec.name)
    finally:
        shutil.rmtree(args.output_dir, ignore_errors=True)
    taught = trainer.accelerator.unwrap_model(trainer.model).eval()
    taught.config.use_cache = True  # the trainer turned it off
    return taught, trainer.state.global_step, trainer.state.log_history


def build_trainer(spec: Offline, args: Any, model: Any, tokenizer: Any, made: Made, pairs: Sequence[Pair]) -> Any:
    """EntropyGRPOTrainer on fixed groups, or TRL's DPOTrainer on pairs."""
    rendering = Rendering(tokenizer, spec.data.chat_template_kwargs)
    common: dict[str, Any] = {"processing_class": tokenizer, "peft_config": new_adapter(model, spec.build_lora())}
    if spec.method == "grpo":
        from entrl.trainers.grpo.trainer import EntropyGRPOTrainer  # brings trl

        return EntropyGRPOTrainer(
            model,
            [OfflineReward()],
            args,
            group_rows(made.groups),
            controllers=[loaded.value for loaded in spec.build_controllers()],
            rollout_func=OfflineRollouts(made.groups, rendering),
            **common,
        )
    from trl import DPOTrainer

    with loop_template(rendering):  # the constructor tokenizes
        rows = pair_rows(pairs, spec.data.chat_template_kwargs)
        # TRL would load the reference by the model's name, without its revision.
        own = spec.lora is None and not args.precompute_ref_log_probs
        reference = copy.deepcopy(model) if own else None
        return DPOTrainer(model, reference, args, train_dataset=rows, **common)


def _measured(
    spec: Offline, model: Any, tokenizer: Any, held: Made | None, say: Say, when: str
) -> dict[str, Any] | None:
    if held is None or spec.held_out is None:
        return None
    say(f"measuring {len(held.groups)} held-out prefixes {when} training ...")
    return measure(
        model,
        tokenizer,
        held.groups,
        batch_size=spec.held_out.batch_size,
        max_new_tokens=spec.held_out.max_new_tokens,
        chat_template_kwargs=spec.data.chat_template_kwargs,
    )


def _data_report(made: Made, held: Made | None, pairs: Sequence[Pair]) -> dict[str, Any]:
    report: dict[str, Any] = {"train": summary_of(made.groups) | {"flat": made.flat, "copies": made.repeated}}
    if held is not None:
        report["held_out"] = summary_of(held.groups) | {"flat": held.flat, "copies": held.repeated}
    if pairs:
        margins = sorted(pair.margin for pair in pairs)
        report["pairs"] = {
            "count": len(pairs),
            "margin": {"min": margins[0], "median": margins[len(margins) // 2], "max": margins[-1]},
            "rejected": {k: sum(p.rejected_kind == k for p in pairs) for k in sorted({p.rejected_kind for p in pairs})},
        }
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """The measurement in words."""
    if "before" not in report:
        return []
    before, after = report["before"], report["after"]
    lines = [
        f"held out: best question {before['best']['mean']:.3f} bits, a random one {before['random']['mean']:.3f} "
        f"(the best by chance {before['random']['best_share']:.1%})"
    ]
    for name in ("written", "ranked"):
        early, late, moved = before[name], after[name], report["change"][name]
        lines.append(
            f"{name}: {early['gain']['mean']:.3f} -> {late['gain']['mean']:.3f} bits ({moved['mean']:+.3f}, 95 % "
            f"[{moved['lo']:+.3f}, {moved['hi']:+.3f}]), best chosen {early['best_share']['mean']:.1%} -> "
            f"{late['best_share']['mean']:.1%}"
        )
    return lines


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
