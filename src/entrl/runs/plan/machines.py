"""An accelerate file, as `entrl plan` reads it: how many processes there will really be, and what is divided.

accelerate itself goes quiet where a file asks for what it does not start; each such case is a problem here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrl.models.quantization import SHARDED
from entrl.runs.plan.memory import Sharding
from entrl.runs.recipe import Recipe
from entrl.settings.json_lines import read_text
from entrl.settings.yaml import parse_yaml

ONE_PER_DEVICE = ("MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_HPU", "MULTI_MLU", "FSDP", "DEEPSPEED")
SIZES = ("num_machines", "num_processes")


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What one accelerate file starts. world_size is what really comes up, not what was written."""

    source: str
    kind: str  # accelerate's distributed_type
    machines: int = 1
    world_size: int = 1
    sharding: Sharding = "none"
    mixed_precision: str = "no"
    use_cpu: bool = False
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def described(self) -> str:
        each = self.world_size // self.machines
        where = "1 machine" if self.machines == 1 else f"{self.machines} machines x {each} process(es)"
        divided = {"none": "nothing divided", "fsdp2": "FSDP2", "zero3": "ZeRO-3"}[self.sharding]
        return f"{self.source}: {self.kind}, {where}, {divided}"


def read_machines(path: str | Path) -> Machines:
    """Read an accelerate file. Raises FileNotFoundError and ValueError for what is no such file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no accelerate file {path}; launch/ has one for each kind of machine")
    content = parse_yaml(read_text(path), name=str(path))
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ValueError(f"{path} has no distributed_type, so it is no accelerate file; see launch/ for some")
    sizes = {name: content.get(name) or 1 for name in SIZES}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} must be a whole number from 1, got {value!r}")
    # accelerate's own reader takes `no` for false; here it stays the word
    kind = str(content["distributed_type"]).upper().replace("FALSE", "NO")
    machines, asked = sizes["num_machines"], sizes["num_processes"]
    sharding, problems, warnings = _sharding(kind, content, path)
    real = asked
    if kind not in ONE_PER_DEVICE and asked > 1:
        real = 1
        what = "MULTI_GPU with use_cpu: false, as launch/cpu_2.yaml" if kind == "MULTI_CPU" else "MULTI_GPU"
        problems.append(
            f"{path} asks for {asked} processes with distributed_type {kind}, and accelerate starts one; set {what}"
        )
    elif asked % machines:
        real = asked // machines * machines
        problems.append(
            f"{path} asks for {asked} processes on {machines} machines, and accelerate starts {asked // machines} on "
            f"each, {real} in all; make num_processes a multiple of num_machines"
        )
    if machines > 1 and content.get("rdzv_backend", "static") != "static" and not content.get("same_network", True):
        warnings.append(f"{path}: rdzv_backend {content['rdzv_backend']} over several machines is not tested")
    return Machines(
        source=path.name,
        kind=kind,
        machines=machines,
        world_size=max(real, 1),
        sharding=sharding,
        mixed_precision=str(content.get("mixed_precision") or "no").lower(),
        use_cpu=bool(content.get("use_cpu")),
        problems=problems,
        warnings=warnings,
    )


def _sharding(kind: str, content: dict[str, Any], path: Path) -> tuple[Sharding, list[str], list[str]]:
    """What is divided over the processes; (sharding, problems, warnings)."""
    if kind == "FSDP":
        options = content.get("fsdp_config") or {}
        version = options.get("fsdp_version", 1)
        if version != 2:
            return "fsdp2", [f"{path} says fsdp_version {version}; only 2 is supported, set fsdp_version: 2"], []
        if "FULL" not in (kind_of_state := str(options.get("fsdp_state_dict_type", "SHARDED_STATE_DICT"))):
            whole = f"{path}: fsdp_state_dict_type {kind_of_state} saves no whole model; set FULL_STATE_DICT"
            return "fsdp2", [whole], []
        keeps = options.get("fsdp_reshard_after_forward", True) is False
        kept = [f"{path}: fsdp_reshard_after_forward is false, so gathered weights stay; not in the estimate"]
        return "fsdp2", [], kept if keeps else []
    if kind == "DEEPSPEED":
        options = content.get("deepspeed_config") or {}
        if "deepspeed_config_file" in options:
            return "zero3", [], [f"{path} names another DeepSpeed file, which was not read; ZeRO-3 is assumed"]
        stage = options.get("zero_stage", 2)
        if stage != 3:
            why = f"{path}: zero_stage {stage} is not tested, and memory is estimated as if nothing were divided"
            return "none", [], [why]
        if not options.get("zero3_save_16bit_model"):
            return "zero3", [f"{path}: set zero3_save_16bit_model: true, without it no whole model is saved"], []
        offloads = [k for k, v in options.items() if k.startswith("offload_") and v not in (None, "none")]
        return "zero3", [], [f"{path} offloads ({', '.join(offloads)}); the estimate does not"] if offloads else []
    return "none", [], []


def machine_problems(recipe: Recipe, args: Any, machines: Machines) -> list[str]:
    """What this recipe and these machines make impossible together."""
    out = list(machines.problems)
    on_cpu = machines.use_cpu or bool(recipe.trainer.get("use_cpu"))
    if machines.kind == "FSDP" and on_cpu:
        out.append(
            f"{machines.source} asks for FSDP on the CPU, where accelerate trains plain DDP and says nothing; take "
            "launch/cpu_2.yaml, or launch/zero3_cpu.yaml for sharding"
        )
    if recipe.model.quantization is not None and machines.sharding != "none":
        out.append(SHARDED)
    asked = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if machines.mixed_precision not in ("no", asked):
        out.append(
            f"{machines.source} says mixed_precision {machines.mixed_precision}, the recipe {asked}; transformers "
            f"would train in {machines.mixed_precision}; set trainer.{machines.mixed_precision}: true, or launch with "
            f"--mixed_precision {asked}"
        )
    if machines.machines > 1 and args.use_vllm and args.vllm_mode == "colocate":
        each = machines.world_size // machines.machines
        if each % args.vllm_tensor_parallel_size:
            out.append(
                f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} does not divide the {each} processes of a "
                "machine, so an engine would span machines; choose a divisor"
            )
    return out
