"""Which question a model asks after held-out prefixes, and what it is worth.

    written   the model's greedy turn, read by the tool loop's parser; what is no open question is worth 0
    ranked    the candidate whose whole turn the model finds most likely, of those that are listed
    best      the largest expected gain; random: the mean over open questions

Every number is a mean over prefixes; 95 % intervals, Wilson's for shares, a bootstrap over prefixes for bits. Prefixes
of one row share its table, so with few rows the intervals are too narrow.

Needs:   torch
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from entrl.environments.events import BadArguments, matched
from entrl.environments.model_policy import Ids, ModelPolicy
from entrl.environments.play import Message
from entrl.stats.intervals import bootstrap_interval, wilson_interval
from entrl.teach.offline.candidates import Group
from entrl.teach.offline.rendering import Rendering

KINDS = ("question", "repeated", "submit", "other")


def measure(
    model: Any,
    tokenizer: Any,
    groups: Sequence[Group],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the model does after each prefix; keys `best`, `random`, `written`, `ranked`, and `per_prefix` gains."""
    rendering = Rendering(tokenizer, chat_template_kwargs)
    policy = ModelPolicy(model=model, tokenizer=tokenizer, chat_template_kwargs=chat_template_kwargs or {})
    written, ranked = [], []
    with policy._as_sampler():
        for start in range(0, len(groups), batch_size):
            part = groups[start : start + batch_size]
            prefixes = [rendering.prefix(group.prompt, group.tools) for group in part]
            for group, prefix, ids in zip(part, prefixes, policy.generate(prefixes, max_new_tokens), strict=True):
                written.append(choice_of(policy._parsed(ids, prefix, group.tools) if ids else {}, group))
        for group in groups:
            prefix = rendering.prefix(group.prompt, group.tools)
            turns = [rendering.turn(group.prompt, c.message, group.tools) for c in group.candidates]
            ranked.append(int(np.argmax(turn_log_probs(model, prefix, turns, batch_size=batch_size))))
    top = [group.candidates[i] for group, i in zip(groups, ranked, strict=True)]
    gains = {
        "written": [g.gains.get(question, 0.0) for g, (_, question) in zip(groups, written, strict=True)],
        "ranked": [g.gains.get(c.key, 0.0) if c.kind != "submit" else 0.0 for g, c in zip(groups, top, strict=True)],
        "best": [group.best for group in groups],
        "random": [group.random for group in groups],
    }
    hits = {
        "written": [kind == "question" and g.is_best(q) for g, (kind, q) in zip(groups, written, strict=True)],
        "ranked": [c.kind != "submit" and g.is_best(c.key) for g, c in zip(groups, top, strict=True)],
    }
    by_chance = fmean(fmean(map(g.is_best, g.open)) if g.open else 0.0 for g in groups)
    kinds = [kind for kind, _ in written]
    return {
        "prefixes": len(groups),
        "best": mean_bits(gains["best"]),
        "random": mean_bits(gains["random"]) | {"best_share": by_chance},
        "written": {
            "gain": mean_bits(gains["written"]),
            "best_share": share_of(hits["written"]),
            "kinds": {kind: kinds.count(kind) / len(kinds) for kind in KINDS},
        },
        "ranked": {"gain": mean_bits(gains["ranked"]), "best_share": share_of(hits["ranked"])},
        "per_prefix": gains,
    }


def choice_of(reply: Message, group: Group) -> tuple[str, str]:
    """(one of KINDS, the question) of a parsed turn; of several calls the first counts."""
    calls = reply.get("tool_calls") or []
    function = calls[0].get("function", {}) if calls else {}
    arguments = function.get("arguments")
    if function.get("name") == "submit":
        return "submit", ""
    if function.get("name") != "ask" or not isinstance(arguments, Mapping) or len(arguments) != 1:
        return "other", ""
    try:
        question = matched(next(iter(arguments.values())), group.gains, "question")
    except BadArguments:
        return "other", ""
    return ("question" if question in group.open else "repeated"), question


def turn_log_probs(model: Any, prefix: Ids, turns: Sequence[Ids], *, batch_size: int) -> list[float]:
    """log p(turn | prefix) of each turn, nats, summed over its tokens."""
    import torch

    found = []
    for start in range(0, len(turns), batch_size):
        part = turns[start : start + batch_size]
        width = max(map(len, part))
        rows = [[*prefix, *turn, *[0] * (width - len(turn))] for turn in part]  # behind the turn: nobody looks there
        ids_BT = torch.tensor(rows, device=model.device)
        logits_BTV = model(input_ids=ids_BT, logits_to_keep=width + 1).logits[:, :-1].float()
        log_probs_BT = logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, len(prefix) :, None]).squeeze(-1)
        found += [log_probs_BT[i, : len(turn)].sum().item() for i, turn in enumerate(part)]
    return found


def mean_bits(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(np.array(values, dtype=np.float64), seed=0)
    return {"mean": float(np.mean(values)), "lo": low, "hi": high}


def share_of(hits: Sequence[bool]) -> dict[str, float]:
    low, high = wilson_interval(sum(hits), len(hits))
    return {"mean": float(np.mean(hits)), "lo": low, "hi": high}


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Mean gain after - before on the same prefixes, of the written and of the ranked choice."""
    found = {}
    for name in ("written", "ranked"):
        pairs = zip(before["per_prefix"][name], after["per_prefix"][name], strict=True)
        found[name] = mean_bits([late - early for early, late in pairs])
    assert all(math.isfinite(value) for one in found.values() for value in one.values())
    return found
