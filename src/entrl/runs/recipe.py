"""A recipe: strict YAML -> typed options -> the objects a run needs.

    model:  {path, dtype, attn_implementation, revision, trust_remote_code, tokenizer}
    data:   {task, split, train_size, seed, args}
    rewards:      [{use, weight, args}]
    controllers:  [{use, args}]
    lora:   peft.LoraConfig fields verbatim, or null
    eval:   {task, split, size, samples, k, temperature, top_p, max_new_tokens, batch_size, seed, before, at, args},
            or null
    launch: {world_size, backend}, refused when the real ones differ
    trainer: EntropyGRPOConfig (hence TRL GRPOConfig) fields verbatim

Nothing is read from the environment but `~` and `$NAME` in paths (entrl.settings.paths). A key that is not known, is
written twice or was removed from TRL stops the recipe with the next move. YAML is read as YAML 1.2 reads scalars:
`1e-4` is a number, `no` is the word "no".
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from entrl.settings.groups import Dumper, build, build_list, check, check_keys, plain, read_settings, typed
from entrl.settings.names import Loaded, find_file, load_controller, load_reward
from entrl.settings.paths import expand_paths
from entrl.settings.secrets import mask, refuse_masked

# Keys people carry over from older TRL or transformers; none is a field in TRL 1.16 with transformers 5.17.
REMOVED_TRAINER_KEYS = {
    "torch_dtype": "set model.dtype",
    "dtype": "set model.dtype",
    "max_prompt_length": "filter long prompts out of the dataset (TRL no longer truncates prompts)",
    "max_length": "set trainer.max_completion_length",
    "overwrite_output_dir": "pass overwrite=true on the command line",
    "warmup_ratio": "set trainer.warmup_steps (a value below 1 is a share of all steps)",
    "vllm_device": "set trainer.vllm_mode: colocate or server",
    "vllm_dtype": "set model.dtype, or vllm_engine_dtype for the colocated engine alone",
    "vllm_max_model_len": "set trainer.vllm_max_model_length",
    "vllm_enable_prefix_caching": "remove it: vLLM caches prefixes by default",
    "vllm_guided_decoding_regex": "set trainer.vllm_structured_outputs_regex",
    "use_liger_loss": "set trainer.use_liger_kernel",
    "wandb_log_unique_prompts": "set trainer.log_unique_prompts",
    "logit_computation_mini_batch_size": "remove it: TRL computes log-probs in chunks",
    "evaluation_strategy": "set trainer.eval_strategy",
    "logging_dir": "set trainer.output_dir",
    "group_by_length": "set trainer.train_sampling_strategy: group_by_length",
    "no_cuda": "set trainer.use_cpu",
    "use_mps_device": "remove it: MPS is found by itself",
    "use_ipex": "remove it",
    "jit_mode_eval": "remove it",
    "half_precision_backend": "set trainer.bf16 or trainer.fp16",
    "fp16_backend": "set trainer.bf16 or trainer.fp16",
    "per_gpu_train_batch_size": "set trainer.per_device_train_batch_size",
    "adafactor": "set trainer.optim: adafactor",
    "save_safetensors": "remove it: safetensors is the only format",
    "torchdynamo": "set trainer.torch_compile_backend",
    "fsdp_min_num_params": "set trainer.fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "set trainer.fsdp_config",
    "dispatch_batches": "set trainer.accelerator_config",
    "split_batches": "set trainer.accelerator_config",
    "include_inputs_for_metrics": "set trainer.include_for_metrics",
    "include_tokens_per_second": "remove it: metrics.jsonl has tokens and seconds",
    "push_to_hub_token": "set trainer.hub_token",
    "push_to_hub_model_id": "set trainer.hub_model_id",
    "push_to_hub_organization": "set trainer.hub_model_id",
    "past_index": "remove it",
    "ray_scope": "remove it",
    "tpu_num_cores": "remove it",
    "xpu_backend": "set trainer.ddp_backend",
    "kl_coef": "set trainer.beta",
    "cliprange": "set trainer.epsilon",
    "response_length": "set trainer.max_completion_length",
    "mini_batch_size": "set trainer.per_device_train_batch_size",
}
REMOVED_MODEL_KEYS = {
    "torch_dtype": "set model.dtype",
    "name": "set model.path",
    "model_name_or_path": "set model.path",
}

# Trainer fields the recipe sets elsewhere, or that come from the command line.
OWNED_TRAINER_KEYS = {
    "reward_weights": "give each reward its own weight: rewards: [{use: ..., weight: ...}]",
    "model_init_kwargs": "set model.dtype, model.attn_implementation, ... instead",
    "trust_remote_code": "set model.trust_remote_code",
    "expected_world_size": "set launch.world_size",
    "expected_backend": "set launch.backend",
    "resume_from_checkpoint": "pass resume=true on the command line",
    "local_rank": "remove it: the launcher sets it",
}

NEVER = 10**9  # steps; beyond every run
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    path: str  # shipped asset by bare name (tiny-reasoner), folder, or hub id
    dtype: str = "float32"  # of the weights; trainer.bf16 is the autocast on top. TRL's own default
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None  # None: the model's own

    def __post_init__(self) -> None:
        check(bool(self.path), "model.path is empty; give an asset name, a folder or a hub id")
        check(self.dtype in DTYPES, f"model.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    task: str  # sums, reasoning_gym:<name>, jsonl:<path>, csv:<path>, gsm8k, dapo-math, ... (entrl.tasks)
    split: str = "train"
    train_size: int | None = None  # None: everything the task has
    seed: int = 0
    args: dict[str, Any] = field(default_factory=dict)  # options of the task

    def __post_init__(self) -> None:
        size = self.train_size
        check(size is None or size > 0, f"data.train_size must be at least 1, got {size}")


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    use: str
    weight: float = 1.0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ControllerSpec:
    use: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What answers the model between its turns (entrl.environments); the task's rows go to its `reset`."""

    use: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    task: str
    split: str = "test"
    size: int | None = 200
    samples: int = 8  # per problem, besides one greedy answer
    k: list[int] = field(default_factory=lambda: [1])  # of pass@k
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None  # None: trainer.max_completion_length
    batch_size: int = 64
    seed: int = 1
    before: bool = True  # also evaluate the model training starts from
    at: list[int] | str | None = None  # steps at which the trainer evaluates as well, or "early": dense at first
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 0, f"eval.size must be at least 1, got {self.size}")
        check(self.samples > 0, f"eval.samples must be at least 1, got {self.samples}")
        check(self.batch_size > 0, f"eval.batch_size must be at least 1, got {self.batch_size}")
        check(
            self.temperature > 0, f"eval.temperature must be above 0, got {self.temperature}; greedy is always reported"
        )
        check(0 < self.top_p <= 1, f"eval.top_p must be in (0, 1], got {self.top_p}")
        bad = [k for k in self.k if not 1 <= k <= self.samples]
        check(not bad, f"eval.k must lie in 1..samples ({self.samples}), got {bad}; raise eval.samples")
        if isinstance(self.at, list):
            good = bool(self.at) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in self.at)
            check(good, f"eval.at must list optimiser steps from 1 on, got {self.at}; eval.before covers step 0")
        else:
            check(self.at in (None, "early"), f"eval.at must be a list of steps or early, got {self.at!r}")


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    world_size: int | None = None  # None: take what the launcher started
    backend: str | None = None

    def __post_init__(self) -> None:
        size = self.world_size
        check(size is None or size > 0, f"launch.world_size must be at least 1, got {size}")
        known = ("gloo", "nccl", "mpi", "xccl")
        check(self.backend in (None, *known), f"launch.backend must be one of {', '.join(known)}, got {self.backend!r}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is made of. `base` is where the recipe's relative files are looked for."""

    name: str
    base: Path
    model: ModelSpec
    data: DataSpec
    rewards: list[RewardSpec]
    controllers: list[ControllerSpec] = field(default_factory=list)
    environment: EnvironmentSpec | None = None
    lora: dict[str, Any] | None = None
    eval: EvalSpec | None = None
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return Path(self.trainer["output_dir"])

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default of ours filled in; reading it back gives the same recipe."""
        skip = {"name", "base"}
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in skip}

    def to_yaml(self) -> str:
        """What is printed and kept: without tokens and keys."""
        return yaml.dump(mask(self.resolved()), Dumper=Dumper, sort_keys=False, allow_unicode=True)

    def config_hash(self) -> str:
        """Of everything that decides the numbers; not of where the run is written, nor of tokens and keys."""
        content = mask(self.resolved())
        content["trainer"] = {k: v for k, v in content["trainer"].items() if k != "output_dir"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def build_rewards(self) -> list[Loaded]:
        return [load_reward(r.use, r.args, base=self.base) for r in self.rewards]

    def build_controllers(self) -> list[Loaded]:
        return [load_controller(c.use, c.args, base=self.base) for c in self.controllers]

    def build_environment(self) -> Callable[[], Any] | None:
        """TRL's `environment_factory`, or None."""
        if self.environment is None:
            return None
        from entrl.environments import load_environment

        return load_environment(self.environment.use, self.environment.args, base=self.base)

    def build_lora(self) -> Any:
        """peft.LoraConfig, or None."""
        if self.lora is None:
            return None
        from peft import LoraConfig

        return LoraConfig(**{"task_type": "CAUSAL_LM", **self.lora})

    def trainer_kwargs(self) -> dict[str, Any]:
        """The keywords of EntropyGRPOConfig: the `trainer` group plus what other groups decide."""
        dense: dict[str, Any] = {}
        if self.eval is not None and self.eval.at is not None and self.trainer.get("eval_strategy", "no") == "no":
            # TRL must know that evaluations will come, to check batches and rewards; `eval.at` alone says when.
            dense = {"eval_strategy": "steps", "eval_delay": NEVER}
        return {
            **self.trainer,
            **dense,
            "output_dir": str(self.run_dir / "checkpoints"),
            "reward_weights": [r.weight for r in self.rewards],
            "expected_world_size": self.launch.world_size,
            "expected_backend": self.launch.backend,
        }

    def load_data(self, *, size: int | None = None) -> Any:
        """The training set (datasets.Dataset); `size` overrides train_size, to look at a few rows."""
        size = self.data.train_size if size is None else size
        return load_rows(self.data.task, self.data, size=size, base=self.base)

    def load_eval_data(self) -> Any:
        assert self.eval is not None
        return load_rows(self.eval.task, self.eval, size=self.eval.size, base=self.base)


def load_rows(task: str, spec: "DataSpec | EvalSpec", *, size: int | None, base: Path | None) -> Any:
    """entrl.tasks.load_task, a file of problems (`jsonl:PATH`) or a table (`loaded:PATH`) looked for beside the recipe.

    A table's path becomes part of its rows, which environments open later, so it is made absolute here.
    """
    from entrl.tasks import FILE_TASKS, load_task

    kind, _, path = task.partition(":")
    if kind in FILE_TASKS and path:
        task = f"{kind}:{find_file(path, base)}"
    split: Any = spec.split
    args = dict(spec.args)
    kind, _, path = str(args.get("tables", "")).partition(":")
    if kind == "loaded" and path.endswith((".json", ".csv")):
        args["tables"] = f"loaded:{find_file(path, base)}"
    return load_task({"task": task, **args}, split=split, size=size, seed=spec.seed)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides, check everything that needs no model."""
    path = Path(path)
    return make_recipe(read_settings(path, overrides, what="recipe"), name=path.stem, base=path.resolve().parent)


def make_recipe(content: Mapping[str, Any], *, name: str, base: Path) -> Recipe:
    """Plain objects -> `Recipe`."""
    known = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "base")]
    check_keys(content, known, where="recipe", elsewhere=_elsewhere)
    refuse_masked(content)
    content = expand_paths(content)
    for group in ("model", "data", "rewards"):
        check(content.get(group) is not None, f"the recipe has no {group!r} group; see recipes/README.md")
    return Recipe(
        name=name,
        base=base,
        model=build(ModelSpec, content["model"], "model", removed=REMOVED_MODEL_KEYS),
        data=build(DataSpec, content["data"], "data"),
        rewards=build_list(RewardSpec, content["rewards"], "rewards", at_least=1),
        controllers=build_list(ControllerSpec, content.get("controllers") or [], "controllers"),
        environment=build_environment_spec(content.get("environment")),
        lora=checked_lora(content.get("lora")),
        eval=None if content.get("eval") is None else build(EvalSpec, content["eval"], "eval"),
        launch=build(LaunchSpec, content.get("launch") or {}, "launch"),
        trainer=_checked_trainer(content.get("trainer") or {}, run_dir=f"runs/{name}"),
    )


def _elsewhere(key: str) -> str:
    if key in ("arms", "seeds", "recipe"):
        return " This looks like a study, which `entrl replicate` runs."
    if key in ("answers", "sft", "curation"):
        return " This looks like a cold start, which `entrl cold-start` makes."
    return f" Did you mean 'trainer.{key}'?" if key in trainer_fields() else ""


def build_environment_spec(group: Any) -> EnvironmentSpec | None:
    if group is None:
        return None
    return build(EnvironmentSpec, {"use": group} if isinstance(group, str) else group, "environment")


def checked_lora(group: Any) -> dict[str, Any] | None:
    if group is None:
        return None
    from peft import LoraConfig

    check_keys(group, [f.name for f in dataclasses.fields(LoraConfig)], where="lora")
    return dict(group)


def trainer_fields() -> dict[str, Any]:
    """Field name -> annotation of the trainer's config."""
    from entrl.trainers.config import EntropyGRPOConfig

    hints = typing.get_type_hints(EntropyGRPOConfig)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(EntropyGRPOConfig) if f.init}


def _checked_trainer(group: Any, *, run_dir: str) -> dict[str, Any]:
    """The `trainer` group with our defaults: every step logged, nobody else's tracker, run folder by recipe name."""
    known = trainer_fields()
    check(isinstance(group, Mapping), f"trainer must be a mapping, got {group!r}")
    for key in group:
        if key in OWNED_TRAINER_KEYS:
            raise ValueError(f"trainer.{key} is set elsewhere: {OWNED_TRAINER_KEYS[key]}")
    removed = {k: v for k, v in REMOVED_TRAINER_KEYS.items() if k not in known}
    check_keys(group, list(known), where="trainer", removed=removed)
    values = {"output_dir": run_dir, "logging_steps": 1, "report_to": "none", "disable_tqdm": True, **group}
    return {key: typed(value, known[key], f"trainer.{key}") for key, value in values.items()}
