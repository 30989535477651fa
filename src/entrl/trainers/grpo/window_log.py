"""A logged window: everything one rank knew of one optimiser step, as files that need no trainer to be read.

    OUT/windows/step-000012/rank0.pt    tensors and options of the window (this module's `LoggedWindow`)
    OUT/windows/step-000012/state.pt    trainable parameters and optimiser state before the step, where asked for
    OUT/windows/probe.pt                the fixed probe prefixes, where the run has a probe

OUT is the trainer's `output_dir`, RUN/checkpoints in a run folder of `entrl train` (`windows_root` finds it).

`step` counts from 0: step 12 is the window whose update makes the trainer's global step 13. Replay reads these files
to ask what another controller would have done with the same rows.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrl.controllers.hooks import ROW_TENSORS, OneRank, Rows, Scope, Window
from entrl.trainers.shared.row_columns import stacked

FORMAT = 1
FOLDER = "windows"
STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What the loss of this step was computed with; names are TRL's."""

    loss_type: str
    accumulation: int  # micro-batches of the window
    steps_per_generation: int
    max_completion_length: int
    num_items: float  # loss tokens of the whole rollout over all ranks
    temperature: float
    learning_rate: float
    eps_low: float  # the ratio range TRL would use without a controller that sets its own
    eps_high: float
    fresh: bool  # the policy was still the one that generated the rows
    pad_token_id: int
    controllers: list[dict[str, Any]]  # {name, options} of the controllers that acted


@dataclass(frozen=True, kw_only=True)
class LoggedWindow:
    """The rows of one optimiser step on one rank, in the order of its micro-batches, on the CPU.

    log_probs_BT, entropies_BT: float32, under the policy before the step (from the training pass)
    old_log_probs_BT: float32, under the policy that generated the rows
    entropies_after_BT: float32, of the same tokens after the step; None where the run ended before it was measured
    probe_entropy_before, probe_entropy_after: nats, mean over the fixed probe prefixes; None without a probe
    old_entropies_BT: float32, nats, under the policy that generated the rows; None where nobody scored them
    policy_weight_BT: what TRL multiplied the policy term with after the ratio (importance-sampling weight, high-entropy
        mask, off-policy mask); None = 1
    """

    step: int
    rank: int
    world_size: int
    rows: Rows
    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    entropies_BT: Tensor
    prompt_ids_BT: Tensor
    prompt_mask_BT: Tensor
    completion_ids_BT: Tensor
    completion_mask_BT: Tensor
    options: StepOptions
    entropies_after_BT: Tensor | None = None
    probe_entropy_before: float | None = None
    probe_entropy_after: float | None = None
    old_entropies_BT: Tensor | None = None
    policy_weight_BT: Tensor | None = None

    def window(self, ranks: Any = None, *, scope: Scope = "exact") -> Window:
        """The same as controllers see it; scope `step` shows them the policy that generated the rows.

        Where nobody logged that policy's entropies, those under the policy before the step stand in for them: the
        same numbers in a fresh window, one to a few updates late otherwise.
        """
        sampled = scope == "step"
        stale = sampled and self.old_entropies_BT is not None
        return Window(
            rows=self.rows,
            log_probs_BT=self.old_log_probs_BT if sampled else self.log_probs_BT,
            old_log_probs_BT=self.old_log_probs_BT,
            entropies_BT=self.old_entropies_BT if stale else self.entropies_BT,
            step=self.step,
            ranks=OneRank() if ranks is None else ranks,
        )


def windows_root(run_dir: str | Path) -> Path:
    """The folder that holds `windows`: the run folder, or its `checkpoints`, where a trainer's own files go."""
    inside = Path(run_dir) / "checkpoints"
    return inside if (inside / FOLDER).is_dir() and not (Path(run_dir) / FOLDER).is_dir() else Path(run_dir)


def window_folder(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir) / FOLDER / f"step-{step:06d}"


