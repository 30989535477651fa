"""Whether a trainer and a server on another machine start from the same weights, without sending them.

Of every safetensors file: its size, its header (names, shapes, offsets) and 16 slices of 64 KiB spread over it. Two
fine-tunes of one model differ in it; names and folders do not matter, and how the weights are split into files does.
"""

import hashlib
from pathlib import Path

SLICES, SLICE_BYTES = 16, 64 * 1024


def model_fingerprint(model: str) -> str | None:
    """Hex, for a folder or a hub id that is on this machine; None where there is nothing to read."""
    folder = _folder(model)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}/".encode())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(length, size)))
            start = 8 + length
            for i in range(SLICES):
                stream.seek(start + max(0, size - start - SLICE_BYTES) * i // (SLICES - 1))
                digest.update(stream.read(SLICE_BYTES))
    return digest.hexdigest()[:32]


def _folder(model: str) -> Path | None:
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors"]))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
