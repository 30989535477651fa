"""A few prompts of a recipe answered by the model it starts from, as its rollouts will be, judged and paid.

Answers are written by transformers at the trainer's temperature and length, whatever engine the run will use; judged as
an evaluation judges (`entrl.evaluation.answers`); paid by the recipe's own rewards, made anew, so that one that
remembers has not seen them.
"""

import math
import random
import warnings
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

from entrl.evaluation.answers import Answers
from entrl.evaluation.scores import pass_at_k
from entrl.evaluation.scoring import scores
from entrl.evaluation.writing import Asked, Completion, Sampling
from entrl.maths.phases import answer_text, closing_seen, phase_labels, prompt_start
from entrl.models.load import load_model
from entrl.models.whole import whole_models
from entrl.runs.doctor.gap import Gap, sampler_gap
from entrl.runs.plan import Prepared
from entrl.runs.recipe import Recipe
from entrl.runs.reward_call import called, completion_row, signals_of
from entrl.stats.intervals import bootstrap_interval
from entrl.trainers.shared.first_look import tags_to_look_for
from entrl.trainers.shared.rewards import RewardError, guarded, needed_signals, reward_name

MOST_SAMPLES = 8  # of a prompt, where the recipe's groups are larger
END = 60  # characters of a prompt's end that are shown
VERDICTS = {None: "not verified", 1.0: "right", 0.0: "wrong"}

Paid = dict[str, list[float | None]]  # reward -> a value per completion


class Said(NamedTuple):
    index: int  # of the prompt
    completion: Completion
    answer: str  # "" where it gives none
    verdict: str


@dataclass(kw_only=True)
class Row:
    """One completion for a person to read. phases: [(open | think | close | answer | "", text)]."""

    problem: str
    prompt: str
    phases: list[tuple[str, str]]
    gold: str
    verdict: str  # right, wrong, not verified
    truncated: bool
    reward: float | None  # weighted sum; None: none applied, or one failed
    tokens: int


@dataclass(kw_only=True)
class Sampled:
    """What came of it."""

    rows: list[Row]
    metrics: dict[str, float]  # as a training step would log them, for the rule table
    shares: dict[str, float]  # of completions; flat_groups: of prompts
    pass_at_k: dict[str, dict[str, Any]]  # k -> {value, ci}
    entropy: dict[str, float | None]  # nats by phase: think, answer, all
    end: str  # of the first prompt as the model gets it
    starts_in: str | None  # think, answer: where the prompt leaves the model; None where it does not say
    errors: list[str] = field(default_factory=list)
    gap: Gap | None = None  # of sampler and trainer; None where the run's sampler is another engine


def pick(rows: Any, count: int, seed: int) -> Any:
    """`count` of the rows, drawn from all of them."""
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows)))))


