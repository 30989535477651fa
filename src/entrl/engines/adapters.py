"""LoRA adapters as a trainer hands them to vLLM servers: one new name and one new folder per version.

Never in place. vLLM 0.31 keys its prefix cache on the adapter's name and path (older ones on the name), so an adapter
that is replaced under both keeps answering from key-value blocks the old weights computed
(`tests/test_engines_pool_vllm.py` shows it).
What an adapter may contain, and how a sharded one is gathered and written, is TRL's: the guards of its asynchronous
GRPO trainer are called, not copied.

On the wire, where trainer and servers share no folder, an adapter is

    8 bytes, little-endian: length of the JSON | adapter_config.json | adapter_model.safetensors
"""

import json
import os
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from entrl.engines.faults import AdapterRefused

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import LoraConfig, PeftModel

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the two guards used here are pinned with TRL 1.16

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"entrl-[A-Za-z0-9_.-]{1,80}-v\d{1,9}")  # also a folder name and a part of a URL
RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
HEADER = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    name: str
    folder: Path
    bytes: int  # of all its files


def adapter_name(run_id: str, version: int) -> str:
    """`entrl-<run>-v<version>`. A run that starts again needs a new `run_id`: servers remember names."""
    if not RUN.fullmatch(run_id):
        raise ValueError(f"a run id is letters, digits, '.', '_' and '-', at most 80 of them, got {run_id!r}")
    if version < 0:
        raise ValueError(f"adapter versions count from 0, got {version}")
    return f"entrl-{run_id}-v{version}"


def check_servable(model: "PeftModel") -> "LoraConfig":
    """The active adapter's config. Raises ValueError for what vLLM would drop in silence: DoRA, biases, the head, and
    ranks or scales by module."""
    from trl.experimental.async_grpo.async_grpo_trainer import validate_lora_for_vllm_sync

    config = validate_lora_for_vllm_sync(model)
    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(config, name, None):  # vLLM 0.31 scales every module by the adapter's one lora_alpha / r
            raise ValueError(
                f"{name}={getattr(config, name)} scales some modules differently, and vLLM would take lora_alpha / r "
                "for all of them; use one r and one lora_alpha, or serve merged weights"
            )
    return config


def check_servable_config(config: Any) -> None:
    """The same for the configuration of an adapter that lies in a folder."""
    check_servable(SimpleNamespace(active_adapters=["default"], peft_config={"default": config}))  # pyright: ignore


def adapter_rank(config: "LoraConfig | dict[str, Any]") -> int:
    """The largest rank of any module; of a `LoraConfig`, or of the recipe's `lora` group."""
    get = config.get if isinstance(config, dict) else lambda key, default: getattr(config, key, default)
    return max([get("r", 8), *(get("rank_pattern", None) or {}).values()])


def server_rank(rank: int) -> int:
    """The smallest rank >= `rank` vLLM can be started with."""
    from trl.experimental.async_grpo.async_grpo_trainer import round_lora_rank

    return round_lora_rank(rank)


def save_version(
    model: "PeftModel", accelerator: "Accelerator", parent: str | Path, run_id: str, version: int
) -> SavedAdapter:
    """Write the active adapter to `<parent>/<name>`. A collective: every rank calls it, the main one writes.

    The folder appears by a rename, complete. Other ranks get the same description with `bytes` = 0 until it is there.
    Raises ValueError where vLLM could not serve the adapter, FileExistsError where that version was written before.
    """
    from trl.experimental.async_grpo.async_grpo_trainer import save_lora_adapter

    check_servable(model)
    name = adapter_name(run_id, version)
    folder = Path(parent).absolute() / name
    if accelerator.is_main_process and folder.exists():
        raise FileExistsError(f"{folder} exists; a version is written once (servers cache by name), take a new run id")
    save_lora_adapter(model, accelerator, model.active_adapters[0], str(folder))
    return SavedAdapter(name=name, folder=folder, bytes=folder_bytes(folder))


