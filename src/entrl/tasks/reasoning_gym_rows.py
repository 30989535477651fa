"""reasoning-gym problems without repeats, with train and test disjoint by construction.

reasoning-gym seeds item i with `seed + i`, so the datasets of seeds 0 and 1 share all but one item, and small
problem spaces repeat by chance besides. So a problem's text decides its side (`entrl.tasks.rows.side_of`). Items of the
other side and repeats are skipped. The first n rows do not depend on how many are asked for.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from entrl.settings.groups import field_hints, typed
from entrl.settings.names import suggest
from entrl.tasks.rows import Row, chat, digest, side_of, verifier_json
from entrl.verify.gym_scorers import check_dataset

CHUNK = 256  # items generated per reasoning-gym dataset object
MAX_FAILURES = 20  # items in a row that the generator gives up before we do
MAX_BARREN = 4096  # items in a row that add nothing before we say that the problem space is used up

# Options whose own default is of another type than their annotation.
MISTYPED = {("intermediate_integration", "symbols"), ("polynomial_multiplication", "variables"), ("rearc", "diff_ub")}

ANSWER_TAGS = "Put your final answer between <answer> and </answer> tags."


def chat_rows(
    name: str, *, split: str, size: int, seed: int, instruction: str = ANSWER_TAGS, system: str = "", **config: Any
) -> list[Row]:
    """Chat rows of one reasoning-gym dataset; `config` holds the fields of its config class.

    instruction: stands behind every question, system: the system prompt; "" leaves them out.
    """
    rows = []
    for item, verifier in distinct_items(name, config, split=split, size=size, seed=seed):
        level = item["metadata"].get("difficulty", "")
        rows.append(
            Row(
                prompt=chat(item["question"], instruction=instruction, system=system),
                answer="" if item["answer"] is None else str(item["answer"]),  # None: many right answers
                verifier=verifier,
                problem_id=f"{name}/{digest(item['question']):016x}",
                level=json.dumps(level, sort_keys=True, default=str) if level else "",
            )
        )
    return rows


def distinct_items(
    name: str,
    config: dict[str, Any],
    *,
    split: str,
    size: int,
    seed: int,
    key: Callable[[dict[str, Any]], str] = lambda item: item["question"],
) -> list[tuple[dict[str, Any], str]]:
    """`size` different items of one side of the split, each with its verifier; two are the same where `key` is."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    barren = 0
    for item, where in _items(name, config, seed=seed):
        text = key(item)
        if side_of(text) != split or text in found:
            barren += 1
            if barren >= MAX_BARREN:
                raise ValueError(
                    f"reasoning-gym {name!r} with {config} has no more {split} problems after {len(found)} "
                    f"of the {size} asked for; ask for at most {len(found)}, or widen its config"
                )
            continue
        barren = 0
        found[text] = item, _verifier(name, config, item, where)
        if len(found) == size:
            break
    return list(found.values())


def _items(name: str, config: dict[str, Any], *, seed: int) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    start = digest(f"{name}/{seed}") % 2**30  # seeds start far apart
    failures = 0
    while True:
        dataset = create(name, {**config, "seed": start, "size": CHUNK})
        for index in range(CHUNK):
            try:
                item = dataset[index]
            except ValueError as error:  # countdown draws a hundred times at most
                failures += 1
                if failures == MAX_FAILURES:
                    raise ValueError(
                        f"reasoning-gym {name!r} makes no problem with {config}: {error}; widen its config"
                    ) from error
                continue
            failures = 0
            yield item, (start, index)
        start += CHUNK


def _verifier(name: str, config: dict[str, Any], item: dict[str, Any], where: tuple[int, int]) -> str:
    """The item itself where JSON keeps it whole, else (tuples, int keys) where to generate it again.

    `difficulty` repeats the config, mostly as tuples, and no scorer reads it.
    """
    metadata = {key: value for key, value in item["metadata"].items() if key != "difficulty"}
    entry = {**item, "metadata": metadata}
    try:
        whole = json.loads(json.dumps(entry)) == entry
    except TypeError:
        whole = False
    if whole:
        return verifier_json("reasoning_gym", dataset=name, config=config, entry=entry)
    chunk_seed, index = where
    place = {**config, "seed": chunk_seed, "size": CHUNK}
    return verifier_json("reasoning_gym", dataset=name, config=place, index=index)


def create(name: str, config: dict[str, Any]) -> Any:
    """A reasoning-gym dataset, with errors that name the misspelt dataset or option, or a scorer that runs code."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        hint = suggest(name, DATASETS)
        raise ValueError(f"reasoning-gym has no dataset {name!r}.{hint} It has {len(DATASETS)}: {sorted(DATASETS)}")
    check_dataset(name)
    known = field_hints(DATASETS[name][1])
    for key, value in config.items():
        if key not in known:
            hint = suggest(key, known)
            raise ValueError(f"reasoning-gym {name!r} has no option {key!r}.{hint} It takes: {', '.join(known)}")
        if (name, key) not in MISTYPED:
            typed(value, known[key], f"reasoning-gym {name!r}: {key}")
    try:
        return reasoning_gym.create_dataset(name, **config)
    except AssertionError as error:  # its configs validate themselves with assert
        raise ValueError(f"reasoning-gym {name!r} refuses {config}: {error}") from error
