"""What a model's folder lacks: said from its files alone, before weights are loaded.

Looked at: the configuration (readable, of a causal language model), weight files (all there, whole, of the sizes it
says), the tokenizer (there, with no more tokens than the model has embeddings). A hub id is looked at by whoever loads
it.
"""

import json
import struct
from pathlib import Path
from typing import Any

from entrl.models.shipped import bare_names

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def folder_problems(spec: Any) -> list[str]:
    """Of a recipe's `model` group; empty for bare names and hub ids."""
    path = Path(spec.path).expanduser()
    if spec.path in bare_names() or not path.exists():
        return _tokenizer_path_problems(spec)
    if path.is_file():
        return [f"model.path {spec.path} is a file; name the folder that save_pretrained wrote (with config.json)"]
    if not (path / "config.json").is_file():  # an adapter, or no model: said where it is looked for
        return _tokenizer_path_problems(spec)
    return (
        config_problems(spec)
        or [*weight_problems(path), *_tokenizer_path_problems(spec), *_tokenizer_problems(spec, path)]
        or _shape_problems(spec, path)
    )


def missing_weights(spec: Any) -> str | None:
    """Of a folder with a configuration alone, which is enough to plan with."""
    path = Path(spec.path).expanduser()
    if spec.path in bare_names() or not (path / "config.json").is_file():
        return None
    if any((path / name).is_file() for name in WEIGHTS):
        return None
    return f"model.path: the folder {path} holds no weights ({WEIGHTS[0]}); name the folder that save_pretrained wrote"


def folder_warnings(spec: Any) -> list[str]:
    if spec.revision is not None and (spec.path in bare_names() or Path(spec.path).expanduser().is_dir()):
        return [
            f"model.revision {spec.revision!r} is of the hub, and model.path {spec.path} is a folder here, which is "
            "read as it is; leave it out"
        ]
    return []


def config_problems(spec: Any) -> list[str]:
    """Of the folder's configuration alone: nothing of the model can be reckoned with where there are any."""
    path = Path(spec.path).expanduser()
    file = path / "config.json"
    if spec.path in bare_names() or not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "has no model_type" if isinstance(error, (KeyError, TypeError)) else f"cannot be read ({error})"
        return [f"model.path: {file} {why}; take the folder that save_pretrained wrote"]
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    if "auto_map" in content and spec.trust_remote_code:
        return []
    if kind not in CONFIG_MAPPING:
        return [
            f"model.path: {file} says model_type {kind!r}, which transformers does not know; take another model, or "
            "set model.trust_remote_code: true where it brings its own code"
        ]
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [
            f"model.path: {file} says model_type {kind!r}, which is no causal language model; take one that writes text"
        ]
    if (problem := _generation_problem(path / "generation_config.json")) is not None:
        return [problem]
    try:
        CONFIG_MAPPING[kind].from_pretrained(path)
    except Exception as error:  # huggingface_hub's strict dataclasses raise kinds of their own
        return [
            f"model.path: {file} is no configuration of {kind}: {' '.join(str(error).split())[:160]}; mend that file"
        ]
    return []


def _generation_problem(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        if isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            return None
        why = "holds no mapping"
    except (OSError, ValueError) as error:
        why = f"cannot be read ({error})"
    return f"model.path: {file} {why}; mend it, or delete it for the model's defaults"


def weight_problems(path: Path) -> list[str]:
    """Of its safetensors files: all there, and whole."""
    files = sorted(path.glob("*.safetensors"))
    if (path / INDEX).is_file():
        try:
            named = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            return [f"model.path: {path / INDEX} cannot be read ({error!r}); copy the model again"]
        if lacking := sorted(named - {file.name for file in files}):
            return [
                f"model.path: the folder {path} lacks {', '.join(lacking[:3])}, which its index names; copy it again"
            ]
    return [f"model.path: {file} {why}; put the whole file there" for file in files if (why := _torn(file)) is not None]


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Of a safetensors file, 8 bytes of length and JSON: (bytes the file should have, entry of each tensor)."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(min(length, file.stat().st_size)))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0), entries


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors in its safetensors files, which are whole."""
    entries = [_header(file)[1] for file in sorted(path.glob("*.safetensors"))]
    return {name: tuple(entry["shape"]) for one in entries for name, entry in one.items()}


def _torn(file: Path) -> str | None:
    """Why a safetensors file is not whole, by what its header counts."""
    size = file.stat().st_size
    try:
        wanted, _ = _header(file)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return "is no safetensors file, or cut short"
    return None if size == wanted else f"has {size:,} bytes instead of {wanted:,}: it was not written to its end"


def _shape_problems(spec: Any, path: Path) -> list[str]:
    """Weights of another configuration: sizes that differ. Packed ones (quantized) and foreign code are left alone."""
    content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in content or "auto_map" in content:
        return []
    from entrl.models.load import load_config, on_meta

    try:
        model = on_meta(load_config(spec))
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        return [
            f"model.path: no model can be made of {path / 'config.json'}: {' '.join(str(error).split())[:160]}; mend it"
        ]
    stored = stored_shapes(path)
    wrong = [
        f"{name} has {stored[name]} and should have {tuple(weight.shape)}"
        for name, weight in model.state_dict().items()
        if name in stored and stored[name] != tuple(weight.shape)
    ]
    if not wrong:
        return []
    return [
        f"model.path: the weights in {path} are not of its config.json: {wrong[0]} ({len(wrong)} such); take both from "
        "one model"
    ]


def _tokenizer_path_problems(spec: Any) -> list[str]:
    given = spec.tokenizer
    if given is None or given in bare_names() or not (given.startswith((".", "/", "~")) or given.count("/") > 1):
        return []
    path = Path(given).expanduser()
    if path.is_dir() and any((path / name).is_file() for name in TOKENIZERS):
        return []
    what = "holds no tokenizer" if path.is_dir() else "does not exist"
    return [f"model.tokenizer: the folder {given} {what}; correct it, or leave it out for the model's own"]


def _tokenizer_problems(spec: Any, path: Path) -> list[str]:
    """Of the tokenizer that will be read: the model's own, or the one that model.tokenizer names."""
    if spec.tokenizer is None and not any((path / name).is_file() for name in TOKENIZERS):
        return [
            f"model.path: the folder {path} holds no tokenizer ({TOKENIZERS[0]}); save the tokenizer there, or name "
            "one in model.tokenizer"
        ]
    from entrl.models.load import load_config, tokenizer_of

    try:
        tokenizer, config = tokenizer_of(spec), load_config(spec).get_text_config()
    except Exception as error:  # whatever a damaged file makes tokenizers, or a foreign tokenizer's code, raise
        where = "model.path" if spec.tokenizer is None else "model.tokenizer"
        return [f"{where}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:160]}); mend or replace it"]
    size, largest = config.vocab_size, max(tokenizer.get_vocab().values(), default=0)
    if largest < size:
        return []
    which = "the tokenizer" if spec.tokenizer is None else f"model.tokenizer {spec.tokenizer}"
    return [
        f"{which} has ids up to {largest:,}, and the model's embeddings (vocab_size) end at {size - 1:,}: take the "
        "model's own tokenizer, or enlarge its embeddings (resize_token_embeddings) and save it"
    ]
