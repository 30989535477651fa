"""The nursery: text survives a round trip, lessons are what they say, a seed gives one base, the asset is sound."""

import json
import random
import string
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.tasks import load_task
from entrl.tasks.traces import Mixture, lesson, terms_of
from entrl_lab.nursery import NurseryConfig, calibrate, main
from entrl_lab.nursery.build import lessons, train
from entrl_lab.nursery.calibration import Calibration
from entrl_lab.nursery.sft import sha256
from entrl_lab.nursery.tokenizer import THINK_CLOSE, THINK_OPEN, character_tokenizer

ASSET = Path(str(files("entrl.models.shipped") / "tiny-reasoner"))
PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
TOKENIZER = character_tokenizer()


@given(st.lists(st.sampled_from([*PRINTABLE, THINK_OPEN, THINK_CLOSE]), max_size=40).map("".join))
def test_round_trip(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_tags_and_specials_are_one_token_each() -> None:
    ids = TOKENIZER("7=<think></think>7<|endoftext|><|pad|>").input_ids
    assert len(ids) == 7
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "7=<think></think>7"
    assert TOKENIZER("é").input_ids == [TOKENIZER.unk_token_id]


def test_one_user_turn_is_the_bare_prompt() -> None:
    messages = [{"role": "user", "content": "12+7="}]
    kwargs = {"tokenize": False, "add_generation_prompt": True}
    assert TOKENIZER.apply_chat_template(messages, **kwargs) == "12+7="
    messages += [{"role": "assistant", "content": "19"}, {"role": "user", "content": "1+1="}]
    assert TOKENIZER.apply_chat_template(messages, **kwargs) == "12+7=19<|endoftext|>1+1="


def test_terms() -> None:
    assert terms_of("12+7-3=") == [12, 7, -3]
    with pytest.raises(ValueError, match="expected a sum such as"):
        terms_of("What is 12+7?")


def test_lessons_by_hand() -> None:
    rng = random.Random(0)
    at_once, plain = Mixture(think=0), Mixture(think=1, slip=0, check=0)
    assert lesson("12+7-30=", rng, mixture=at_once) == "<think></think>30"
    assert lesson("12+7-30=", rng, mixture=plain) == "<think>12+7=19,19-30=-11</think>-11"
    checked = Mixture(think=1, slip=1, check=1)  # every step slips, and every check repairs it
    text = lesson("12+7-30=", rng, mixture=checked)
    assert text.endswith("</think>-11")
    assert text.count("?12+7=19") == 1
    assert "<think>12+7=19," not in text


def test_a_slip_is_carried_on() -> None:
    text = lesson("12+7-30=", random.Random(0), mixture=Mixture(think=1, slip=1, check=0))
    first, second = text.removeprefix("<think>").partition("</think>")[0].split(",")
    wrong = int(first.removeprefix("12+7="))
    assert wrong != 19
    assert second.startswith(f"{wrong}-30=")
    assert int(second.rpartition("=")[2]) != wrong - 30
    assert text.endswith(f"</think>{second.rpartition('=')[2]}")


def test_shares_of_the_mixture() -> None:
    rng = random.Random(1)
    texts = [lesson("12+7-3=", rng, mixture=Mixture()) for _ in range(4000)]
    thinking = [text for text in texts if not text.startswith("<think></think>")]
    # Four standard errors each. A first step is wrong throughout when it slips and no check repairs it.
    assert len(thinking) / len(texts) == pytest.approx(0.35, abs=0.030)
    assert sum(text.count("?") for text in thinking) / (2 * len(thinking)) == pytest.approx(0.15, abs=0.03)
    assert sum("12+7=19" not in text for text in thinking) / len(thinking) == pytest.approx(0.04 * 0.85, abs=0.025)


@pytest.mark.parametrize("name", ["think", "slip", "check"])
def test_probabilities_are_probabilities(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a probability and must be in"):
        Mixture(**{name: 1.5})


@pytest.mark.parametrize("name", ["steps", "batch_size", "threads"])
def test_config_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        NurseryConfig(**{name: 0})


def test_lessons_share_no_problem_with_the_test_side() -> None:
    practice, mixture = lessons(NurseryConfig(practice_steps=20, steps=30, batch_size=16))
    taught = {*practice["prompt"], *mixture["prompt"]}
    assert len(taught) == 50 * 16
    assert not taught & set(load_task("sums", split="test", size=500, seed=0)["prompt"])


def test_practice_only_thinks() -> None:
    practice, mixture = lessons(NurseryConfig(practice_steps=5, steps=20, batch_size=16))
    assert not any("<think></think>" in text for text in practice["completion"])
    for prompt, text in zip(practice["prompt"], practice["completion"], strict=True):
        assert text.endswith(f"</think>{sum(terms_of(prompt))}"), "practice slipped"
    assert sum("<think></think>" in text for text in mixture["completion"]) == pytest.approx(0.65 * 320, abs=35)


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    torch_threads = torch.get_num_threads()
    weights = [
        train(NurseryConfig(practice_steps=1, steps=2, batch_size=4, seed=seed))[0].state_dict() for seed in (5, 5, 6)
    ]
    torch.set_num_threads(torch_threads)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["model.norm.weight"], weights[2]["model.norm.weight"])


def test_command_writes_a_base_and_says_what_is_wrong_with_it(tmp_path: Path, capsys) -> None:
    out = tmp_path / "base"
    threads = torch.get_num_threads()
    assert (
        main(["--out", str(out), "--practice-steps", "0", "--steps", "2", "--batch-size", "4", "--problems", "5"]) == 1
    )
    torch.set_num_threads(threads)
    assert "not a good start for RL: sampled_accuracy is 0.000" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["weights_sha256"] == sha256(out / "model.safetensors")
    assert manifest["config"]["steps"] == 2
    assert AutoTokenizer.from_pretrained(out)("<think>").input_ids == TOKENIZER("<think>").input_ids
    with pytest.raises(SystemExit):
        main(["--out", str(out)])
    assert "already holds a model" in capsys.readouterr().err


def test_complaints() -> None:
    good = {
        "problems": 200,
        "samples": 8,
        "max_new_tokens": 96,
        "greedy_accuracy": 0.06,
        "sampled_accuracy": 0.25,
        "sampled_accuracy_3": 0.3,
        "sampled_accuracy_4": 0.2,
        "think_share": 0.35,
        "accuracy_thinking": 0.65,
        "accuracy_at_once": 0.05,
        "missing_close": 0.0,
        "truncated": 0.0,
        "mean_length": 20.0,
    }
    assert Calibration(**good).complaints() == []
    assert Calibration(**{**good, "think_share": 0.6}).complaints() == ["think_share is 0.600, outside [0.25, 0.45]"]
    assert Calibration(**{**good, "sampled_accuracy": 0.02}).complaints() != []  # too few rewards to learn from
    assert Calibration(**{**good, "greedy_accuracy": 0.61}).complaints() != []  # too little to learn


def test_asset_is_small_and_is_what_its_manifest_says() -> None:
    manifest = json.loads((ASSET / "manifest.json").read_text())
    assert manifest["weights_sha256"] == sha256(ASSET / "model.safetensors")
    assert manifest["tokenizer_sha256"] == sha256(ASSET / "tokenizer.json")
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 5e6
    shipped = AutoTokenizer.from_pretrained(ASSET)
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    text = "12+7-3=<think>12+7=19</think>" + string.punctuation
    assert shipped(text).input_ids == TOKENIZER(text).input_ids


def test_asset_is_a_good_start_for_rl() -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32)
    rows = [dict(row) for row in load_task("sums", split="test", size=150, seed=7)]
    measured = calibrate(model, AutoTokenizer.from_pretrained(ASSET), rows, samples=4)
    assert measured.complaints() == []
    assert measured.missing_close < 0.01
