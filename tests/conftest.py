"""Settings every test runs under: one thread per process (the suite runs two workers), no model hub, no trackers.

ENTRL_OTHER_ARITHMETIC=1 makes the same tests add up in another order: see below.
"""

import os

# Before torch and the hub client are imported anywhere; child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"
if os.environ.get("ENTRL_OTHER_ARITHMETIC"):
    # Another processor's round-off on this one: sums in another order (two threads, vectors of another width), products
    # without fused multiply-add, other kernels of exp and matrix products. A test that fails here alone has a tolerance
    # that was measured, not derived (tests/rounding.py).
    os.environ |= {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin would starve the other worker
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
    }

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# The same examples on every machine, and no per-example deadline: the first call of a kernel is slow.
settings.register_profile("entrl", derandomize=True, deadline=None)
settings.load_profile("entrl")


@pytest.fixture(autouse=True)
def _known_seed() -> None:
    """A test's outcome must not depend on which tests ran before it in the same worker."""
    torch.manual_seed(0)
