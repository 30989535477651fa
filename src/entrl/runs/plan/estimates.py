"""Parameters of a planned run's model, its peaks of memory and its disk, as rows and problems."""

from dataclasses import dataclass, field
from typing import Any

from entrl.models.folder import config_problems
from entrl.models.load import load_config, on_meta
from entrl.models.shape import ModelShape, model_shape
from entrl.models.shipped import bare_names
from entrl.runs.plan.adapter import adapter_warnings, target_problem
from entrl.runs.plan.checks import ELSEWHERE, Prepared, first_line
from entrl.runs.plan.device import Device
from entrl.runs.plan.disk import checkpoint_count, disk_needed, free_disk
from entrl.runs.plan.machines import Machines
from entrl.runs.plan.memory import GIB, Training
from entrl.runs.plan.peaks import explained, gib, least_training, prompt_tokens, run_peaks, shortages, told, training_of
from entrl.runs.recipe import Recipe
from entrl.settings.names import suggest

Rows = list[tuple[str, str]]


@dataclass(kw_only=True)
class Estimate:
    """What is said of a run's size."""

    shape: ModelShape | None = None
    run: Training | None = None
    rows: Rows = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)  # memory that does not suffice
    unchecked: list[str] = field(default_factory=list)


def describe_model(recipe: Recipe, prepared: Prepared) -> Estimate:
    """Parameters, counted on the meta device; nothing of a configuration that is a problem already."""
    if config_problems(recipe.model):
        return Estimate()
    try:
        config = load_config(recipe.model)
    except FileNotFoundError as error:
        return Estimate(problems=[str(error)])
    except OSError as error:  # transformers: not on disk and the hub does not answer
        near = suggest(str(recipe.model.path).strip().lower(), bare_names())
        why = f"model {recipe.model.path} could not be looked at from here ({first_line(error)})"
        cure = f"{ELSEWHERE}, or name a folder in model.path.{near}"
        return Estimate(unchecked=[f"{why}; {cure} Memory is not estimated"])
    except ValueError as error:  # a configuration of no architecture
        return Estimate(problems=[f"model.path {recipe.model.path}: {first_line(error)}; take another folder"])
    try:
        total, trained = count_parameters(config, prepared.lora)
    except ValueError as error:  # peft: target modules that the model does not have; else no causal language model
        if prepared.lora is None:
            why = first_line(error)
            return Estimate(problems=[f"model.path {recipe.model.path}: {why}; take a causal language model"])
        return Estimate(problems=[target_problem(prepared.lora, config, error)])
    shape = model_shape(config, parameters=total, trained=trained)
    rows = [("parameters", f"{total:,}, trained {trained:,} ({trained / total:.1%})")]
    return Estimate(shape=shape, rows=rows, warnings=adapter_warnings(prepared.lora, config))


def describe_memory(
    found: Estimate,
    recipe: Recipe,
    args: Any,
    machines: Machines,
    device: Device,
    longest: dict[str, int],
    explain: bool,
) -> None:
    """Add what one process holds at its peaks. longest: tokens of the longest prompt of data and eval."""
    if found.shape is None:
        return
    found.run = training_of(recipe, args, machines, device, prompt_tokens(args, longest.get("data")))
    peaks = run_peaks(recipe, args, found.run, found.shape, device, longest.get("eval"))
    for one in peaks:
        found.rows.append((f"memory, {one.moment}", told(one)))
        if explain:
            found.rows += explained(one)
    found.short += shortages(peaks, recipe, args, machines, device, least_training(found.shape, found.run))
    most = max(one.size for one in peaks)
    if device.size is not None and not device.is_cpu and 0 <= device.size - most < MARGIN:
        found.warnings.append(
            f"memory: {gib(device.size - most)} of {device.described} are left at the peak, and the CUDA context, NCCL "
            "and fragmentation often take 1 to 3 GiB"
        )


MARGIN = 2 * GIB  # bytes; less than this beside the estimate is warned of


def describe_disk(found: Estimate, recipe: Recipe, args: Any, steps: int | None, device: Device, explain: bool) -> None:
    """Add what the run folder will hold. Too little is a problem on this machine, and a warning for another one."""
    if found.shape is None or found.run is None:
        return
    count = checkpoint_count(args, steps, None if recipe.eval is None else recipe.eval.at)
    if count is None:
        found.rows.append(
            ("disk", "unknown: neither trainer.max_steps nor trainer.save_total_limit says how many saves")
        )
        return
    needed, free = disk_needed(found.shape, found.run, args, count), free_disk(recipe.run_dir)
    found.rows.append(
        (
            "disk",
            f"{gib(needed.size)} in {recipe.run_dir}: {count} checkpoint(s) at a time and the model; {gib(free)} free",
        )
    )
    if explain:
        found.rows += explained(needed)
    if needed.size > free:
        text = (
            f"the run folder will hold about {gib(needed.size)} ({count} checkpoints) and {gib(free)} are free where "
            f"{recipe.run_dir} lies on this machine; set trainer.save_total_limit, or another trainer.output_dir"
        )
        (found.problems if device.here and not found.short else found.warnings).append(text)


def count_parameters(config: Any, lora: Any) -> tuple[int, int]:
    """(all, trained) parameters of the model, built without memory on the meta device."""
    import torch

    model = on_meta(config)
    base = sum(p.numel() for p in model.parameters())
    if lora is None:
        return base, base
    from peft import get_peft_model

    with torch.device("meta"):
        model = get_peft_model(model, lora)
    return base, sum(p.numel() for p in model.parameters() if p.requires_grad)
