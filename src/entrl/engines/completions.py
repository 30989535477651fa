"""One generation request to a vLLM server and its answer: what is asked, and what is believed of what comes back.

A request names everything that changes the distribution, because a server fills what is left out from the model's
generation_config.json. Its seed follows from (base seed, version, prompt, chunk): a request that is sent again to
another replica draws the same completion, so retrying the slow ones does not favour the short ones, and two replicas
started with the same engine seed do not draw alike.

The log-prob of each token is the one listed under its own id. (Entries come sorted by rank: taking the first is wrong
as soon as more than one is asked for.)
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrl.engines.faults import RolloutError, StaleVersion
from entrl.settings.names import suggest

# Neutral values of what a server would otherwise read from the model folder.
NEUTRAL_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
OTHER_SAMPLING = ("max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "bad_words", "logit_bias")
OWN_SAMPLING = ("seed", "entrl")  # the base seed of all requests; options of our recorder inside the engine


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one sample brought.

    token_ids: as generated, the end-of-sequence token included.
    logprobs: nats, one per token, of the sampled token in the distribution it was drawn from.
    entropies: nats over the full vocabulary, kept_mass: share of it the sampler could draw from; None unless recorded.
    """

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float] | None
    kept_mass: list[float] | None
    version: int | None  # adapter version; None: the base model
    finish_reason: str  # "stop" or "length"


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """`samples` completions of one prompt, from number `first` on; `key` names it at the server and in the logs."""

    prompt: int
    first: int
    samples: int
    token_ids: Sequence[int]
    seed: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


def checked_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """`sampling` with the neutral values filled in. Raises ValueError for a key no server would read."""
    known = (*NEUTRAL_SAMPLING, *OTHER_SAMPLING, *OWN_SAMPLING)
    for key in sampling:
        if key not in known:
            raise ValueError(
                f"sampling has no key {key!r}.{suggest(key, known)} There are {', '.join(known)}; "
                "log-probs are always asked for, and n is an argument of generate"
            )
    limit = sampling.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"sampling.max_tokens must be a number of tokens >= 1, got {limit!r}")
    return {**NEUTRAL_SAMPLING, **sampling}


def make_items(
    prompts: Sequence[Sequence[int]], n: int, *, chunk: int | None, seed: int, version: int | None
) -> list[WorkItem]:
    """One item per prompt and chunk of at most `chunk` samples (None: all n in one request)."""
    if n < 1:
        raise ValueError(f"n must be >= 1 completions a prompt, got {n}")
    empty = [i for i, ids in enumerate(prompts) if not len(ids)]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens; a server refuses empty prompts")
    size = n if chunk is None else min(chunk, n)
    return [
        WorkItem(
            prompt=i,
            first=first,
            samples=min(size, n - first),
            token_ids=ids,
            seed=item_seed(seed, version, i, first),
        )
        for i, ids in enumerate(prompts)
        for first in range(0, n, size)
    ]


def item_seed(seed: int, version: int | None, prompt: int, first: int) -> int:
    """A seed below 2**62, far from every other request's: the server counts up from it for the samples of a request."""
    digest = hashlib.blake2b(f"{seed}/{version}/{prompt}/{first}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def request_body(item: WorkItem, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of POST /v1/completions; `sampling` as `checked_sampling` returns it."""
    body = {key: value for key, value in sampling.items() if key not in OWN_SAMPLING}
    body |= {
        "model": model,
        "prompt": list(item.token_ids),
        "n": item.samples,
        "seed": item.seed,
        "request_id": item.key,
        "logprobs": 0,  # the sampled token's alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }
    if sampling.get("entrl"):
        # vLLM's extra arguments are flat: numbers, strings and lists. So ours travel as one string.
        body["vllm_xargs"] = {"entrl": json.dumps({**sampling["entrl"], "key": item.key})}
    return body


def read_answer(
    answer: Mapping[str, Any], item: WorkItem, *, model: str, version: int | None, recorded: bool, url: str
) -> list[Completion]:
    """The item's completions in order. Raises StaleVersion, or RolloutError when something asked for is missing."""
    if answer.get("model") != model:
        raise StaleVersion(
            f"replica {url} answered a request for {model!r} with {answer.get('model')!r}; "
            "its completions were discarded. Another run may be using the same server"
        )
    choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(item.samples)):
        raise RolloutError(f"replica {url} returned {len(choices)} completions where {item.samples} were asked for")
    return [_read_choice(choice, version=version, recorded=recorded, url=url) for choice in choices]


def _read_choice(choice: Mapping[str, Any], *, version: int | None, recorded: bool, url: str) -> Completion:
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if not ids or not logprobs:
        raise RolloutError(
            f"replica {url} returned no token ids or no log-probs; it must be vLLM 0.31's /v1/completions "
            "(`entrl serve` starts one)"
        )
    named = [f"token_id:{i}" for i in ids]
    values = logprobs["token_logprobs"]
    if logprobs["tokens"] != named or len(values) != len(ids) or None in values:
        raise RolloutError(f"replica {url} returned log-probs of other tokens than it generated; do not train on them")
    record = choice.get("entrl")
    if recorded and record is None:
        raise RolloutError(
            f"replica {url} sent no entropies although they were asked for; "
            "start it with `entrl serve`, which loads our recorder and middleware"
        )
    entropies, kept = (record["entropies"], record["kept_mass"]) if recorded and record else (None, None)
    if entropies is not None and not len(entropies) == len(kept or ()) == len(ids):
        raise RolloutError(f"replica {url} recorded {len(entropies)} entropies for {len(ids)} tokens")
    return Completion(
        token_ids=list(ids),
        logprobs=[float(x) for x in values],
        entropies=entropies,
        kept_mass=kept,
        version=version,
        finish_reason=choice.get("finish_reason") or "",
    )
