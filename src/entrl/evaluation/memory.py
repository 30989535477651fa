"""How many answers fit in memory at once.

    bytes of a row = tokens x cache of a token + words of the vocabulary x LOGITS      tokens: prompt and answer
    rows           = the largest power of two with rows x bytes <= share x free memory, at most MOST_ROWS

The cache is counted at its full length for every row; the rest (a layer's activations, the copy of one layer's cache
while it grows) is what the share leaves free. What still does not fit is halved when it shows.
"""

from typing import Any

import psutil
import torch

from entrl.models.shape import cache_bytes, model_shape

MOST_ROWS = 256  # more gain little, and the problems of a batch are what a kill loses; our choice
LOGITS = 40  # bytes a word of the vocabulary: about seven float32 and two float64 numbers of one step
SHARE = {"cuda": 0.7, "cpu": 0.3}  # of free memory; on a CPU others live in it too. Our choice


def rows_that_fit(model: Any, tokens: int, *, processes: int = 1) -> int:
    """tokens: of the longest row, prompt and answer. processes: of this machine that share the memory of a CPU."""
    device = model.device.type
    budget = SHARE.get(device, SHARE["cpu"]) * free_bytes(model.device) / (1 if device == "cuda" else processes)
    rows = int(budget // row_bytes(model, tokens))
    return min(MOST_ROWS, 1 << max(rows, 1).bit_length() - 1)


def row_bytes(model: Any, tokens: int) -> int:
    shape = model_shape(model.config, parameters=0, trained=0)
    return tokens * cache_bytes(shape, item=model.dtype.itemsize) + LOGITS * shape.vocabulary


def free_bytes(device: torch.device) -> int:
    """Free for more tensors, with what torch holds and does not use."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
