"""What a checkpoint must hold so that a resumed run equals an uninterrupted one, and the order it is written in.

TRL regenerates when it resumes in the middle of a rollout and counts its micro-steps from 0 again, so a run stopped
between two updates of one rollout would go on with other completions. The buffered rollout, the micro-step counter,
the state of controllers and rewards and the half-filled log rows are saved here, one file per rank.

A kill at any moment must leave a good checkpoint: the marker (`completeness.py`) is written after every file of every
rank, and older checkpoints are deleted only then.
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from entrl.trainers.shared.completeness import Marker, file_names, fingerprints, mark, step_of, unmark
from entrl.trainers.shared.waiting import alone_on_main, together

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")

# A rank of gloo calls its device cpu:0, and torch knows only "cpu": two CPU ranks could not read their optimiser.
torch.serialization.register_package(
    0, lambda _: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def state_path(checkpoint: str | Path, rank: int) -> Path:
    return Path(checkpoint) / f"entrl_state_{rank}.pt"


def save_state(checkpoint: str | Path, rank: int, state: dict[str, Any]) -> None:
    """Write one rank's state; a half-written file never takes the place of a good one."""
    path = state_path(checkpoint, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_state(checkpoint: str | Path, rank: int, world_size: int) -> dict[str, Any] | None:
    """One rank's state, or None for a checkpoint that entrl did not write.

    Raises ValueError when the checkpoint was written by another number of processes (its rollout cannot be dealt out),
    and where this rank's file is gone.
    """
    if not state_path(checkpoint, 0).exists():
        return None
    saved = torch.load(state_path(checkpoint, 0), map_location="cpu", weights_only=True)["world_size"]
    refuse_other_ranks(checkpoint, saved, world_size)
    if not state_path(checkpoint, rank).exists():
        raise ValueError(f"{state_path(checkpoint, rank)} is missing; resume from an older checkpoint")
    return torch.load(state_path(checkpoint, rank), map_location="cpu", weights_only=True)


def refuse_other_ranks(checkpoint: str | Path, saved: int, world_size: int) -> None:
    """ValueError where another number of processes wrote it.

    Each rank's file holds its share of the rollout in hand, its random states and its half of the log rows; under
    ZeRO the optimiser is cut up by ranks as well. Dealt out anew they would draw and train on something else.
    """
    if saved != world_size:
        raise ValueError(
            f"{checkpoint} was written by {saved} processes and this run has {world_size}; resume with {saved} "
            "processes (num_processes), or start a new run in another trainer.output_dir from its weights: "
            f"model.path={checkpoint}"
        )


def inexact_because(args: Any) -> str | None:
    """Why a run with these options cannot go on from a checkpoint as if it had not stopped; None where it can."""
    if args.save_only_model:
        return "save_only_model: true leaves the optimiser and the random states out of checkpoints"
    if getattr(args, "sync_ref_model", False) and getattr(args, "beta", 0.0):
        return "sync_ref_model: true moves the reference model, which is in no checkpoint"
    return None


def redrawn_because(args: Any) -> str | None:
    """Why the completions after a resume will be others than without the stop; None where they are the same."""
    if getattr(args, "use_vllm", False) and getattr(args, "vllm_mode", None) == "colocate":
        return "the random state of a colocated engine is in no checkpoint"
    return None if hasattr(args, "use_vllm") else "an asynchronous run draws whenever there is room"


def complete(folder: Path, accelerator: Accelerator, *, step: int, inexact: str | None = None) -> None:
    """Mark the folder as whole; every rank has written its files and calls this.

    The ranks share the reading: each takes the checksums of some of the files it sees.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    seen = [set(names) for names in gather_object([file_names(folder)])]
    everything = sorted(set().union(*seen))
    # NFS may show a new file to its writer first, so a file is read by a rank that sees it.
    readers = [[r for r in range(world_size) if name in seen[r]] for name in everything]
    mine = [name for i, name in enumerate(everything) if readers[i][i % len(readers[i])] == rank]
    own = together(lambda: fingerprints(folder, mine), "read")
    prints = {name: print for part in gather_object([own]) for name, print in part.items()}

    def mark_whole() -> None:
        if hidden := [name for name in everything if not (folder / name).is_file()]:
            warnings.warn(
                f"{folder} lacks {', '.join(hidden)} where the first process looks: the run cannot be resumed unless "
                "trainer.output_dir is one folder that all machines share",
                stacklevel=2,
            )
        mark(folder, Marker(step=step, world_size=world_size, inexact=inexact, files=prints))

    alone_on_main(mark_whole, "marked")


def rotate(checkpoints: Path, newest: Path, *, limit: int | None, best: str | None) -> None:
    """Keep `limit` checkpoints up to the newest, which is whole, and the best; what a later step left is not counted.

    transformers deletes before the new checkpoint is whole, and by modification time.
    """
    if not limit or limit < 0:
        return
    best_path = None if best is None else Path(best).resolve()
    found = {step: p for p in checkpoints.glob("checkpoint-*") if (step := step_of(p)) is not None}
    steps = sorted((step for step, p in found.items() if p.resolve() != best_path), reverse=True)
    old = [found[step] for step in steps if step <= (step_of(newest) or 0)]
    room = max(limit - (best_path is not None and best_path != newest.resolve()), 1)
    for folder in old[room:]:
        unmark(folder)  # first, so that a kill in here leaves nothing that looks whole
        shutil.rmtree(folder)


def write_checkpoint(trainer: Any, folder: Path, save: Callable[[], None], state: dict[str, Any]) -> None:
    """Everything of a checkpoint in the order that makes a kill harmless. Every rank calls this.

    save: the libraries' own saving. trainer.checkpoint_files: further writers, called on rank 0 with the folder.
    """
    args, accelerator = trainer.args, trainer.accelerator

    def clear() -> None:
        if folder.exists():  # half of an earlier attempt, or damaged
            unmark(folder)
            shutil.rmtree(folder)

    def write() -> None:
        limit, args.save_total_limit = args.save_total_limit, None  # transformers deletes too early, see `rotate`
        try:
            save()
        finally:
            args.save_total_limit = limit
        save_state(folder, accelerator.process_index, state)
        if accelerator.is_main_process:
            for write_more in trainer.checkpoint_files:
                write_more(folder)

    # A large model takes as long as the disk wants: no collective spans writing, reading or deleting it.
    alone_on_main(clear, "cleared")
    together(write, "written")
    step, inexact = trainer.state.global_step, inexact_because(args)
    complete(folder, accelerator, step=step, inexact=None if step >= trainer.state.max_steps else inexact)
    best = trainer.state.best_model_checkpoint
    alone_on_main(lambda: rotate(folder.parent, folder, limit=args.save_total_limit, best=best), "rotated")


def moved(rows: Any, device: torch.device | str) -> Any:
    """Tensors inside lists and dicts on another device."""
    if isinstance(rows, Tensor):
        return rows.to(device)
    if isinstance(rows, dict):
        return {k: moved(v, device) for k, v in rows.items()}
    if isinstance(rows, list):
        return [moved(v, device) for v in rows]
    return rows
