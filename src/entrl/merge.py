"""Fold a LoRA adapter into its base: W + (alpha / r) B A, saved as a plain model folder with its tokenizer.

The sum is taken in float32 and stored in the asked dtype: adding a small update to 16-bit weights would lose it.
"""

from pathlib import Path


def merge_adapter(adapter: Path, out: Path, *, base: str | None = None, dtype: str = "float32") -> Path:
    """Write the merged model to `out`; `base` overrides the base model the adapter names."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entrl.assets import model_path
    from entrl.evaluate import adapter_base

    check_adapter(adapter)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder with --out")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    source = model_path(base) if base else adapter_base(str(adapter))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, dtype)).save_pretrained(out)
    own_tokenizer = (adapter / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(str(adapter) if own_tokenizer else source).save_pretrained(out)
    return out


def check_adapter(adapter: Path) -> None:
    if not (adapter / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{adapter} has no adapter_config.json; name the folder of a LoRA adapter, such as runs/lora/model"
        )
