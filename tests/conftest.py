"""Settings every test runs under: one thread per process (the suite runs two workers), no model hub, no trackers."""

import os

# Before torch and the hub client are imported anywhere; child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples on every machine, and no per-example deadline: the first call of a kernel is slow.
settings.register_profile("entrl", derandomize=True, deadline=None)
settings.load_profile("entrl")


@pytest.fixture(autouse=True)
def _known_seed() -> None:
    """A test's outcome must not depend on which tests ran before it in the same worker."""
    torch.manual_seed(0)
