"""Adapters on disk and on the wire: names, completeness, ranks, and what vLLM could not serve."""

import json
import struct
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import tiny_model

from entrl.engines.adapters import (
    CONFIG,
    WEIGHTS,
    adapter_name,
    adapter_rank,
    check_folder,
    check_servable,
    check_servable_config,
    folder_bytes,
    pack,
    remove_versions,
    save_version,
    server_rank,
    unpack_file,
)
from entrl.engines.faults import AdapterRefused
from entrl.engines.fingerprint import model_fingerprint


def peft_model(**options: object):
    return get_peft_model(tiny_model(), LoraConfig(**({"r": 4, "target_modules": "all-linear"} | options)))


@pytest.fixture
def saved(tmp_path: Path):
    return save_version(peft_model(), Accelerator(cpu=True), tmp_path / "adapters", "run", 3)


def test_names() -> None:
    assert adapter_name("run.a_1", 12) == "entrl-run.a_1-v12"
    for bad in ("", "a/b", "..", "-x", "a b", "a" * 81):
        with pytest.raises(ValueError, match="a run id is letters"):
            adapter_name(bad, 0)
    with pytest.raises(ValueError, match=r"count from 0, got -1"):
        adapter_name("run", -1)


def test_ranks() -> None:
    assert adapter_rank({"r": 4, "rank_pattern": {"q_proj": 12}}) == 12
    assert adapter_rank({}) == LoraConfig().r
    assert adapter_rank(LoraConfig(r=3)) == 3
    assert [server_rank(r) for r in (1, 2, 12, 16, 33)] == [1, 8, 16, 16, 64]
    with pytest.raises(ValueError, match="larger than the largest rank"):
        server_rank(1000)


def test_a_saved_version_is_whole_and_holds_the_weights(saved) -> None:
    assert saved.name == "entrl-run-v3"
    assert saved.bytes == check_folder(saved.folder, rank=4) == folder_bytes(saved.folder) > 1000
    assert saved.folder.name == saved.name
    weights = load_file(saved.folder / WEIGHTS)
    assert len(weights) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    assert not [p for p in saved.folder.parent.iterdir() if p.name.startswith(".")]


def test_a_version_is_written_once(saved) -> None:
    with pytest.raises(FileExistsError, match="a version is written once"):
        save_version(peft_model(), Accelerator(cpu=True), saved.folder.parent, "run", 3)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_what_vllm_would_drop_in_silence_is_refused(tmp_path: Path, options: dict) -> None:
    model = peft_model(**options)
    with pytest.raises(ValueError, match=r"[Ss]ync merged weights instead"):
        check_servable(model)
    with pytest.raises(ValueError, match=r"[Ss]ync merged weights instead"):
        save_version(model, Accelerator(cpu=True), tmp_path, "run", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 64}}])
def test_scales_by_module_are_refused_where_vllm_has_one_for_all(tmp_path: Path, options: dict) -> None:
    model = peft_model(**options)
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* one r and one lora_alpha"):
        check_servable(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scales some modules differently"):
        check_servable_config(PeftConfig.from_pretrained(tmp_path))


def test_old_versions_are_removed_and_others_left(saved) -> None:
    parent = saved.folder.parent
    for name in ("entrl-run-v1", "entrl-run-v2", "entrl-run-2-v1", "entrl-other-v1", "entrl-run-vx"):
        (parent / name).mkdir()
    assert remove_versions(parent, "run", below=3) == ["entrl-run-v1", "entrl-run-v2"]
    assert sorted(p.name for p in parent.iterdir()) == [
        "entrl-other-v1",
        "entrl-run-2-v1",
        "entrl-run-v3",
        "entrl-run-vx",
    ]


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_weights(saved, cut: int) -> None:
    file = saved.folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(AdapterRefused, match=r"its header says .* cut short, write it again"):
        check_folder(saved.folder)


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 10**9) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_broken_headers(saved, content: bytes) -> None:
    (saved.folder / WEIGHTS).write_bytes(content)
    with pytest.raises(AdapterRefused, match="safetensors header; write it again"):
        check_folder(saved.folder)


def test_folders_that_are_no_adapter(saved) -> None:
    with pytest.raises(AdapterRefused, match=r"has rank 4, this run was set up for 2"):
        check_folder(saved.folder, rank=2)
    (saved.folder / CONFIG).write_text("{")
    with pytest.raises(AdapterRefused, match="is no JSON"):
        check_folder(saved.folder)
    (saved.folder / CONFIG).unlink()
    with pytest.raises(AdapterRefused, match="is no adapter"):
        check_folder(saved.folder)


def test_the_wire_carries_both_files(saved, tmp_path: Path) -> None:
    data = pack(saved.folder)
    assert len(data) == saved.bytes + 8
    (tmp_path / "sent").write_bytes(data)
    unpack_file(tmp_path / "sent", tmp_path / "entrl-run-v3")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "entrl-run-v3" / file).read_bytes() == (saved.folder / file).read_bytes()
    unpack_file(tmp_path / "sent", tmp_path / "entrl-run-v3")  # a second time: replaced by the same
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapters", "entrl-run-v3", "sent"]


@pytest.mark.parametrize("cut", [4, 20, 700])
def test_a_packed_adapter_cut_short_leaves_nothing(saved, tmp_path: Path, cut: int) -> None:
    data = pack(saved.folder)
    (tmp_path / "sent").write_bytes(data[:cut] if cut < 700 else data[:-cut])
    with pytest.raises(AdapterRefused):
        unpack_file(tmp_path / "sent", tmp_path / "entrl-run-v3")
    assert not (tmp_path / "entrl-run-v3").exists()


def test_fingerprints_are_of_the_weights(tmp_path: Path) -> None:
    def write(name: str, **change: float) -> str | None:
        folder = tmp_path / name
        folder.mkdir()
        torch.manual_seed(0)
        tensors = {"a": torch.randn(400, 512), "b": torch.zeros(16)}  # 0.8 MB: within the 16 slices of 64 KiB
        for key, value in change.items():
            tensors[key].view(-1)[-1] += value
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"name": name}))
        return model_fingerprint(str(folder))

    first = write("one")
    assert first == write("copy-elsewhere")
    assert first != write("other", a=1e-3)
    assert first != write("tail", b=1.0)
    assert model_fingerprint(str(tmp_path)) is None
    assert model_fingerprint("nobody/has-this-model") is None