def remove_versions(parent: str | Path, run_id: str, *, below: int) -> list[str]:
    """Delete the folders of versions < `below`. Keep the served version and the one before: servers read lazily."""
    removed = []
    for folder in Path(parent).glob(f"entrl-{run_id}-v*"):
        number = folder.name.rpartition("-v")[2]
        if number.isdigit() and folder.name == f"entrl-{run_id}-v{number}" and int(number) < below:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return sorted(removed)


def folder_bytes(folder: Path) -> int:
    """Bytes of the adapter's two files (0 where it is not there)."""
    return sum(path.stat().st_size for path in (folder / CONFIG, folder / WEIGHTS) if path.is_file())


def check_folder(folder: str | Path, *, rank: int | None = None) -> int:
    """Bytes of a whole, readable adapter. Raises AdapterRefused otherwise, or where its rank exceeds `rank`."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise AdapterRefused(f"{folder} is no adapter: it needs {CONFIG} and {WEIGHTS}; write it with save_version")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise AdapterRefused(f"{folder / CONFIG} is no JSON ({error}); write it with save_version") from None
    with (folder / WEIGHTS).open("rb") as file:
        check_safetensors(file.read(8 + MAX_HEADER), (folder / WEIGHTS).stat().st_size, name=str(folder / WEIGHTS))
    if rank is not None and adapter_rank(config) > rank:
        raise AdapterRefused(
            f"{folder} has rank {adapter_rank(config)}, this run was set up for {rank}; "
            "set lora_rank to it and restart the servers with `entrl serve`"
        )
    return folder_bytes(folder)


MAX_HEADER = 16 * 2**20  # bytes of a safetensors header; an adapter's is some 100 per tensor


def check_safetensors(start: bytes, size: int, *, name: str) -> None:
    """Whether a file of `size` bytes beginning with `start` is as long as its own header says."""
    length = int.from_bytes(start[:8], "little") if len(start) >= 8 else -1
    if not 0 < length <= MAX_HEADER or len(start) < 8 + length:
        raise AdapterRefused(f"{name} ({size:,} bytes) has no whole safetensors header; write it again")
    try:
        entries = json.loads(start[8 : 8 + length])
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise AdapterRefused(f"{name} ({size:,} bytes) has a broken safetensors header; write it again") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise AdapterRefused(f"{name} has {size:,} bytes, its header says {wanted:,}; it was cut short, write it again")


def pack(folder: str | Path) -> bytes:
    """The adapter as it travels; see the top of this file."""
    config, weights = (Path(folder) / CONFIG).read_bytes(), (Path(folder) / WEIGHTS).read_bytes()
    return HEADER.pack(len(config)) + config + weights


def unpack_file(packed: Path, folder: Path) -> None:
    """Write a packed adapter to `folder`, which appears by a rename: complete or not at all. Raises AdapterRefused."""
    size = packed.stat().st_size
    with packed.open("rb") as file:
        length = int.from_bytes(file.read(HEADER.size), "little")
        if not 0 < length <= MAX_HEADER or HEADER.size + length >= size:
            raise AdapterRefused(f"{size:,} bytes are no packed adapter; send what entrl.engines.adapters.pack makes")
        config = file.read(length)
        try:
            json.loads(config)
        except ValueError as error:
            raise AdapterRefused(f"the packed {CONFIG} is no JSON: {error}") from None
        start = file.tell()
        check_safetensors(file.read(8 + MAX_HEADER), size - start, name=f"the packed {WEIGHTS}")
        file.seek(start)
        staged = folder.parent / f".{folder.name}.{os.getpid()}.tmp"  # a dot: never mistaken for an adapter
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        (staged / CONFIG).write_bytes(config)
        with (staged / WEIGHTS).open("wb") as out:
            shutil.copyfileobj(file, out)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
