"""Training with a real vLLM engine in the process: forwards counted, weights synced, the sampler against our forward.

Six engines are built in this process, one per fixture or comparison; each takes 10 to 30 seconds.
"""

import gc
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from entrl_rewards import pear
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from entrl.controllers.kl_cov import KLCov
from entrl.engines.cpu_weights import prepare_cpu_engine, unpacked_linear_weights
from entrl.maths.truncation import top_h_keep, top_p_keep
from entrl.models.shipped import model_path
from entrl.runs import train as runs
from entrl.runs.recipe import load_recipe
from entrl.tasks import load_task
from entrl.trainers.config import EntropyGRPOConfig
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.grpo.vllm import SamplerRequest, end_engine

pytestmark = pytest.mark.vllm

BASE = model_path("tiny-reasoner")


@pytest.fixture(scope="module", autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """TRL tells an engine in the process its rank by RANK, WORLD_SIZE and MASTER_*; later tests start processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def problems() -> Dataset:
    return load_task("sums", size=64, seed=0)


def arguments(folder: Any, **options: Any) -> EntropyGRPOConfig:
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "steps_per_generation": 2,
        "num_generations": 8,
        "max_completion_length": 64,
        "max_steps": 4,
        "learning_rate": 1e-4,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 160,
        "vllm_engine_dtype": "float32",
        "vllm_importance_sampling_mode": "token_truncate",
    }
    return EntropyGRPOConfig(**(given | options))


def built(cls: type, folder: Any, rewards: Any, *, controllers: Any = None, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    extra = {} if controllers is None else {"controllers": controllers}
    return cls(
        model,
        rewards,
        arguments(folder, **options),
        train_dataset=problems(),
        processing_class=AutoTokenizer.from_pretrained(BASE, padding_side="left"),
        **extra,
    )


class Forwards:
    """Rows that went through the model, generation by the engine not among them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rows = 0
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.rows += (args[0] if args else kwargs["input_ids"]).size(0)


def metrics(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_pear_and_kl_cov_run_not_one_forward_more_than_stock_trl(tmp_path):
    ours = built(EntropyGRPOTrainer, tmp_path / "ours", [pear.Pear(alpha=1.0)], controllers=[KLCov(fraction=0.05)])
    forwards = Forwards(ours.model)
    ours.train()
    assert ours.counters.rows == {"score": 64, "loss": 64}
    assert sum(metrics(ours, "kl_cov/selected")) > 0
    gaps = metrics(ours, "sampler/gap")
    assert len(gaps) == 2
    assert max(gaps) < 1e-4  # float32 on both sides; the second rollout is after two updates
    assert all(0 <= v <= 1 for v in metrics(ours, "sampler/kept"))
    assert metrics(ours, "sampler/kept_by_length/10")
    assert metrics(ours, "sampler/kept_by_entropy/10")
    del ours
    gc.collect()
    prepare_cpu_engine()
    with unpacked_linear_weights():
        stock = built(GRPOTrainer, tmp_path / "stock", [lambda completions, **_: [float(len(c)) for c in completions]])
    expected = Forwards(stock.model)
    stock.train()
    assert forwards.rows == expected.rows == 128
    end_engine(stock.vllm_generation)  # its shutdown, were it collected later, would be that of a later engine


@pytest.fixture(scope="module")
def sampling(tmp_path_factory) -> Any:
    """A trainer whose rewards get the sampler's entropies: on-policy, without correction, so TRL scores nothing."""
    seen: list[dict[str, Any]] = []

    def certain(completion_ids, prompt_ids, token_entropies, token_logprobs, **_):
        seen.append({"ids": completion_ids, "prompts": prompt_ids, "entropies": token_entropies, "lp": token_logprobs})
        return [-float(h.mean()) for h in token_entropies]

    trainer = built(
        EntropyGRPOTrainer,
        tmp_path_factory.mktemp("sampling"),
        [certain],
        steps_per_generation=1,
        max_steps=2,
        entropy_source="sampler",
        vllm_importance_sampling_correction=False,
        temperature=0.8,
    )
    # Not a copy of the trainer's: TRL gives that an own `forward`, which a copy would still call.
    trainer.before = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    trainer.seen = seen
    trainer.forwards = Forwards(trainer.model)
    trainer.train()
    return trainer


def own_numbers(model: Any, prompt: list[int], ids: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """((T, V) log-probs, (T,) entropies) in float32."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float() / temperature
    log_p = logits.log_softmax(-1)
    return log_p, -(log_p.exp() * log_p).sum(-1)


def test_rewards_get_the_samplers_entropies_without_any_scoring_pass(sampling):
    assert sampling.counters.rows == {"loss": 32}
    assert sampling.forwards.rows == 32
    first, worst = sampling.seen[0], 0.0
    assert len(first["ids"]) == 16
    for prompt, ids, entropies, log_probs in zip(
        first["prompts"], first["ids"], first["entropies"], first["lp"], strict=True
    ):
        assert len(entropies) == len(ids) == len(log_probs)
        log_p, own = own_numbers(sampling.before, prompt, ids, 0.8)
        worst = max(worst, float((own - entropies).abs().max()))
        torch.testing.assert_close(log_p.gather(1, torch.tensor(ids)[:, None])[:, 0], log_probs, atol=1e-3, rtol=0)
    assert worst < 1e-3, worst


@pytest.mark.parametrize("rule", ["top_h", "top_p"])
def test_kept_mass_turns_the_truncated_samplers_log_probs_into_the_policys(sampling, rule):
    """log q + log G is the policy's log-prob; without it every ratio policy / sampler is G."""
    generation = sampling.vllm_generation
    sampling.vllm_generation.sync_weights()
    prompts = sampling.seen[0]["prompts"][:8]
    generation.request = SamplerRequest(record=True, top_h={"alpha": 0.3, "rule": "paper"} if rule == "top_h" else None)
    generation.top_p = 0.7 if rule == "top_p" else 1.0
    try:
        _, ids, plain, _ = generation.generate(prompts, None, 8)
        rows = generation.rows
        generation.request = SamplerRequest(record=True, top_h=generation.request.top_h, restore=True)
        _, ids_again, restored, _ = generation.generate(prompts, None, 8)
        rows_again = generation.rows
    finally:
        generation.request, generation.top_p = SamplerRequest(record=True), 1.0
    masses, gap, gap_restored = [], 0.0, 0.0
    for prompt, completion, found, row in zip(prompts, ids, plain, rows, strict=True):
        log_p, _ = own_numbers(sampling.model, prompt, list(completion), 0.8)
        keep = top_h_keep(log_p, 0.3) if rule == "top_h" else top_p_keep(log_p, 0.7)
        chosen = log_p.gather(1, torch.tensor(completion)[:, None])[:, 0]
        masses += row.kept_mass
        own_mass = log_p.exp().masked_fill(~keep, 0).sum(-1)
        torch.testing.assert_close(own_mass, torch.tensor(row.kept_mass), atol=2e-3, rtol=0)
        gap = max(gap, float((chosen - torch.tensor([f[0] for f in found])).abs().mean()))
    for prompt, completion, found in zip(prompts, ids_again, restored, strict=True):
        log_p, _ = own_numbers(sampling.model, prompt, list(completion), 0.8)
        chosen = log_p.gather(1, torch.tensor(completion)[:, None])[:, 0]
        gap_restored = max(gap_restored, float((chosen - torch.tensor([f[0] for f in found])).abs().mean()))
    assert min(masses) < 0.95  # the rule cut something
    assert min(m for row in rows_again for m in row.kept_mass) > 0
    assert gap_restored < 1e-3
    assert gap > 5e-3


def test_weights_that_did_not_arrive_raise_the_alarm(sampling):
    """The gap can tell a synced engine from a stale one."""
    with torch.no_grad():
        for name, parameter in sampling.model.named_parameters():
            if "mlp" in name:
                parameter.mul_(1.5)
    sampling.args.vllm_importance_sampling_correction = sampling.vllm_importance_sampling_correction = True
    scoring = sampling._parts.scoring
    schedule = replace(scoring.facts.schedule, use_vllm_correction=True)
    scoring.facts = replace(scoring.facts, schedule=schedule)
    rows = [sampling.train_dataset[i // 8] for i in range(16)]
    sampling.model.train()
    sampling._last_loaded_step = sampling.state.global_step  # as after a sync that never happened
    with pytest.warns(UserWarning, match="vllm_gap_alarm"):
        sampling._generate_and_score_completions(rows)
    stale = sampling._metrics["train"]["sampler/gap"][-1]
    sampling.vllm_generation.sync_weights()
    sampling._generate_and_score_completions(rows)
    synced = sampling._metrics["train"]["sampler/gap"][-1]
    assert stale > 0.02
    assert synced < 1e-3
    assert math.isfinite(sampling._metrics["train"]["sampler/entropy_gap"][-1])


def test_the_shipped_colocated_recipe_is_accepted_as_it_stands():
    from entrl.runs.plan import prepare

    prepared = prepare(load_recipe("recipes/tiny-reasoner/vllm-colocated.yaml"))
    assert prepared.problems == []
    assert prepared.args.use_vllm


def test_trainer_and_engine_are_gone_when_the_trained_model_is_evaluated(tmp_path, monkeypatch):
    held: dict[str, weakref.ref] = {}
    alive: list[str] = []
    build, load = runs.build_trainer, runs.load_trained

    def built_and_watched(run: Any) -> Any:
        trainer, progress = build(run)
        llm = trainer.vllm_generation.llm
        engine = llm.llm_engine.model_executor.driver_worker.model_runner.model
        held.update({name: weakref.ref(x) for name, x in (("model", trainer.model), ("llm", llm), ("engine", engine))})
        return trainer, progress

    def looked_at_and_loaded(*given: Any) -> Any:
        alive.extend(name for name, ref in held.items() if ref() is not None)
        return load(*given)

    monkeypatch.setattr(runs, "build_trainer", built_and_watched)
    monkeypatch.setattr(runs, "load_trained", looked_at_and_loaded)
    words = (
        f"trainer.output_dir={tmp_path / 'run'}",
        "data.train_size=64",
        "eval={task: sums, size: 4, samples: 1, before: false, max_new_tokens: 8}",
        "trainer.per_device_train_batch_size=8",
        "trainer.max_completion_length=16",
        "trainer.max_steps=2",
    )
    result = runs.train(load_recipe("recipes/tiny-reasoner/vllm-colocated.yaml", words), console=Console(quiet=True))
    assert sorted(held) == ["engine", "llm", "model"]
    assert alive == []
    assert result.eval_after is not None


def test_an_engine_collected_late_leaves_the_next_one_at_work(tmp_path):
    earlier = built(EntropyGRPOTrainer, tmp_path / "earlier", [pear.Pear(alpha=1.0)])
    engine = weakref.ref(earlier.vllm_generation.llm)
    later = built(EntropyGRPOTrainer, tmp_path / "later", [pear.Pear(alpha=1.0)], max_steps=1)
    del earlier
    gc.unfreeze()
    gc.collect()
    assert engine() is None
    later.train()
    assert later.state.global_step == 1