def save_window(run_dir: str | Path, window: LoggedWindow) -> Path:
    """Write (or write again) one rank's file; atomic, so that a reader never meets half a window."""
    folder = window_folder(run_dir, window.step)
    folder.mkdir(parents=True, exist_ok=True)
    content = {f.name: getattr(window, f.name) for f in dataclasses.fields(window)}
    content["rows"] = {name: getattr(window.rows, name) for name in ROW_TENSORS}
    content["options"] = dataclasses.asdict(window.options)
    file = folder / f"rank{window.rank}.pt"
    partial = file.with_suffix(".partial")
    torch.save({"format": FORMAT, **content}, partial)
    partial.replace(file)
    return file


def load_window(file: str | Path) -> LoggedWindow:
    """Read one file of `save_window`; ValueError where it is something else."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{file} is no logged window of format {FORMAT}; log it again with this version of entrl")
    content["rows"] = Rows(**content["rows"])
    content["options"] = StepOptions(**content["options"])
    return LoggedWindow(**content)


def logged_steps(run_dir: str | Path) -> list[int]:
    """Steps with a folder of windows, ascending; empty where the run logged none."""
    found = (Path(run_dir) / FOLDER).glob("step-*")
    return sorted(int(p.name.removeprefix("step-")) for p in found if any(p.glob("rank*.pt")))


def load_step(run_dir: str | Path, step: int) -> list[LoggedWindow]:
    """All ranks' windows of a step, rank by rank; ValueError where some rank's file is missing."""
    files = sorted(window_folder(run_dir, step).glob("rank*.pt"), key=lambda p: int(p.stem.removeprefix("rank")))
    windows = [load_window(f) for f in files]
    if not windows or len(windows) != windows[0].world_size:
        raise ValueError(
            f"step {step} of {run_dir} has {len(windows)} of {windows[0].world_size if windows else '?'} ranks' "
            "windows; bring the files of every rank together"
        )
    return windows


def joined(windows: Sequence[LoggedWindow]) -> LoggedWindow:
    """One window out of all ranks' rows, padded to one width; ranks follow one another.

    Every rank's micro-batches become micro-batches of one rank. `accumulation` and `steps_per_generation` grow with
    them, so that each loss type's own divisor gives the mean over ranks that data-parallel training takes.
    Raises ValueError where ranks disagree about the step or about what was measured after it.
    """
    if len(windows) == 1:
        return windows[0]
    first = windows[0]
    _check_alike(windows)

    def rows_of(name: str, source: str = "") -> Tensor:
        parts = [getattr(w.rows if source else w, name) for w in windows]
        return stacked(parts, left=name.startswith("prompt"))  # prompts are padded on the left

    tensors: dict[str, Any] = {name: rows_of(name, "rows") for name in ROW_TENSORS}
    names = [f.name for f in dataclasses.fields(first) if isinstance(getattr(first, f.name), Tensor)]
    together = {name: rows_of(name) for name in names}
    many = len(windows)
    options = dataclasses.replace(
        first.options,
        accumulation=first.options.accumulation * many,
        steps_per_generation=first.options.steps_per_generation * many,
    )
    return dataclasses.replace(first, rows=Rows(**tensors), rank=0, world_size=1, options=options, **together)


def _check_alike(windows: Sequence[LoggedWindow]) -> None:
    first = windows[0]
    for w in windows[1:]:
        if (w.step, w.options) != (first.step, first.options):
            raise ValueError(
                f"ranks {first.rank} and {w.rank} logged different steps or options ({first.step} and {w.step}); "
                "join the files of one step of one run"
            )
        differing = [
            f.name for f in dataclasses.fields(w) if (getattr(w, f.name) is None) != (getattr(first, f.name) is None)
        ]
        if differing:
            raise ValueError(
                f"step {w.step}: ranks {first.rank} and {w.rank} do not both have {', '.join(differing)}; the run "
                "stopped between the two writes, so leave this step out"
            )
