"""What `entrl doctor` finds: everything `plan` checks, then a few prompts answered for real, by the rule table.

errors: the run would not train, or a reward fails. warnings: it would train, and something is wrong or senseless.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from entrl.diagnosis.looks import ENOUGH, FEW
from entrl.diagnosis.rules import findings
from entrl.models.load import tokenizer_of
from entrl.runs.doctor.sampled import Sampled, pick, sample
from entrl.runs.plan import Prepared, plan, prepare
from entrl.runs.plan.contents import overlap_warnings
from entrl.runs.plan.services import silent_services
from entrl.runs.recipe import Recipe

PROMPTS = 8
LOOKED_THROUGH = 512  # rows made of a task without end, to look for repeats


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
    if silent := silent_services(prepared.rewards):
        found.unchecked = [text for text in found.unchecked if text not in silent]
        found.errors += silent
        return found
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
    """Repeats, and prompts that are evaluated too: of a task without end `plan` has looked at a few rows alone."""
    asked = [str(prompt) for prompt in rows["prompt"]]
    found.facts["rows"] = f"{len(asked):,} looked through, {len(asked) - len(set(asked)):,} of them repeats"
    for name, part in ({} if recipe.eval is None else recipe.eval.parts).items():
        tested = dataclasses.replace(recipe, eval=part).load_eval_data()
        both = len({*asked} & {str(prompt) for prompt in tested["prompt"]})
        found.facts[f"also trained on ({name})"] = f"{both:,} of {len(tested):,} prompts of the evaluation"
        if not any(text.startswith("eval: ") and "trained on" in text for text in found.warnings):
            found.warnings += overlap_warnings(rows, tested, name)


def _of_samples(prepared: Prepared, seen: Sampled, found: Examination) -> None:
    found.errors += seen.errors
    look = [{"step": 0, **seen.metrics}] * max(ENOUGH, FEW)  # one look stands for the rollouts that a rule asks for
    for one in findings(look):
        evidence = one.evidence.replace(f" in the last {FEW} rollouts", "").replace(" in the last rollouts", "")
        found.warnings.append(f"{_of_one_look(one.rule.symptom, evidence, seen)}. {one.rule.change} "
                              f"({', '.join(one.rule.keys)})")  # fmt: skip
    _of_entropy(seen, found)
    args = prepared.args
    if args.use_vllm or args.vllm_replicas:
        found.unchecked.append(
            "the gap of sampler and trainer: not measured, the engine is not started here; training logs it "
            "(sampler/gap)"
        )
    elif (gap := seen.gap) is not None:
        found.facts["sampler and trainer"] = (
            f"log-probs of {gap.tokens:,} sampled tokens differ by {gap.mean:.2g} nats on average, {gap.most:.2g} at "
            "most (transformers, the dtype of model)"
        )
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


def _of_entropy(seen: Sampled, found: Examination) -> None:
    """What the entropy of the start leaves to controllers and to PEAR."""
    known = {phase: value for phase, value in seen.entropy.items() if value is not None}
    found.facts["entropy of the start"] = ", ".join(f"{phase} {value:.3f}" for phase, value in known.items()) + " nats"
    if (left := seen.metrics.get("start/pear_left")) is not None:
        found.facts["PEAR has to take"] = f"H_think - alpha H_answer = {left:.3f} nats, of mean entropies"
        rho = seen.metrics.get("start/pear_length_correlation")
        found.facts["PEAR's penalty and length"] = (
            "not told: in no group do right answers differ in both"
            if rho is None
            else f"rank correlation {rho:.2f} among the right answers of a prompt; well above 0, PEAR shortens"
        )


def _of_tokens(tokenizer: Any, seen: Sampled, found: Examination) -> None:
    named = {"end": tokenizer.eos_token, "pad": tokenizer.pad_token}
    found.facts["tokens"] = ", ".join(f"{name} {token!r}" for name, token in named.items())
    found.facts["chat template"] = "there is one" if getattr(tokenizer, "chat_template", None) else "none"
    found.facts["a prompt ends"] = repr(seen.end)
    if seen.starts_in is not None:
        inside = {"think": "inside the thinking", "answer": "behind the thinking"}
        found.facts["the model begins"] = inside.get(seen.starts_in, seen.starts_in)
