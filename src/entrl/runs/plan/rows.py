"""Every check on the rows that training and evaluation will see: columns, numbers of prompts, golds, lengths.

`entrl plan` and `entrl train` run the same ones. A file or a benchmark is read whole; of a task that generates its
problems a few are made.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from entrl.errors import named, said
from entrl.models.load import load_config, tokenizer_of
from entrl.runs.plan.checks import ELSEWHERE, Prepared, column_problems, first_line, opening_problems, required_names
from entrl.runs.plan.contents import content_warnings, control_warnings, overlap_warnings, some, template_warnings
from entrl.runs.plan.limits import within
from entrl.runs.plan.services import silent_services
from entrl.runs.plan.trial import tag_problems, try_rewards
from entrl.runs.plan.values import tasks_of
from entrl.runs.recipe import Recipe
from entrl.runs.specs import EvalSpec
from entrl.tasks import FILE_TASKS, is_endless, is_soon_made
from entrl.trainers.refusals.schedule import describe_schedule, empty_runs
from entrl.verify.golds import check_golds, gold_kind

PROBE_ROWS = 4  # made of a task that generates its problems
ACTING_PASSES = 2.0  # over the prompts, from which on a curriculum by prompt acts
USUAL_SIZE = EvalSpec(task="any").size  # nobody's wish
LONGEST = 64  # texts of most bytes, among which the one of most tokens is looked for
TEMPLATE_S = 5.0  # seconds for one prompt
ROOMY = 64  # tokens of a completion from which on answers are taken to fit
SPECIAL = 4  # tokens a tokenizer may put around a text, beside those of its bytes


@dataclass(kw_only=True)
class Found:
    """What the rows show; a run starts only without `problems`."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)  # what could not be looked at from here
    count: int | None = None  # rows of the training set, None where nobody says
    longest: dict[str, int] = field(default_factory=dict)  # tokens of the longest prompt of "data" and "eval"
    runs_code: bool = False  # whether a verifier of the rows runs what the model wrote


def check_data(recipe: Recipe, prepared: Prepared) -> Found:
    """What `plan` says about the training set and the evaluation set."""
    found, trained = Found(unchecked=silent_services(prepared.rewards)), None
    if not prepared.rows_come:
        return found
    endless = recipe.data.endless
    size = recipe.data.probe(PROBE_ROWS) if endless else None
    if rows := _loaded(lambda: recipe.load_data(size=size), "data", found):
        found.count = recipe.data.train_size if endless else len(rows)
        trained = rows
        check_training_rows(recipe, prepared, rows, found, count=found.count)
        try_own_rewards(recipe, prepared, rows, found)
    if (spec := recipe.eval) is not None:
        for part in spec.parts.values():
            probe = replace(recipe, eval=_few_of(part))
            if rows := _loaded(probe.load_eval_data, "eval", found):
                check_evaluation_rows(probe, prepared, rows, found, trained)
    return found


def _few_of(part: EvalSpec) -> EvalSpec:
    """An evaluation that is soon made; of one without end, a few of its problems."""
    return replace(part, size=PROBE_ROWS) if is_endless(part.task) and not is_soon_made(part.task) else part


def check_rows(recipe: Recipe, prepared: Prepared, rows: Any, *, trial: bool = True) -> Found:
    """What `train` says before it begins, of the training set it has loaded and of the evaluation set.

    trial: whether the user's own rewards are called, by one process of several
    """
    found = Found()
    check_training_rows(recipe, prepared, rows, found, count=len(rows))
    if trial and recipe.reward_trial_s:
        found.problems += silent_services(prepared.rewards)
    if trial:
        try_own_rewards(recipe, prepared, rows, found)
    for part in [] if recipe.eval is None else recipe.eval.parts.values():
        if not is_endless(part.task):
            one = replace(recipe, eval=part)
            check_evaluation_rows(one, prepared, one.load_eval_data(), found, rows)
        elif prepared.environment is None:
            probe = replace(recipe, eval=_few_of(part)).load_eval_data()
            found.runs_code |= "code" in check_golds(probe).kinds
    return found


def try_own_rewards(recipe: Recipe, prepared: Prepared, rows: Any, found: Found) -> None:
    if found.problems or prepared.problems:  # a reward that cannot be called is named already
        return
    try:
        tokenizer = tokenizer_of(recipe.model)
    except (OSError, ValueError):  # said where lengths are counted
        return
    trial = try_rewards(recipe, prepared, rows, tokenizer)
    found.problems += trial.problems
    found.warnings += trial.warnings


