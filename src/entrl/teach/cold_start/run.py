"""Make a cold start's folder: collect, choose, teach, save.

    out/recipe.yaml  manifest.json  train.jsonl  report.json  model/

A folder that is finished and was made from the same settings is kept; one that was interrupted is begun again.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from entrl.errors import said
from entrl.models.load import load_model, model_problems, new_adapter
from entrl.runs.card import draft_card, finish_card
from entrl.runs.contents import contents
from entrl.runs.folder import now, read_json, write_json, write_text
from entrl.runs.lock import locked
from entrl.runs.ours import clear, refuse_foreign
from entrl.runs.wording import say
from entrl.settings.groups import content_hash, flat, plain
from entrl.settings.provenance import git_state, versions
from entrl.settings.secrets import mask_text, mask_words
from entrl.teach.answer_files import choose, print_choice, write_choice
from entrl.teach.cold_start.spec import ColdStart
from entrl.teach.made_model import is_made, made_from, one_process
from entrl.version import __version__

DRAWN = "rejection.jsonl"  # what rejection sampling has drawn, for a start that goes on
WRITTEN = ("recipe.yaml", "manifest.json", "train.jsonl", "report.json", "model")


def cold_start(start: ColdStart, *, overwrite: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Make the folder unless it is made already; returns its manifest. ValueError under several processes."""
    one_process("a cold start")
    console = console or Console(soft_wrap=True)
    if not overwrite and is_made(start):
        say(console, f"{start.folder} is finished and was made from these settings: kept")
        return read_json(start.folder / "manifest.json")
    start.answers_file()  # a missing file should not cost the folder that is there
    refuse_foreign(start.folder, kind="a cold start's folder", place="`out`")
    with locked(start.folder, lambda text: say(console, text), elsewhere="`out`"):
        if overwrite:
            clear(start.folder, (DRAWN,))  # kept where a start was interrupted, and goes on
        return _cold_start(start, console)


def _cold_start(start: ColdStart, console: Console) -> dict[str, Any]:
    _clear(start.folder)
    manifest = _manifest(start)
    write_json(start.folder / "manifest.json", manifest)  # first: a folder without it is somebody else's
    write_text(start.folder / "recipe.yaml", start.to_yaml())
    try:
        manifest |= _make(start, console)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        manifest |= {"status": status, "finished": now(), "error": mask_text(f"{type(error).__name__}: {said(error)}")}
        write_json(start.folder / "manifest.json", manifest)
        raise
    manifest |= {"status": "finished", "finished": now()}
    write_json(start.folder / "manifest.json", manifest)
    counts = {"Answers": str(manifest["rows"]), "Steps": str(manifest["steps"])}
    finish_card(start.folder, facts={"Method": "supervised fine-tuning on chosen answers", **counts})
    taken = f"{manifest['rows']} answers, {manifest['steps']} steps, {manifest['seconds']['sft']:.0f} s of SFT"
    say(console, f"model {start.model_dir}: {taken}")
    return manifest


def _manifest(start: ColdStart) -> dict[str, Any]:
    named = [start.model.path, *(s.policy for s in (start.answers.sample, start.answers.pass_rate) if s and s.policy)]
    return {
        "entrl": __version__,
        "name": start.name,
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "config_hash": start.config_hash(),
        "made_with": {model: made for model in named if (made := made_from(Path(model).parent))},
        "command": mask_words(sys.argv),
        "started": now(),
        "status": "running",
    }


def _clear(folder: Path) -> None:
    """Delete what a cold start writes, nothing else."""
    refuse_foreign(folder, kind="a cold start's folder", place="`out`")
    if (folder / "metrics.jsonl").exists():
        raise ValueError(f"{folder} is the folder of a run, not of a cold start; set `out` to another place")
    clear(folder, WRITTEN)


def _make(start: ColdStart, console: Console) -> dict[str, Any]:
    from entrl.runs.log import be_quiet  # brings transformers, as what follows
    from entrl.teach.cold_start.answers import collect
    from entrl.teach.cold_start.rejection import Kept, rejection_report

    be_quiet()
    _refuse_bf16_without_gpu(start.sft)
    with _threads(start.threads):
        began = time.perf_counter()
        lora = start.build_lora()
        problems, notes = model_problems(start.model, lora, None)
        if problems:
            raise ValueError(problems[0])
        for note in notes:
            say(console, note)
        model, tokenizer = load_model(start.model, lora)
        kept = Kept(path=start.folder / DRAWN, of=_drawn_from(start))
        every = collect(
            start.answers,
            start.answers_file(),
            (model, tokenizer),
            base=start.base,
            say=lambda t: say(console, t),
            kept=kept,
        )
        if not every:
            raise ValueError("there is no answer to teach; what was printed above says how many were drawn, and right")
        rows, report = choose(every, start.curation)
        if start.answers.sample is not None and start.answers.sample.rejection is not None:
            report["rejection"] = rejection_report(kept, start.answers.sample.rejection)
        write_choice(start.folder, rows, report)
        print_choice(report, console)
        taught = time.perf_counter()
        model, steps = teach(model, tokenizer, rows, start, lora=lora)
        ended = time.perf_counter()
    model.config.use_cache = True  # the trainer turned it off
    model.save_pretrained(start.model_dir)
    tokenizer.save_pretrained(start.model_dir)
    return {
        "steps": steps,
        "rows": len(rows),
        "weights_sha256": weights_sha256(start.model_dir),
        "seconds": {"answers": round(taught - began, 1), "sft": round(ended - taught, 1)},
    }


def _refuse_bf16_without_gpu(sft: Mapping[str, Any]) -> None:
    """Before anything is drawn; transformers would say it afterwards, and name no key."""
    from entrl.runs.plan.checks import has_accelerator

    asked = not sft.get("fp16") if sft.get("bf16") is None else sft["bf16"]  # as TRL reads it
    if asked and not sft.get("use_cpu") and not has_accelerator():
        raise ValueError(
            "this machine has no GPU, and the SFT would compute in bfloat16 there (TRL's default); set sft.use_cpu: "
            "true, and sft.bf16: false for 32 bits"
        )


def _drawn_from(start: ColdStart) -> str:
    """What the answers of a policy depend on: the settings that say so, and the files of the policy."""
    settings = {"model": plain(start.model), "sample": plain(start.answers.sample), "threads": start.threads}
    named = flat({"answers": {"sample": settings["sample"]}, "model": settings["model"]})
    files = contents(named, start.base) | contents({"model.path": named.get("answers.sample.policy")}, start.base)
    return content_hash([settings, files])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def teach(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    start: ColdStart,
    *,
    lora: Any = None,
    callbacks: Sequence[Any] = (),
) -> tuple[Any, int]:
    """SFT on prompt and completion; returns what was trained, and the optimiser steps. TRL appends the end token."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_list([_pair(row) for row in rows])
    with tempfile.TemporaryDirectory() as scratch:  # the trainer wants a folder, what is kept lies in `out`
        args = SFTConfig(output_dir=scratch, **start.sft)
        trainer = SFTTrainer(
            model=model.train(),
            args=args,
            train_dataset=table,
            processing_class=tokenizer,
            peft_config=new_adapter(model, lora),
            callbacks=list(callbacks),
        )
        trainer.train()
        draft_card(trainer, start.model_dir, name=start.name)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return trained.eval(), trainer.state.global_step


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL reads: both sides text, or both sides messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) or not isinstance(completion, str):
        return {"prompt": prompt, "completion": completion}
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}]}


def weights_sha256(folder: Path) -> str:
    """Of the bytes of every weight file in name order, in hexadecimal."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()
