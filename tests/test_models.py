"""entrl.models: an adapter as a model is never dropped, and what it is folded into gives the same logits."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import SHAPE, close, logits, save_adapter
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from rich.console import Console
from rounding import log_prob_gap, mean_gap
from safetensors.torch import load_file
from tiny_model import saved_model
from transformers import AutoModelForCausalLM

from entrl.cli.main import main
from entrl.evaluation.answers import evaluate_path
from entrl.models.load import base_of, load_policy, load_tokenizer, load_weights
from entrl.models.merge import merge_adapter
from entrl.models.shipped import model_path
from entrl.runs.plan import plan
from entrl.runs.recipe import load_recipe
from entrl.runs.serve import server_command
from entrl.runs.train import train
from entrl.tasks import load_task
from entrl.tasks.traces import Mixture, lesson
from entrl.teach.cold_start import cold_start
from entrl.teach.cold_start.spec import ColdStart
from entrl.teach.offline.run import offline
from entrl.teach.offline.spec import Offline
from entrl.trainers.grpo.window_log import joined, load_step

RECIPES = Path(__file__).parents[1] / "recipes" / "tiny-reasoner"
LORA = "lora={r: 4, lora_alpha: 8, target_modules: all-linear}"
STILL = (  # one step that moves nothing
    "trainer.max_steps=1",
    "trainer.learning_rate=1e-9",
    "data.train_size=8",
    "trainer.per_device_train_batch_size=4",
    "trainer.steps_per_generation=1",
    "trainer.num_generations=4",
    "trainer.max_completion_length=96",
)
EVALUATION = "eval={task: sums, size: 24, samples: 1, k: [1], seed: 3}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that has learned to think first: most greedy answers right, where the tiny reasoner has none."""
    model, tokenizer = load_policy("tiny-reasoner", dtype="float32", device="cpu")
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **SHAPE))
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    draw, how = random.Random(0), Mixture(think=1.0, check=0.0, slip=0.0)
    for prompt in load_task("sums", split="train", size=60, seed=5)["prompt"]:
        row_T = torch.tensor(tokenizer(prompt + lesson(prompt, draw, mixture=how))["input_ids"])
        optimizer.zero_grad()
        logits_TV = adapted(input_ids=row_T[None]).logits[0]
        torch.nn.functional.cross_entropy(logits_TV[len(prompt) - 1 : -1], row_T[len(prompt) :]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("reasoner")
    adapted.save_pretrained(folder)
    return str(folder)


def recipe(path: str, out: Path, *more: str) -> Any:
    words = (*STILL, f"model.path={path}", f"trainer.output_dir={out}", "eval=null", "lora=null", *more)
    return load_recipe(RECIPES / "grpo.yaml", words)


# --- an adapter folder as model.path ---


@pytest.mark.parametrize("lora", [(LORA,), ()], ids=["trained on", "folded in"])
def test_an_adapter_as_base_is_evaluated_trained_and_kept(lora, reasoner, tmp_path, capsys):
    asked = recipe(reasoner, tmp_path / "run", EVALUATION, *lora)
    assert plan(asked).ok
    result = train(asked, console=Console(soft_wrap=True))
    said = "it is trained on" if lora else "it is folded in, and all weights are trained"
    assert f"model.path is an adapter on {model_path('tiny-reasoner')}: {said}" in capsys.readouterr().out
    options = {"task": "sums", "size": 24, "seed": 3, "samples": 1, "max_new_tokens": 96, "device": "cpu"}
    own, bare = (evaluate_path(p, dtype="float32", **options) for p in (reasoner, "tiny-reasoner"))
    right = [[p["greedy_correct"] for p in e["problems"]] for e in (own, bare, result.eval_before, result.eval_after)]
    assert right[0] == right[2] == right[3]
    assert sum(right[0]) > 6 > sum(right[1])
    assert (result.model_dir / "adapter_config.json").is_file() == bool(lora)
    model, _ = load_policy(str(result.model_dir), device="cpu")
    start = load_weights(reasoner, adapter="apart" if lora else "fold", dtype="float32").state_dict()
    for name, weight in model.state_dict().items():  # a step of Adam is at most its rate, and is rounded
        assert ((weight - start[name]).abs() <= 1.1e-9 + 2.0**-24 * weight.abs()).all()


def test_the_reference_of_a_run_that_trains_on_is_its_start(adapter, tmp_path):
    train(recipe(adapter, tmp_path / "run", LORA, "trainer.beta=0.1"), console=Console(quiet=True))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["kl"] == 0.0  # against the bare base it is not


def test_resumed_runs_of_an_adapter_equal_whole_ones(adapter, tmp_path):
    from test_run import interrupt

    for name, lora in (("on", (LORA,)), ("folded", ())):
        words = ("trainer.max_steps=3", "trainer.learning_rate=1e-3", "trainer.max_completion_length=6")
        made = [
            recipe(adapter, tmp_path / f"{name}-{part}", *words, "trainer.save_strategy=steps", "trainer.save_steps=1",
                   *lora)
            for part in ("whole", "broken")
        ]  # fmt: skip
        for one in made:
            train(one, console=Console(quiet=True))
        interrupt(made[1].run_dir, keep_step=2)
        train(made[1], resume=True, console=Console(quiet=True))
        file = "adapter_model.safetensors" if lora else "model.safetensors"
        whole, broken = (load_file(m.run_dir / "model" / file) for m in made)
        assert all(torch.equal(whole[k], broken[k]) for k in whole)


def test_only_the_adapters_own_shape_trains_on(adapter, tmp_path):
    for words, why in [
        ("lora={r: 8, lora_alpha: 8, target_modules: all-linear}", "is an adapter r 4, not 8"),
        ("lora={r: 4, lora_alpha: 16, target_modules: all-linear}", "is an adapter lora_alpha 8, not 16"),
        ("lora={r: 4, lora_alpha: 8, target_modules: [q_proj]}", "is an adapter on other layers"),
    ]:
        asked = recipe(adapter, tmp_path / "run", words)
        (problem,) = plan(asked).problems
        assert why in problem
        assert "`entrl merge" in problem
        with pytest.raises(ValueError, match=r"`lora` trains on with an adapter of its own shape"):
            train(asked, console=Console(quiet=True))
        assert not (tmp_path / "run").exists()
    same = "lora={target_modules: [v_proj, k_proj, q_proj, o_proj, gate_proj, up_proj, down_proj], lora_alpha: 8, r: 4}"
    assert plan(recipe(adapter, tmp_path / "run", same)).ok


def test_what_would_read_the_base_alone_is_refused(adapter, tmp_path):
    for words, why in [
        (("trainer.beta=0.1",), "TRL reads the reference from the base alone"),
        (("trainer.use_vllm=true", "trainer.vllm_mode=colocate"), r"an engine \(use_vllm\) would read the base alone"),
    ]:
        with pytest.raises(ValueError, match=why + r"; fold it in first: `entrl merge .* --out FOLDER`"):
            train(recipe(adapter, tmp_path / "run", *words), console=Console(quiet=True))
    served = ("trainer.use_vllm=true", "trainer.vllm_mode=server")
    with pytest.raises(ValueError, match=r"is an adapter, and the engine would read its base alone; fold it in first"):
        server_command(recipe(adapter, tmp_path / "run", *served))


def test_servers_of_an_adapter_hold_its_base(adapter, base, tmp_path):
    where = "trainer.vllm_replicas=[http://127.0.0.1:8000]"
    argv = server_command(recipe(adapter, tmp_path / "run", "trainer.use_vllm=true", where, LORA)).argv
    assert argv[argv.index("--model") + 1] == base
    assert base_of("tiny-reasoner") == (model_path("tiny-reasoner"), None)


def test_adapters_that_cannot_be_folded_in_or_found(adapter, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(
        tmp_path / "prompt"
    )
    with pytest.raises(ValueError, match="of kind PROMPT_TUNING, which cannot be folded in"):
        train(recipe(str(tmp_path / "prompt"), tmp_path / "run"), console=Console(quiet=True))
    with pytest.raises(ValueError, match="adds no matrix to the base and cannot be folded in"):
        load_weights(str(tmp_path / "prompt"), adapter="fold", dtype="float32")
    assert load_policy(str(tmp_path / "prompt"), device="cpu")[0].peft_type == "PROMPT_TUNING"  # evaluated as it is
    (tmp_path / "moved").mkdir()
    settings = json.loads((Path(adapter) / "adapter_config.json").read_text())
    gone = settings | {"base_model_name_or_path": "/gone/base"}
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(gone))
    (tmp_path / "moved" / "adapter_model.safetensors").write_bytes(
        (Path(adapter) / "adapter_model.safetensors").read_bytes()
    )
    for words in ((), (LORA,)):
        with pytest.raises(ValueError, match=r"sits on '/gone/base', which is not here.*`entrl merge .* --base"):
            train(recipe(str(tmp_path / "moved"), tmp_path / "run", *words), console=Console(quiet=True))
        (problem,) = plan(recipe(str(tmp_path / "moved"), tmp_path / "run", *words)).problems
        assert "/gone/base" in problem
    merged = merge_adapter(tmp_path / "moved", tmp_path / "merged", base=base)
    assert torch.equal(logits(merged), logits(merge_adapter(Path(adapter), tmp_path / "other")))
    assert load_tokenizer(str(merged)).get_vocab() == load_tokenizer(adapter).get_vocab()
    other = saved_model(tmp_path / "wider", hidden=64)
    with pytest.raises(ValueError, match=r"does not fit its base .*size mismatch"):
        merge_adapter(Path(adapter), tmp_path / "misfit", base=other)
    assert not (tmp_path / "misfit").exists()


def test_an_adapter_on_an_adapter_keeps_both(adapter, base, tmp_path):
    upper = _stack(adapter, tmp_path / "upper")
    lower_delta, both_delta = (logits(p) - logits(base) for p in (adapter, upper))
    assert lower_delta.abs().max() > 0.01
    assert (both_delta - lower_delta).abs().max() > 0.01
    merged = merge_adapter(Path(upper), tmp_path / "merged")
    assert close(logits(merged), logits(upper), load_policy(str(merged), device="cpu")[0])


def _stack(lower: str, folder: Path) -> str:
    """An adapter trained on the folded model of another, naming that one as its base."""
    model = load_weights(lower, adapter="fold", dtype="float32")
    torch.manual_seed(2)
    upper = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **{**SHAPE, "r": 2}))
    upper.peft_config["default"].base_model_name_or_path = lower
    upper.save_pretrained(folder)
    return str(folder)


