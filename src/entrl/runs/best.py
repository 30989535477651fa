"""The best checkpoint of a run by an evaluation made while it trains: what may be asked, what is kept, what was taken.

transformers compares a metric of each evaluation, and at the end loads the checkpoint of the best one. Left alone it
takes the loss (near 0 in GRPO, whatever is answered), takes a checkpoint other than the best one where that step was
not saved, and the last weights where a resume finds the best checkpoint gone, all without a word.

Names of transformers met here: `state.best_metric`, `best_global_step`, `best_model_checkpoint`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from entrl.report.summary import best_in_words
from entrl.runs.law_watch import evaluation_steps
from entrl.settings.names import suggest
from entrl.trainers.shared.completeness import flaw

if TYPE_CHECKING:
    from entrl.runs.recipe import Recipe

SAVE_STEPS = 500  # of transformers
# What every evaluation of TRL's reports; rewards and controllers add names of their own, with a "/" in them.
PLAIN = ("reward", "reward_std", "entropy", "kl", "loss", "frac_reward_zero_std", "num_tokens")


def wants_best(trainer: Mapping[str, Any]) -> bool:
    """Whether evaluations while training decide about checkpoints."""
    return bool(trainer.get("load_best_model_at_end")) or _plain(trainer.get("save_strategy", "steps")) == "best"


def best_problems(recipe: "Recipe", reward_names: list[str]) -> list[str]:
    """Why the best checkpoint cannot be kept as the recipe asks; empty where it is not asked for."""
    trainer = recipe.trainer
    if _plain(trainer.get("eval_strategy", "no")) != "no" and recipe.eval is None:
        return [
            "trainer.eval_strategy evaluates while training, and the recipe says nothing to evaluate on; add "
            "eval: {task: ...}, or leave eval_strategy out"
        ]
    if not wants_best(trainer):
        return []
    asked = "load_best_model_at_end" if trainer.get("load_best_model_at_end") else "save_strategy: best"
    if recipe.eval is None or (recipe.eval.at is None and _plain(trainer.get("eval_strategy", "no")) == "no"):
        return [
            f"{asked} compares evaluations made while training, and there are none; add eval: {{task: ..., at: [...]}} "
            "with the steps to evaluate after (or at: early)"
        ]
    return [*_metric_problems(trainer, asked, reward_names), *_unsaved(recipe)]


def _metric_problems(trainer: Mapping[str, Any], asked: str, reward_names: list[str]) -> list[str]:
    name = str(trainer.get("metric_for_best_model") or "loss").removeprefix("eval_")
    rewards = [f"rewards/{reward}/mean" for reward in reward_names]
    offer = f"set metric_for_best_model to reward or {rewards[0]}" if rewards else "set metric_for_best_model: reward"
    if name == "loss":
        return [
            f"{asked} would compare the loss, which in GRPO is near 0 however good the answers are; {offer} (mean over "
            "the completions of an evaluation, more is better)"
        ]
    known = [*PLAIN, *rewards, *(f"rewards/{reward}/std" for reward in reward_names)]
    if name not in known and ("/" not in name or name.startswith("rewards/")):
        return [f"metric_for_best_model: no evaluation reports {name!r}.{suggest(name, known)} {offer}"]
    up = trainer.get("greater_is_better")
    if name == "reward" or name in rewards:
        return [f"greater_is_better: false would keep the worst {name}; leave it out"] if up is False else []
    if up is None:
        return [
            f"metric_for_best_model: {name} is no reward, so say whether more of it is better: greater_is_better: true "
            f"or false; or {offer}"
        ]
    return []


def _unsaved(recipe: "Recipe") -> list[str]:
    """Evaluations after whose step no checkpoint is written: the best one could be among them."""
    trainer, at = recipe.trainer, recipe.eval.at if recipe.eval else None
    how, last = _plain(trainer.get("save_strategy", "steps")), trainer.get("max_steps", -1)
    saves, evaluates = trainer.get("save_steps", SAVE_STEPS), trainer.get("eval_steps") or trainer["logging_steps"]
    if how == "best":
        return []
    move = "set save_strategy: best (a checkpoint whenever the metric improves)"
    if how == "no" or (how == "epoch" and at is not None):
        return [f"load_best_model_at_end loads a checkpoint, and save_strategy: {how} leaves none of them; {move}"]
    by = _plain(trainer.get("eval_strategy", "no"))
    if by != "no" and by != how:
        return [f"load_best_model_at_end: eval_strategy: {by} and save_strategy: {how} are of different steps; {move}"]
    if by == "steps" and evaluates != saves:
        return [
            f"load_best_model_at_end: evaluated every {evaluates:g} steps and saved every {saves:g}, so the best step "
            f"may be one that is not saved; make eval_steps and save_steps equal, or {move}"
        ]
    try:
        steps = evaluation_steps(at, last)
    except ValueError:
        return []  # said where the schedule is checked
    lost = [step for step in steps if step != last and (saves < 1 or step % saves)] if how == "steps" else []
    if not lost:
        return []
    shown = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
    return [
        f"load_best_model_at_end: eval.at evaluates after steps {shown}, where no checkpoint is written (save_steps: "
        f"{saves:g}); {move}, or evaluate after multiples of save_steps"
    ]


def best_notes(recipe: "Recipe") -> list[str]:
    """What a reader of the numbers should know."""
    if not recipe.trainer.get("load_best_model_at_end"):
        return []
    return [
        "the checkpoint is chosen on the problems of the `eval` group, so the evaluation after training, which is on "
        "the same ones, flatters it; for a number to publish, `entrl eval` the model on problems of their own"
    ]


class BestCheckpoint(TrainerCallback):
    """Watches what transformers compares: a number, the same on every rank, of a checkpoint that is still there."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run knows its best step by number: the folder may have moved, or the checkpoint be gone."""
        if not args.load_best_model_at_end or not state.best_global_step:
            return
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if (why := flaw(best) if best.is_dir() else "it is gone") is not None:
            raise ValueError(
                f"the best checkpoint so far is of step {state.best_global_step} ({args.metric_for_best_model} "
                f"{state.best_metric:g}) and cannot be used: {why}; put {best} back, or run again with overwrite=true"
            )
        state.best_model_checkpoint = str(best)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        if not args.load_best_model_at_end and _plain(args.save_strategy) != "best":
            return
        assert metrics is not None
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        if args.world_size > 1:
            from accelerate.utils import broadcast_object_list

            box = [metrics.get(name)]
            metrics[name] = broadcast_object_list(box)[0]
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            there = ", ".join(sorted(k.removeprefix("eval_") for k, v in metrics.items() if v is not None))
            raise ValueError(
                f"metric_for_best_model: the evaluation after step {state.global_step} gave {value} for "
                f"{name.removeprefix('eval_')!r}, by which no checkpoint can be compared; it has {there}"
            )


def best_of(args: Any, state: Any, *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """For the manifest: which step the trained model is of, and by what; None where the last one was not compared."""
    if not args.load_best_model_at_end:
        return None
    if state.best_model_checkpoint is None:
        say("warning: no evaluation was made while training, so the model is of the last step")
        return None
    found = {
        "step": state.best_global_step,
        "of_steps": state.global_step,
        "metric": args.metric_for_best_model.removeprefix("eval_"),
        "value": state.best_metric,
        "greater_is_better": args.greater_is_better,
    }
    say(f"the model is of {best_in_words(found)}")
    return found


def _plain(option: Any) -> str:
    """An option that may be an enumeration's member, as the word a recipe has for it."""
    return str(getattr(option, "value", option))