def _loaded(load: Callable[[], Any], what: str, found: Found) -> Any:
    try:
        return load()
    except ConnectionError as error:
        found.unchecked.append(
            f"the rows of {what!r} could not be looked at from here ({first_line(error)}); {ELSEWHERE}"
        )
    except (ValueError, TypeError, OSError) as error:
        found.problems.append(f"{what}: {error}")
    return None


def check_training_rows(recipe: Recipe, prepared: Prepared, rows: Any, found: Found, *, count: int | None) -> None:
    """count: rows the run will have, of which `rows` may be a few; None where the task has not said."""
    found.problems += column_problems(prepared.rewards, rows.column_names) + opening_problems(recipe, prepared, rows)
    found.problems += _course_problems(prepared, rows)
    if count is not None and not recipe.data.endless and (recipe.data.train_size or 0) > count:
        found.warnings.append(
            f"data.train_size of {recipe.data.train_size:,} is more than the {count:,} problems that "
            f"{recipe.data.shown} has; lower it, or leave it out for all of them"
        )
    if (kind := gold_kind(prepared.reward_funcs)) is not None:
        _check_golds(rows, kind, "data", "so their completions get no reward from a verifier", found)
    for reward in prepared.rewards:
        for name in sorted(required_names(reward.value) & set(rows.column_names)):
            _check_nulls(rows, name, reward.source, "data", found)
    if prepared.environment is None:  # games differ by what is to be found out, and are all asked alike
        found.warnings += content_warnings(rows, "data", from_file=_from_file(recipe))
    _check_tags(recipe, prepared, found)
    if prepared.args is not None:
        if count is not None:
            found.problems += too_few_prompts(count, prepared.args)
            found.warnings += _idle_curriculum(recipe, prepared, count)
        _check_texts(recipe, prepared, rows, prepared.args.max_completion_length, "data", found)


def _course_problems(prepared: Prepared, rows: Any) -> list[str]:
    """Columns that a curriculum lacks, and what its rule says of these rows."""
    if prepared.course is None:
        return []
    try:
        with named(f"curriculum {prepared.course.rule.name}"):
            prepared.course.bind(rows, seed=0)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return [said(error)]
    return []


def _idle_curriculum(recipe: Recipe, prepared: Prepared, count: int) -> list[str]:
    """A rule that goes by each prompt's own trials, and a run that meets hardly any prompt twice."""
    course, args = prepared.course, prepared.args
    if course is None or not course.rule.by_prompt or empty_runs(args):
        return []
    schedule = describe_schedule(args, args.world_size)
    drawn = args.max_steps / schedule.updates_per_rollout * schedule.prompts_per_rollout
    passes = drawn / count if args.max_steps > 0 else args.num_train_epochs
    if passes >= ACTING_PASSES or (recipe.curriculum is not None and recipe.curriculum.file and course.file.others()):
        return []
    return [
        f"curriculum {course.rule.name} goes by each prompt's own pass rate, and {passes:.2g} passes over {count:,} "
        "prompts show hardly any of them twice: it draws almost evenly. Lower data.train_size, raise "
        "trainer.max_steps, or name a curriculum.file that earlier runs wrote"
    ]


def _from_file(recipe: Recipe) -> bool:
    return all(task.partition(":")[0] in FILE_TASKS for task in tasks_of(recipe))


def _check_tags(recipe: Recipe, prepared: Prepared, found: Found) -> None:
    if prepared.args is None or prepared.problems:
        return
    try:
        tokenizer = tokenizer_of(recipe.model)
    except (OSError, ValueError):  # said where lengths are counted
        return
    found.problems += tag_problems(prepared, tokenizer)


