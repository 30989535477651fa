"""How long a run's logs were at each checkpoint, so that a resumed run cuts them back to the byte."""

import json
import os
from collections.abc import Callable
from pathlib import Path

LOG_FILE = "entrl_log.json"  # in a checkpoint
LOGS = ("metrics.jsonl", "completions.jsonl")


def note_logs(run_dir: Path, checkpoint: Path) -> None:
    """Write into a checkpoint how far the logs are. What they hold so far is brought to the disk."""
    sizes = {}
    for name in LOGS:
        with (run_dir / name).open("ab") as file:
            os.fsync(file.fileno())
            sizes[name] = file.tell()
    (checkpoint / LOG_FILE).write_text(json.dumps(sizes) + "\n", encoding="utf-8")


def cut_logs(run_dir: Path, checkpoint: Path, *, say: Callable[[str], None]) -> None:
    """Give the logs the length they had at the checkpoint: no step is written twice, half-written lines go."""
    sizes: dict[str, int] = json.loads((checkpoint / LOG_FILE).read_text(encoding="utf-8"))
    for name, size in sizes.items():
        file = run_dir / name
        there = file.stat().st_size if file.is_file() else 0
        if there < size:
            say(f"{name} has lost {size - there} bytes since {checkpoint.name}: some of its rows are missing")
            size = file.read_bytes().rfind(b"\n") + 1 if there else 0
        if there:
            os.truncate(file, size)
