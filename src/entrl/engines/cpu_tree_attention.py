"""Tree-packed attention without the FlashAttention-3 kernel, so that TRL's asynchronous trainer runs on a CPU.

`AsyncGRPOTrainer` folds the samples of a row into a prefix tree and lets each segment attend to its root-to-leaf path,
which it hands to FA3's `flash_attn_varlen_func`. That kernel comes from the hub and needs a GPU. The stand-in below
answers the same call with torch's own attention, one segment at a time: slow, differentiable, in any dtype. Nothing
here is used on a GPU.

Source:  the argument list and the bottom-right causal alignment are those of `packing.tree_attention`, TRL 1.16
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from trl.experimental.async_grpo import async_grpo_trainer, packing


class SegmentAttention:
    """What `packing._flash_attn()` returns, as far as `tree_attention` uses it."""

    @staticmethod
    def flash_attn_varlen_func(
        query_NHD: Tensor,
        key_KHD: Tensor,
        value_KHD: Tensor,
        starts_q: Tensor,
        starts_k: Tensor,
        longest_q: int,
        longest_k: int,
        *,
        softmax_scale: float | None = None,
        causal: bool = True,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
    ) -> Tensor:
        """(N, heads, D) attention of each segment's queries over its own stretch of keys.

        starts_q, starts_k: (S + 1,) int32 boundaries of the S segments among queries and keys. A segment's last query
            is aligned with its last key. key/value may have fewer heads (grouped queries).
        window_size: (keys to the left, keys to the right), -1 = all; the right side is what `causal` says.
        """
        if not causal or window_size[1] > 0:
            raise ValueError(f"only causal attention is defined here, got causal={causal}, window_size={window_size}")
        if softcap:
            raise ValueError(f"softcap={softcap} is not implemented on the CPU; use a model without logit soft-capping")
        bounds = list(zip(starts_q.tolist(), starts_k.tolist(), strict=True))
        out = []
        for (q0, k0), (q1, k1) in itertools.pairwise(bounds):
            allowed_QK = _allowed(q1 - q0, k1 - k0, window_size[0], query_NHD.device)
            heads_first = (x.transpose(0, 1)[None] for x in (query_NHD[q0:q1], key_KHD[k0:k1], value_KHD[k0:k1]))
            mixed = torch.nn.functional.scaled_dot_product_attention(
                *heads_first, attn_mask=allowed_QK, scale=softmax_scale, enable_gqa=True
            )
            out.append(mixed[0].transpose(0, 1))
        return torch.cat(out)


def _allowed(queries: int, keys: int, left: int, device: torch.device) -> Tensor:
    """(Q, K) bool: which keys each query may look at."""
    position_Q1 = torch.arange(keys - queries, keys, device=device)[:, None]
    key_K = torch.arange(keys, device=device)
    allowed_QK = key_K <= position_Q1
    return allowed_QK & (key_K >= position_Q1 - left) if left >= 0 else allowed_QK


def _segment_attention() -> Any:
    return SegmentAttention


def _no_peak(accelerator: Any, dtype: str) -> None:
    """A CPU has no known peak, so no utilisation is logged."""


def install() -> None:
    """Give TRL's tree attention the stand-in, for the whole process; for a process without a GPU.

    TRL 1.16 also asks CUDA for the name of its device, to look up a peak throughput, and fails without one.
    Raises RuntimeError where TRL has no such seams: attention that silently stayed FA3 would fail much later.
    """
    for module, name in ((packing, "_flash_attn"), (async_grpo_trainer, "get_peak_flops_per_device")):
        if not callable(getattr(module, name, None)):
            raise RuntimeError(f"this TRL has no {module.__name__}.{name} to replace; entrl is tested with TRL 1.16")
    packing._flash_attn = _segment_attention
    async_grpo_trainer.get_peak_flops_per_device = _no_peak
