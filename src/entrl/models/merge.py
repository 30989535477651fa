"""Fold a LoRA adapter into its base: W + (alpha / r) B A, saved as a plain model folder with its tokenizer.

The folder is loaded again and its logits are compared before it is left behind. Stored in 16 bits the weights are
rounded; how far that moves the logits is said.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from entrl.models.load import DTYPES, load_tokenizer, load_weights


def merge_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the merged model to `out`; `base` overrides the base model the adapter names.

    ValueError, with nothing left in `out`, where the merged model is not what base and adapter are together.
    """
    import torch

    from entrl.models.fold import check_saved, fixed_prompts, forward, round_to  # brings torch

    check_adapter(adapter)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder with --out")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}")
    model = load_weights(str(adapter), adapter="fold", dtype="float32", base=base)
    ids_BT = fixed_prompts(model.get_input_embeddings())
    exact_BTV = forward(model, ids_BT)
    round_to(model, getattr(torch, dtype))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".unchecked-") as unchecked:
        model.save_pretrained(unchecked)
        load_tokenizer(str(adapter), base=base).save_pretrained(unchecked)
        round_to(model, torch.float32)  # the rounded weights, computed with as the check does
        stored_BTV = forward(model, ids_BT)
        del model
        check_saved(Path(unchecked), ids_BT, stored_BTV)
        for file in Path(unchecked).iterdir():
            file.rename(out / file.name)
    if dtype != "float32":
        moved, size = float((stored_BTV - exact_BTV).abs().max()), float(exact_BTV.abs().max())
        say(f"stored in {dtype}: logits move by up to {moved:.2g}, the largest is {size:.3g}")
    return out


def check_adapter(adapter: Path) -> None:
    if not (adapter / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{adapter} has no adapter_config.json; name the folder of a LoRA adapter, such as runs/lora/model"
        )
