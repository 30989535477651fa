"""What an evaluation through vLLM refuses before it starts, without any engine (with: test_evaluation_engine.py)."""

import importlib.util

import pytest
from peft import LoraConfig, get_peft_model
from tiny_model import saved_model, tiny_model

from entrl.engines.faults import RolloutError
from entrl.evaluation.engine import open_engine
from entrl.evaluation.writing import Sampling
from entrl.models.load import load_tokenizer
from entrl.runs.evaluate import refuse_missing_writer
from entrl.runs.specs import EvalSpec

SAMPLING = Sampling(samples=1, temperature=1.0, top_p=1.0, max_new_tokens=8, seed=0)


@pytest.fixture
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else found(name, *a))


@pytest.mark.usefixtures("_no_vllm")
def test_an_engine_that_is_not_installed_is_refused_before_a_run_trains() -> None:
    with pytest.raises(ValueError, match=r"eval\.engine: vLLM is not installed .*install_vllm\.sh.*transformers"):
        refuse_missing_writer(EvalSpec(task="sums", engine="vllm"))
    refuse_missing_writer(EvalSpec(task="sums", engine="vllm", servers=["http://127.0.0.1:1"]))  # somebody else's
    refuse_missing_writer(EvalSpec(task="sums"))
    refuse_missing_writer(None)


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
