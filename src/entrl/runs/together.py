"""Several ranks, one outcome: whichever rank fails says so with its number, and the others stop with it.

How ranks wait for each other is `trainers/shared/waiting.py`; here is how the command line tells of it.
"""

import os
import re
import sys
from collections.abc import Mapping

from entrl.trainers.shared.waiting import (
    OtherRankFailed,
    alone_on_main,
    failed_elsewhere,
    hush,
    main_first,
    together,
    wait_for_all,
)

__all__ = [
    "OtherRankFailed",
    "alone_on_main",
    "failed_elsewhere",
    "hush",
    "is_hushed",
    "leave_ranks",
    "lost_ranks",
    "main_first",
    "rank_prefix",
    "refuse_left_over",
    "together",
    "wait_for_all",
]

LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what every launcher sets beside WORLD_SIZE
# What a rank sees when another one has ended.
LOST = re.compile(
    r"[Cc]onnection (?:closed|reset) by (?:remote )?peer|Socket closed|remote process exited|Broken pipe"
    r"|failed to recv, got 0 bytes|[Cc]onnection was likely closed"
)


def is_hushed(error: BaseException) -> bool:
    return getattr(error, "said_elsewhere", False)


def rank_prefix() -> str:
    """'rank 1: ' under a launcher that started several processes, else ''."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
    return f"rank {os.environ.get('RANK', '0')}: " if several else ""


def refuse_left_over(environ: Mapping[str, str]) -> None:
    """ValueError for a WORLD_SIZE that no launcher set: processes that never come would be waited for."""
    size, lacking = environ.get("WORLD_SIZE", "1"), [name for name in LAUNCHED if name not in environ]
    if size != "1" and lacking:
        raise ValueError(
            f"WORLD_SIZE is {size} in the environment, without {', '.join(lacking)}, so no launcher started this "
            "process; `unset WORLD_SIZE`, or start it with `accelerate launch`"
        )
    left = [name for name in ("RANK", "LOCAL_RANK") if environ.get(name, "0") != "0"]
    if left and len(lacking) > 0:
        raise ValueError(
            f"{' and '.join(left)} of another process are set in the environment, without {', '.join(lacking)}, so no "
            f"launcher started this one; `unset {' '.join(left)}`, or start it with `accelerate launch`"
        )


def leave_ranks() -> None:
    """Leave the process group a command joined, once it has ended well.

    torch asks for it: what the interpreter's end tears down, it tears down in any order and under threads that run.
    """
    if "torch.distributed" not in sys.modules:  # a command that needed no torch
        return
    import torch.distributed as ranks

    if ranks.is_available() and ranks.is_initialized():
        ranks.destroy_process_group()


def lost_ranks(error: BaseException) -> bool:
    """Whether the error only says that another rank has ended."""
    return isinstance(error, (RuntimeError, ConnectionError)) and LOST.search(str(error)) is not None
