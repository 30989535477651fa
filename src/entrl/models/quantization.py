"""QLoRA: the frozen base in 4 bit (bitsandbytes, through transformers), a LoRA adapter trained on it.

Source:  arXiv 2305.14314; transformers' BitsAndBytesConfig, peft, TRL 1.16's GRPOTrainer
Differs: the adapter stays in float32, as on a base that is not quantised. TRL rounds it to bfloat16, where an update
    of some 1e-5 is less than half a step between neighbouring numbers and is lost (`docs/lora.md` has what that does).
    Norms and embeddings keep `model.dtype`, as in TRL 1.16: peft's prepare_model_for_kbit_training makes them float32,
    which autocast does not need and which is 0.9 GB more for a vocabulary of 152k.
Needs:   bitsandbytes (`pip install entrl[qlora]`)
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")
SHARDED = (
    "model.quantization: 4-bit weights divided over processes (FSDP2, ZeRO-3) are not tested; launch with "
    "launch/multi_gpu.yaml, where each process has them whole"
)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Of the base's linear layers, but for the output layer; everything else keeps `model.dtype`."""

    bits: int = 4
    quant_type: str = "nf4"  # or fp4
    double_quant: bool = True  # the scales are quantised as well: 4.127 instead of 4.5 bits a weight
    compute_dtype: str = "bfloat16"  # weights are brought to it for each product

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, (4,)),
            ("quant_type", self.quant_type, ("nf4", "fp4")),
            ("compute_dtype", self.compute_dtype, DTYPES),
        ):
            if value not in known:
                raise ValueError(f"model.quantization.{name} must be {' or '.join(map(str, known))}, got {value!r}")

    @property
    def bytes_per_weight(self) -> float:
        """4 bits, and for 64 weights a float32 scale; doubly, 8 bits of scale and a float32 for 256 scales."""
        scales = (1 + 4 / 256) / 64 if self.double_quant else 4 / 64
        return self.bits / 8 + scales

    def build(self) -> Any:
        """transformers' BitsAndBytesConfig."""
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
        )


def missing_bitsandbytes(quantization: Quantization | None) -> str | None:
    """Why a base cannot be quantised on this machine, or None."""
    if quantization is None:
        return None
    otherwise = "or leave model.quantization out"
    if importlib.util.find_spec("bitsandbytes") is None:
        return (
            f"model.quantization is set and bitsandbytes is not installed here; pip install 'entrl[qlora]', {otherwise}"
        )
    from transformers.integrations.bitsandbytes import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except (RuntimeError, ImportError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        return (
            f"model.quantization is set and bitsandbytes cannot run on this machine ({why}); take another, {otherwise}"
        )
    return None


def quantization_problems(quantization: Quantization | None, lora: Any, args: Any) -> list[str]:
    """What a 4-bit base cannot stand beside. args: the trainer's config, or None."""
    if quantization is None:
        return []
    out = []
    if lora is None:
        out.append(
            "model.quantization: weights in 4 bit cannot be trained, only an adapter on them; add lora: {r: 16, "
            "target_modules: all-linear}, or leave model.quantization out"
        )
    elif getattr(lora, "modules_to_save", None):
        out.append(
            f"model.quantization beside lora.modules_to_save ({lora.modules_to_save}) is not tested; leave it out"
        )
    if getattr(args, "use_vllm", False) and not getattr(args, "vllm_replicas", None):
        out.append(
            "model.quantization with use_vllm: TRL merges the adapter into the 4-bit base and sends packed weights, "
            "which the engine's loader cannot take (trl issues 3466, 4973); send the adapter alone (trainer.vllm_mode: "
            "server with trainer.vllm_replicas and `entrl serve`, on the same card too), or set use_vllm: false"
        )
    elif getattr(args, "use_vllm", False) and (quantization.quant_type, quantization.double_quant) != ("nf4", True):
        out.append(
            "model.quantization with trainer.vllm_replicas: vLLM quantises to nf4 with double_quant: true alone: its "
            "servers would sample from another policy; set these, or use_vllm: false"
        )
    return out + ([SHARDED] if _is_sharded() else [])


def _is_sharded() -> bool:
    """Whether the launcher divides weights over processes."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def keep_adapter_in_float32(model: Any) -> None:
    """Undo TRL's rounding of what is trained on a 4-bit base, before an optimiser exists; others are not touched."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