def check_evaluation_rows(recipe: Recipe, prepared: Prepared, rows: Any, found: Found, trained: Any = None) -> None:
    """trained: the training set, or a few of its rows, where it could be loaded"""
    spec = recipe.eval
    assert isinstance(spec, EvalSpec)
    found.problems += [f"eval: {problem}" for problem in opening_problems(recipe, prepared, rows)]
    if spec.size not in (None, USUAL_SIZE) and not is_endless(spec.task) and len(rows) < spec.size:
        found.warnings.append(
            f"eval.size of {spec.size:,} is more than the {len(rows):,} problems that {spec.task} has; lower it"
        )
    if trained is not None and prepared.environment is None:
        found.warnings += overlap_warnings(trained, rows, spec.task)
    if prepared.environment is None:
        _check_nulls(rows, "answer", "the evaluation", "eval", found)
        _check_golds(rows, "auto", "eval", "so it is scored over {left:,} problems", found)
    if prepared.args is not None:
        length = spec.max_new_tokens or prepared.args.max_completion_length
        _check_texts(recipe, prepared, rows, length, "eval", found)


def too_few_prompts(count: int, args: Any) -> list[str]:
    """A rollout takes whole groups of different prompts and drops a rest: with too few there is none at all."""
    schedule = describe_schedule(args, args.world_size)
    needed = schedule.prompts_per_rollout
    if count >= needed:
        return []
    return [
        f"one rollout needs {needed} prompts ({schedule.rows_per_rollout} rows in groups of "
        f"{schedule.num_generations}) and data has {count}: no step would be trained. Give it more prompts (data.task, "
        "data.train_size), raise trainer.num_generations, or lower trainer.per_device_train_batch_size or "
        "trainer.steps_per_generation"
    ]


def _check_nulls(rows: Any, name: str, reader: str, where: str, found: Found) -> None:
    """Rows without a value that somebody needs (a gold answer): some are said, none at all is refused."""
    without = [row_id for row_id, value in zip(rows["problem_id"], rows[name], strict=True) if value is None]
    what = "gold answer" if name == "answer" else repr(name)
    if without and len(without) == len(rows):
        column = "; is answer_column right?" if name == "answer" else ""
        found.problems.append(f"{where}: none of the {len(rows)} rows has a {what}, which {reader} needs{column}")
    elif without:
        found.warnings.append(
            f"{where}: {len(without)} of {len(rows)} rows have no {what} ({some(without)}), which {reader} needs; it "
            "cannot judge them: give them one or leave them out"
        )


def _check_golds(rows: Any, kind: str, where: str, effect: str, found: Found) -> None:
    """Golds that no verifier can read; rows without one are `_check_nulls`'s."""
    try:
        golds = check_golds(rows, default=kind, nulls=False)
    except (ValueError, TypeError) as error:  # a column `verifier` that is none
        found.problems.append(f"{where}: {error}")
        return
    found.runs_code |= "code" in golds.kinds
    found.problems += golds.problems(where)
    found.warnings += golds.warnings(where, effect.format(left=golds.rows - len(golds.bad)))


def _check_answers_fit(tokenizer: Any, rows: Any, length: int, key: str, masked: bool, found: Found) -> None:
    """Completions so short that most gold answers with an end token are longer. masked: cut ones are not trained on."""
    golds = [gold for gold in rows["answer"] if gold] if "answer" in rows.column_names else []
    if not golds or length > ROOMY:
        return
    counts = [len(ids) + 1 for ids in tokenizer(golds, add_special_tokens=False, verbose=False)["input_ids"]]
    cut = sum(count > length for count in counts)
    if 2 * cut > len(golds):
        none = "; mask_truncated_completions takes those out, and nothing would be trained" if masked else ""
        found.warnings.append(
            f"{key} of {length} is too short for the answer alone in {cut} of {len(golds)} rows (shortest gold and an "
            f"end token: {min(counts)} tokens): completions would be cut{none}; raise it"
        )


