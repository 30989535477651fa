"""What a checkpoint must hold so that a resumed run equals an uninterrupted one, one file per rank.

TRL regenerates when it resumes in the middle of a rollout and counts its micro-steps from 0 again, so a run stopped
between two updates of one rollout would go on with other completions. The buffered rollout, the micro-step counter
and the state of controllers and rewards are saved here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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

    Raises ValueError when the checkpoint was written by another number of processes: its rollout cannot be dealt out.
    """
    if not state_path(checkpoint, 0).exists():
        return None
    saved = torch.load(state_path(checkpoint, 0), map_location="cpu", weights_only=True)["world_size"]
    if saved != world_size:
        raise ValueError(
            f"{checkpoint} was written by {saved} processes and this run has {world_size}; resume with {saved} "
            "processes, or start a new run from its weights (model.path)"
        )
    return torch.load(state_path(checkpoint, rank), map_location="cpu", weights_only=True)


def moved(rows: Any, device: torch.device | str) -> Any:
    """Tensors inside lists and dicts on another device."""
    if isinstance(rows, Tensor):
        return rows.to(device)
    if isinstance(rows, dict):
        return {k: moved(v, device) for k, v in rows.items()}
    if isinstance(rows, list):
        return [moved(v, device) for v in rows]
    return rows