def sample(recipe: Recipe, prepared: Prepared, rows: Any, *, seed: int = 0) -> Sampled:
    """rows: of `load_task`, with golds."""
    with whole_models(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of silence, which is told in shares
        work = _work(recipe, prepared, rows, seed)
        answered = list(work.writer.write([Asked(index=i, prompt_ids=work.prompts[i]) for i in work.order]))
        answered.sort(key=lambda a: a.index)
        result = work.result([work.record(a) for a in answered], seconds=0.0)
    said = _judged(work, [(a.index, c) for a in answered for c in a.drawn])
    paid, logged, errors = _paid(recipe, work, said)
    totals = _totals([r.weight for r in recipe.rewards], paid, len(said))
    metrics = _metrics(prepared, work, said, paid, totals)
    gap = None if prepared.args.use_vllm or prepared.args.vllm_replicas else _gap(work, said)
    start = {"sampler_gap": None if gap is None else gap.mean, **_start(prepared, said, result["entropy"], logged)}
    return Sampled(
        rows=[_row(work, one, total) for one, total in zip(said, totals, strict=True)],
        metrics=metrics | {f"start/{name}": value for name, value in start.items() if value is not None},
        shares=_shares(work, said, totals),
        pass_at_k={str(k): _reach(result["problems"], k, seed) for k in dict.fromkeys(work.k)},
        entropy=result["entropy"],
        end=work.tokenizer.decode(work.prompts[0])[-END:],
        starts_in=None if work.tags is None else prompt_start(work.prompts[0], work.tags),
        errors=errors,
        gap=gap,
    )


def _work(recipe: Recipe, prepared: Prepared, rows: Any, seed: int) -> Any:
    """An evaluation with its writer, asked as the trainer asks."""
    args = prepared.args
    sampling = Sampling(
        samples=min(args.num_generations, MOST_SAMPLES),
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_completion_length,
        seed=seed,
        greedy=False,
    )
    model, tokenizer = load_model(recipe.model, prepared.lora)
    work = Answers(
        model=model.to(PartialState().device),
        tokenizer=tokenizer,
        dataset=rows,
        sampling=sampling,
        k=(1, sampling.samples),
        chat_template_kwargs=args.chat_template_kwargs or {},
        think_open=args.think_open,
        think_close=args.think_close,
        say=lambda _: None,
    )
    work.ready(work.fitting(1))
    return work


def _judged(work: Answers, drawn: list[tuple[int, Completion]]) -> list[Said]:
    """drawn: the same number for each prompt, in the order of the prompts."""
    answers = [answer_text(c.ids, work.tags, work.tokenizer, prompt_ids=work.prompts[i]) for i, c in drawn]
    texts = [c.text for _, c in drawn]
    found = scores(work.check, texts, answers, work.dataset, times=work.sampling.samples)
    return [Said(i, c, a.strip(), VERDICTS[s]) for (i, c), a, s in zip(drawn, answers, found, strict=True)]


# --- what the recipe's rewards pay ----------------------------------------------------------------------------------


def _paid(recipe: Recipe, work: Answers, said: list[Said]) -> tuple[Paid, dict[str, float], list[str]]:
    """What each reward pays, the metrics they log, and what those that failed say."""
    shared = {"gather": list, "training": True, "tokenizer": work.tokenizer, "think_tags": work.tags}
    paid, logged, errors = {}, {}, []
    signals = _signals(work, said) | {"log_metric": logged.__setitem__}
    for number, guard in enumerate(guarded([r.value for r in recipe.build_rewards()], **shared)):
        try:
            paid[f"{reward_name(guard)}.{number}"] = called(guard, signals)
        except RewardError as error:
            errors.append(f"rewards.{number}: {error} (on {len(said)} sampled completions)")
    return paid, logged, errors


def _signals(work: Answers, said: list[Said]) -> dict[str, Any]:
    rows = []
    for one in said:
        columns, completion = dict(work.dataset[one.index]), one.completion
        prompt = columns.pop("prompt")
        rows.append(
            completion_row(
                prompt,
                completion.text,
                group=one.index,
                truncated=completion.truncated,
                answer=one.answer,
                columns=columns,
                completion_ids=completion.ids,
                prompt_ids=work.prompts[one.index],
                token_entropies=completion.entropies,
                token_logprobs=completion.logprobs,
            )
        )
    return signals_of(rows)


def _totals(weights: list[float], paid: Paid, count: int) -> list[float | None]:
    """Weighted sums, as TRL makes them: a reward that does not apply is left out. None where one failed."""
    if len(paid) < len(weights):
        return [None] * count
    rows = [[(w, v) for w, v in zip(weights, row, strict=True) if v is not None]
            for row in zip(*paid.values(), strict=True)]  # fmt: skip
    return [math.fsum(w * v for w, v in row) if row else None for row in rows]


# --- numbers --------------------------------------------------------------------------------------------------------


def _row(work: Answers, one: Said, reward: float | None) -> Row:
    row, ids, prompt = work.dataset[one.index], one.completion.ids, work.prompts[one.index]
    labels = [""] * len(ids) if work.tags is None else phase_labels(ids, work.tags, prompt_ids=prompt)
    spans = [(phase, [token for _, token in same])
             for phase, same in groupby(zip(labels, ids, strict=True), key=itemgetter(0))]  # fmt: skip
    asked = row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"][-1]["content"])
    return Row(
        problem=str(row.get("problem_id", one.index)),
        prompt=asked,
        phases=[(phase, work.tokenizer.decode(words, skip_special_tokens=True)) for phase, words in spans],
        gold=str(row["answer"]),
        verdict=one.verdict,
        truncated=one.completion.truncated,
        reward=reward,
        tokens=len(ids),
    )


def _shares(work: Answers, said: list[Said], totals: list[float | None]) -> dict[str, float]:
    shares = {
        "right": fmean(one.verdict == "right" for one in said),
        "unverified": fmean(one.verdict == "not verified" for one in said),
        "without_answer": fmean(not one.answer for one in said),
        "truncated": fmean(one.completion.truncated for one in said),
    }
    if None not in totals:
        shares["flat_groups"] = _flat(said, totals)
    if work.tags is not None:
        shares["without_closing_tag"] = 1 - _closed(work, said)
    return shares


def _flat(said: list[Said], totals: list[float | None]) -> float:
    groups: dict[int, set[float | None]] = {}
    for one, total in zip(said, totals, strict=True):
        groups.setdefault(one.index, set()).add(total)
    return fmean(len(values) == 1 for values in groups.values())


def _closed(work: Answers, said: list[Said]) -> float:
    assert work.tags is not None
    return fmean(closing_seen(s.completion.ids, work.tags, prompt_ids=work.prompts[s.index]) for s in said)


def _metrics(
    prepared: Prepared, work: Answers, said: list[Said], paid: Paid, totals: list[float | None]
) -> dict[str, float]:
    metrics = {"completions/clipped_ratio": fmean(one.completion.truncated for one in said)}
    needed = any("think_tags" in needed_signals(r) for r in prepared.reward_funcs)
    if tags_to_look_for(work.tokenizer, prepared.args, work.tags, needed=needed) is not None:
        metrics["completions/thinking_closed"] = _closed(work, said)
    known = [total for total in totals if total is not None]
    if len(known) == len(said):
        metrics |= {"reward": fmean(known), "groups/without_spread": _flat(said, totals)}
        metrics |= {
            f"rewards/{n}/mean": fmean(abs(v) for v in vs if v is not None) for n, vs in paid.items() if any(vs)
        }
    return metrics


def _start(
    prepared: Prepared, said: list[Said], entropy: dict[str, float | None], logged: dict[str, float]
) -> dict[str, float | None]:
    """What only a look before training asks: the rule table's `start/...`."""
    start: dict[str, float | None] = {
        "entropy": entropy["all"],
        "unverified": fmean(one.verdict == "not verified" for one in said),
    }
    think, answer = entropy.get("think"), entropy.get("answer")
    for reward in prepared.reward_funcs:
        if getattr(reward, "__name__", "") == "pear" and think is not None and answer is not None:
            start["pear_left"] = think - reward.alpha * answer
            start["pear_length_correlation"] = logged.get("pear/length_correlation")
    return start


def _gap(work: Answers, said: list[Said]) -> Gap | None:
    drawn = [(work.prompts[one.index], one.completion) for one in said]
    size = work.model.get_input_embeddings().num_embeddings
    return sampler_gap(work.model, drawn, temperature=work.sampling.temperature, vocabulary=size)


def _reach(problems: list[dict[str, Any]], k: int, seed: int) -> dict[str, Any]:
    """Unbiased pass@k, with a bootstrap interval over problems."""
    found = [pass_at_k(p["n_samples"], p["n_correct"], k) for p in problems if p["n_samples"] >= k]
    if not found:
        return {"value": None, "ci": None, "problems": 0}
    return {"value": fmean(found), "ci": list(bootstrap_interval(np.array(found), seed=seed)), "problems": len(found)}