def test_a_cold_start_teaches_the_folded_model(adapter, tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        json.dumps({"problem_id": "0", "prompt": "1+1=", "completion": "2", "correct": 1, "length": 2}) + "\n"
    )
    content = {
        "model": {"path": adapter},
        "answers": {"file": "answers.jsonl"},
        "sft": {"max_steps": 1, "learning_rate": 0.0, "use_cpu": True, "bf16": False},
        "out": str(tmp_path / "out"),
    }
    cold_start(ColdStart.make(content, name="cold", base=tmp_path), console=Console(quiet=True))
    folded = load_weights(adapter, adapter="fold", dtype="float32").state_dict()
    taught = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(taught[name], folded[name]) for name in taught)


@pytest.mark.parametrize("lora", [(LORA,), ()], ids=["trained on", "folded in"])
def test_a_step_of_such_a_run_is_taken_again_from_the_same_model(lora, adapter, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(
        "def size(completion_ids, **_): return [float(sum(i)) for i in completion_ids]"
    )
    logged = (
        "trainer.log_windows=[0]",
        "trainer.log_window_state=true",
        "trainer.learning_rate=1e-2",
        f"rewards=[{{use: '{tmp_path}/rewards.py:size'}}]",
    )
    out = tmp_path / "run"
    train(recipe(adapter, out, *lora, *logged, "trainer.max_completion_length=6"), console=Console(quiet=True))
    assert main(["replay", str(out), "--controllers", "none", "steer", "--validate", "--json"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{\n") :])["windows"][0]["outcomes"][0]["within"]
    window = joined(load_step(out / "checkpoints", 0))
    assert window.entropies_after_BT is not None
    mask = window.rows.mask_BT
    measured = float((window.entropies_after_BT - window.entropies_BT)[mask].mean())
    model, _ = load_policy(adapter, dtype="float32", device="cpu")
    allowed = 2**0.5 * mean_gap(log_prob_gap(model.get_base_model(), 20), int(mask.sum()))
    assert found == pytest.approx(measured, abs=allowed)
    assert abs(measured) > 10 * allowed


def test_offline_runs_teach_the_folded_model_or_its_adapter(tmp_path):
    made = save_adapter("tiny-inquirer", tmp_path / "adapter")
    content = {
        "model": {"path": made},
        "data": {"task": "twenty_questions", "size": 2, "args": {"rows": 8, "columns": 8}},
        "held_out": None,
        "method": "grpo",
        "trainer": {"max_steps": 1, "learning_rate": 0.0, "use_cpu": True, "bf16": False, "beta": 0.0},
    }
    for name, lora in (("folded", None), ("trained", SHAPE)):
        asked = {**content, "lora": lora, "out": str(tmp_path / name)}
        offline(Offline.make(asked, name=name, base=tmp_path))
    start, taught = (load_weights(p, adapter="fold", dtype="float32") for p in (made, str(tmp_path / "trained/model")))
    folded = load_file(tmp_path / "folded" / "model" / "model.safetensors")
    for weights in (start.state_dict(), taught.state_dict()):
        assert all(torch.equal(folded[name], weights[name]) for name in folded)
    asked = {**content, "lora": None, "out": str(tmp_path / "other"), "trainer": content["trainer"] | {"beta": 0.1}}
    with pytest.raises(ValueError, match="TRL reads the reference from the base alone"):
        offline(Offline.make(asked, name="other", base=tmp_path))


# --- adapters on tied embeddings, in training ---


def test_tokens_trained_on_tied_embeddings_are_refused_in_words(base, tmp_path):
    tokens = "lora={r: 2, target_modules: [q_proj], trainable_token_indices: [3, 4]}"
    found = plan(recipe(base, tmp_path / "run", tokens))
    assert any("lora.trainable_token_indices: this model's embeddings are tied" in p for p in found.problems)
    with pytest.raises(ValueError, match=r"lora.modules_to_save: \[embed_tokens\]"):
        train(recipe(base, tmp_path / "run", tokens), console=Console(quiet=True))
    engine = ("trainer.use_vllm=true", "trainer.vllm_mode=colocate", "lora={r: 2, target_modules: [embed_tokens]}")
    with pytest.raises(ValueError, match=r"the engine \(use_vllm\) keeps them tied and would sample from another"):
        train(recipe(base, tmp_path / "run", *engine), console=Console(quiet=True))


def test_whole_embeddings_train_apart_from_the_head(base, tmp_path):
    saved = "lora={r: 2, target_modules: [q_proj], modules_to_save: [embed_tokens]}"
    words = (saved, "trainer.learning_rate=1e-2", "trainer.max_completion_length=6")
    result = train(recipe(base, tmp_path / "run", *words), console=Console(quiet=True))
    merged = merge_adapter(result.model_dir, tmp_path / "merged")
    assert close(logits(merged), logits(result.model_dir), load_policy(str(merged), device="cpu")[0])
