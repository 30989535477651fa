"""Where a run can go on: its newest whole checkpoint, or its trained model."""

from collections.abc import Callable
from pathlib import Path

from entrl.runs.log_lengths import LOG_FILE
from entrl.trainers.shared.completeness import Marker, flaw, read_marker, step_of


def newest_whole(checkpoints: Path, *, say: Callable[[str], None]) -> Path | None:
    """The checkpoint of the latest step that is whole and undamaged; each newer one is named with what is wrong."""
    found = sorted((step, p) for p in checkpoints.glob("checkpoint-*") if (step := step_of(p)) is not None)
    for step, folder in reversed(found):
        why = flaw(folder)
        if why is None and (written := read_marker(folder).step) != step:
            why = f"its marker was written at step {written}: it has been renamed"
        if why is None and LOG_FILE not in read_marker(folder).files:
            why = f"it does not say how long the logs were ({LOG_FILE}), so `entrl train` did not write it"
        if why is None:
            return folder
        say(f"{folder.name} is skipped: {why}")
    return None


def trained_model(model: Path, *, say: Callable[[str], None]) -> Marker | None:
    """What the folder of a trained model says of itself; None where training is not over or the folder is damaged."""
    if not model.is_dir():
        return None
    if (why := flaw(model)) is not None:
        say(f"{model.name} is not used: {why}")
        return None
    return read_marker(model)