def _check_texts(recipe: Recipe, prepared: Prepared, rows: Any, length: int, where: str, found: Found) -> None:
    """Prompts as the model will be shown them: the template takes them, and they leave room for `length` tokens.

    Not with an environment, whose tools become part of the prompt.
    """
    if prepared.environment is not None:
        return
    try:
        tokenizer, positions = tokenizer_of(recipe.model), context(recipe, prepared.args)
    except (OSError, ValueError) as error:
        if any(problem.startswith(("model.path", "model.tokenizer")) for problem in prepared.problems):
            return  # and so said already
        found.unchecked.append(
            f"{where}: lengths of prompts, for want of the model's tokenizer ({first_line(error)}); {ELSEWHERE}"
        )
        return
    if tokenizer.eos_token_id is None:
        other = "neither an end token nor a pad token" if tokenizer.pad_token_id is None else "no end token"
        found.problems.append(
            f"{where}: the tokenizer has {other}, so no completion would end; set tokenizer.eos_token and save it"
        )
        return
    spec = recipe.eval
    if where == "eval" and spec and spec.before and spec.engine != "vllm" and tokenizer.pad_token_id is None:
        found.problems.append(
            "eval: the tokenizer has no pad token, which the evaluation before training needs; set tokenizer.pad_token "
            "and save it, or eval.before: false"
        )
    try:
        texts = as_shown(tokenizer, rows, prepared.args.chat_template_kwargs or {})
    except ValueError as error:
        found.problems.append(f"{where}: {error}")
        return
    tags = (prepared.args.think_open, prepared.args.think_close)
    found.warnings += control_warnings(tokenizer, rows, where, tags)
    if where == "data":
        found.warnings += template_warnings(tokenizer, rows, prepared.args.chat_template_kwargs or {})
    key = "trainer.max_completion_length" if where == "data" else "eval.max_new_tokens"
    masked = where == "data" and prepared.args.mask_truncated_completions
    _check_answers_fit(tokenizer, rows, length, f"{where}: {key}", masked, found)
    special = isinstance(rows[0]["prompt"], str)
    found.longest[where] = max(found.longest.get(where, 0), longest_prompt(tokenizer, texts, special=special))
    if positions is None:
        return
    limit = positions - length
    if limit < 1:  # legal, as few completions may get so long; prompts must fit at least
        found.warnings.append(f"{key} of {length} leaves no room for a prompt in the context of {positions}; lower it")
        limit, length = positions, 0
    counts = lengths(tokenizer, texts, limit, special=special)
    if long := [(n, row_id) for n, row_id in zip(counts, rows["problem_id"], strict=True) if n > limit]:
        (found.problems if len(long) == len(rows) else found.warnings).append(
            f"{where}: {len(long)} of {len(rows)} prompts are longer than the {limit} tokens that the context of "
            f"{positions} leaves beside {length} to generate; the longest has {max(long)[0]} "
            f"({some([row_id for _, row_id in long])}). Leave them out, or lower {key}"
        )


def context(recipe: Recipe, args: Any) -> int | None:
    """Tokens of a prompt and its completion that the model, or the engine, takes; None where nothing says."""
    model = getattr(load_config(recipe.model).get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (model, args.vllm_max_model_length if args.use_vllm else None) if n]
    return min(limits, default=None)


def as_shown(tokenizer: Any, rows: Any, template_kwargs: dict[str, Any]) -> list[str]:
    """Prompts as text, messages through the chat template; ValueError for what the template refuses.

    The first is rendered under a time limit: a template may loop.
    """
    texts = []
    for i, (row_id, prompt) in enumerate(zip(rows["problem_id"], rows["prompt"], strict=True)):
        if not isinstance(prompt, str):
            render = functools.partial(_rendered, tokenizer, prompt, row_id, template_kwargs)
            prompt = (
                within(TEMPLATE_S, render, f"the chat template, on the prompt of {row_id},") if i == 0 else render()
            )
        texts.append(prompt)
    return texts


def _rendered(tokenizer: Any, prompt: Any, row_id: str, template_kwargs: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template_kwargs)
    except (ValueError, TypeError, ArithmeticError, RecursionError, TemplateError) as error:
        raise ValueError(
            f"the chat template cannot take the prompt of {row_id}: {first_line(error)}; mend chat_template"
        ) from error


def lengths(tokenizer: Any, texts: Sequence[str], limit: int, *, special: bool) -> list[int]:
    """Tokens of each text; 0 for one with so few bytes that it fits the limit, as a token takes a byte at least.

    special: with what the tokenizer puts around a text; a chat template has written it already.
    """
    counts = [0] * len(texts)
    doubtful = [i for i, text in enumerate(texts) if len(text.encode()) + SPECIAL > limit]
    if doubtful:
        ids = tokenizer([texts[i] for i in doubtful], add_special_tokens=special, verbose=False)["input_ids"]
        for i, found in zip(doubtful, ids, strict=True):
            counts[i] = len(found)
    return counts


def longest_prompt(tokenizer: Any, texts: Sequence[str], *, special: bool) -> int:
    """Tokens of the longest text, looked for among those of most bytes."""
    most = sorted(texts, key=lambda text: -len(text.encode()))[:LONGEST]
    return max(map(len, tokenizer(most, add_special_tokens=special, verbose=False)["input_ids"]))
