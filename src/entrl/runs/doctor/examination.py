"""What `entrl doctor` finds: everything `plan` checks, then a few prompts answered for real, by the rule table.

errors: the run would not train, or a reward fails. warnings: it would train, and something is wrong or senseless.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from entrl.diagnosis.rules import ENOUGH, FEW, findings
from entrl.models.load import tokenizer_of
from entrl.runs.doctor.sampled import Sampled, pick, sample
from entrl.runs.plan import Prepared, plan, prepare
from entrl.runs.recipe import Recipe

PROMPTS = 8
LOOKED_THROUGH = 512  # rows made of a task without end, to look for repeats
SHARPEST = 0.02  # nats a token below which nearly every sample is the same; our choice


@dataclass(kw_only=True)
class Examination:
    """sampled: None where nothing could be sampled."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    sampled: Sampled | None = None

    @property
    def ok(self) -> bool:
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **dataclasses.asdict(self)}


def examine(recipe: Recipe, *, prompts: int = PROMPTS, seed: int = 0, planned: bool = False) -> Examination:
    """planned: what `plan` says was said already, as in `train`."""
    found = Examination(name=recipe.name)
    if not planned:
        checked = plan(recipe)
        found.errors, found.warnings, found.unchecked = checked.problems, checked.warnings, checked.unchecked
    if found.errors:
        return found
    prepared = prepare(recipe)
    if prepared.environment is not None:
        found.unchecked.append("prompts with an environment are not sampled; `entrl play` shows dialogues")
        return found
    rows = recipe.load_data(size=recipe.data.probe(LOOKED_THROUGH) if recipe.data.endless else None)
    _of_rows(recipe, rows, found)
    if "answer" not in rows.column_names:
        found.unchecked.append("completions were not sampled: the rows have no column 'answer' to judge them by")
        return found
    found.sampled = sample(recipe, prepared, pick(rows, prompts, seed), seed=seed)
    _of_samples(prepared, found.sampled, found)
    _of_tokens(tokenizer_of(recipe.model), found.sampled, found)
    return found


# --- what is looked at ----------------------------------------------------------------------------------------------


def _of_rows(recipe: Recipe, rows: Any, found: Examination) -> None:
    """Repeats, and prompts that are evaluated too."""
    asked = [str(prompt) for prompt in rows["prompt"]]
    found.facts["rows"] = f"{len(asked):,} looked through, {len(asked) - len(set(asked)):,} of them repeats"
    for name, part in ({} if recipe.eval is None else recipe.eval.parts).items():
        held = [str(p) for p in dataclasses.replace(recipe, eval=part).load_eval_data()["prompt"]]
        both = sum(prompt in set(asked) for prompt in held)
        found.facts[f"also trained on ({name})"] = f"{both:,} of {len(held):,} prompts of the evaluation"
        if both:
            found.warnings.append(
                f"eval: {both} of {len(held)} prompts of {name} are trained on too, so it says little of others; take "
                "another eval.split or eval.task"
            )


def _of_samples(prepared: Prepared, seen: Sampled, found: Examination) -> None:
    found.errors += seen.errors
    look = [{"step": 0, **seen.metrics}] * max(ENOUGH, FEW)  # one look stands for the rollouts that a rule asks for
    for one in findings(look):
        evidence = one.evidence.replace(f" in the last {FEW} rollouts", "").replace(" in the last rollouts", "")
        found.warnings.append(f"{_of_one_look(one.rule.symptom, evidence, seen)}. {one.rule.change} "
                              f"({', '.join(one.rule.keys)})")  # fmt: skip
    if seen.shares["unverified"]:
        found.warnings.append(
            f"{seen.shares['unverified']:.0%} of completions could not be verified; look at their golds (data.task)"
        )
    _of_entropy(prepared, seen, found)
    args = prepared.args
    if args.use_vllm or args.vllm_replicas:
        found.unchecked.append("the gap of sampler and trainer: it is logged while training (sampler/gap)")
    else:
        found.facts["sampler and trainer"] = "one model in one engine: no gap"
    if args.top_k or args.min_p:
        found.unchecked.append("trainer.top_k and trainer.min_p: prompts were sampled without them")


def _of_one_look(symptom: str, evidence: str, seen: Sampled) -> str:
    """The evidence of a rule, whose words are of rollouts, for the completions that were sampled."""
    count = len(seen.rows)
    words = {
        "no reward": f"every reward of {count} sampled completions is 0",
        "rewards equal": "every group had equal rewards: such updates have no gradient",
        "tags never seen": f"the closing tag stands in none of {count} sampled completions",
    }
    return words.get(symptom, evidence)


def _of_entropy(prepared: Prepared, seen: Sampled, found: Examination) -> None:
    """What the entropy of the start leaves to controllers and to PEAR."""
    known = {phase: value for phase, value in seen.entropy.items() if value is not None}
    found.facts["entropy of the start"] = ", ".join(f"{phase} {value:.3f}" for phase, value in known.items()) + " nats"
    if known.get("all", 1.0) < SHARPEST:
        found.warnings.append(
            f"the entropy of the start is {known['all']:.3f} nats a token: samples of a prompt are nearly alike, and "
            "controllers have nothing to hold up. Raise trainer.temperature, or start from a model before such training"
        )
    for reward in prepared.reward_funcs:
        if getattr(reward, "__name__", "") == "pear" and {"think", "answer"} <= known.keys():
            left = known["think"] - reward.alpha * known["answer"]
            found.facts["PEAR has to take"] = f"H_think - alpha H_answer = {left:.3f} nats, of mean entropies"
            if left <= 0:
                found.warnings.append(
                    f"PEAR's penalty is 0 on average: thinking has {known['think']:.3f} nats a token, alpha x answer "
                    f"{reward.alpha * known['answer']:.3f}. Lower rewards' alpha, or leave PEAR out"
                )


def _of_tokens(tokenizer: Any, seen: Sampled, found: Examination) -> None:
    named = {"end": tokenizer.eos_token, "pad": tokenizer.pad_token}
    found.facts["tokens"] = ", ".join(f"{name} {token!r}" for name, token in named.items())
    found.facts["chat template"] = "there is one" if getattr(tokenizer, "chat_template", None) else "none"
    found.facts["a prompt ends"] = repr(seen.end)
    if seen.starts_in is not None:
        inside = {"think": "inside the thinking", "answer": "behind the thinking"}
        found.facts["the model begins"] = inside.get(seen.starts_in, seen.starts_in)
