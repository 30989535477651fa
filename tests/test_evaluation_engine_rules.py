"""What an evaluation through vLLM refuses before it starts, without any engine (with: test_evaluation_engine.py)."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tiny_model import saved_model, tiny_model

from entrl.engines.faults import RolloutError
from entrl.evaluation.engine import open_engine
from entrl.evaluation.writing import Sampling
from entrl.models.load import load_tokenizer
from entrl.runs.plan import build_args, missing_here
from entrl.runs.recipe import load_recipe
from entrl.runs.specs import EvalSpec

ROOT = Path(__file__).parents[1] / "recipes"

SAMPLING = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=8, seed=0)


@pytest.fixture
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else found(name, *a))


@pytest.mark.usefixtures("_no_vllm")
def test_an_engine_that_is_not_installed_is_refused_before_a_run_trains() -> None:
    def missing(**spec: Any) -> list[str]:
        recipe = load_recipe(ROOT / "tiny-reasoner" / "grpo.yaml")
        recipe = replace(recipe, eval=EvalSpec(task="sums", **spec) if spec else None)
        return missing_here(recipe, build_args(recipe))

    (found,) = missing(engine="vllm")
    assert re.fullmatch(r"eval\.engine: vLLM is not installed .*install_vllm\.sh.*eval\.engine: transformers", found)
    assert missing(engine="vllm", servers=["http://127.0.0.1:1"]) == []  # somebody else's
    assert missing(engine="transformers") == missing() == []


@pytest.mark.usefixtures("_no_vllm")
def test_the_engine_says_so_as_well() -> None:
    opened = open_engine("tiny-reasoner", sampling=SAMPLING, tokenizer=load_tokenizer("tiny-reasoner"))
    with pytest.raises(ValueError, match="vLLM is not installed for this Python"), opened:
        pass


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_dora": True}, "DoRA adapters are not servable"),
        ({"alpha_pattern": {"q_proj": 64}}, "scales some modules differently"),
        ({"modules_to_save": ["lm_head"]}, "fully trained, not a low-rank delta"),
    ],
)
def test_servers_do_not_get_an_adapter_they_would_serve_in_part(tmp_path, options, why) -> None:
    base = saved_model(tmp_path / "base")
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], **options))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "adapter")
    opened = open_engine(
        str(tmp_path / "adapter"), sampling=SAMPLING, tokenizer=load_tokenizer(base), servers=["http://127.0.0.1:1"]
    )
    with pytest.raises(ValueError, match=f"(?s)servers cannot serve the adapter .*{why}.*entrl merge"), opened:
        pass


def test_a_server_that_is_not_there_is_named() -> None:
    tokenizer = load_tokenizer("tiny-reasoner")
    opened = open_engine("tiny-reasoner", sampling=SAMPLING, tokenizer=tokenizer, servers=["http://127.0.0.1:9"])
    with pytest.raises(RolloutError, match=r"http://127\.0\.0\.1:9 does not answer: .*entrl serve"), opened:
        pass
