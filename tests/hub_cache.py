"""The architectures of hub models, where there is no network: a cache that holds their config.json and no weights.

`data/hub_configs` has what these models publish of their shape (layers, widths, vocabulary, positions), nothing else.
"""

from pathlib import Path

import pytest

CONFIGS = Path(__file__).parent / "data" / "hub_configs"
REVISION = "0" * 40


def use_hub_configs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill `folder` as the hub's client keeps what it has downloaded, and have it looked into, offline."""
    import huggingface_hub.constants as constants

    for file in CONFIGS.glob("*.json"):
        repository = folder / f"models--{file.stem}"
        snapshot = repository / "snapshots" / REVISION
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION)
        (snapshot / "config.json").write_bytes(file.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
