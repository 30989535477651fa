"""Words of the command line -> policies that play a game.

`guess`, `random`, `fixed`, `greedy`; `ip` and `cip` with `temperature` (of the exact belief, below 1 over-confident),
`model` (a folder whose language model supplies the belief instead), `eps`, and for `cip` `alpha` and `calibration`;
`model:PATH`, a trained player. Options follow a colon: `cip:alpha=0.2,calibration=100`.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entrl.environments.play import Policy
from entrl.environments.policies import PLAIN
from entrl.environments.pursuit import ConformalPursuit, InformationPursuit, exact_beliefs, language_beliefs
from entrl.settings.names import suggest

PURSUITS: dict[str, dict[str, Callable[[str], Any]]] = {
    "ip": {"temperature": float, "eps": float, "model": str},
    "cip": {"temperature": float, "eps": float, "model": str, "alpha": str, "calibration": int},
}
KNOWN = (*PLAIN, *PURSUITS, "model:PATH")


def distinct(specs: Sequence[str]) -> list[str]:
    twice = [spec for spec in specs if list(specs).count(spec) > 1]
    if twice:
        raise ValueError(f"--policy {twice[0]} is given twice; each policy plays every row once")
    return list(specs)


def parse_policy(spec: str, options: argparse.Namespace) -> Policy:
    """The policy of `greedy`, `cip:alpha=0.2` or `model:PATH`; ValueError for anything else."""
    name, _, rest = spec.partition(":")
    if name == "model":
        return _model_policy(spec, rest, options)
    if name in PLAIN and not rest:
        return PLAIN[name](name=spec, seed=options.seed)
    if name not in PURSUITS:
        hint = f"{name} takes no options." if name in PLAIN else f"no policy {name!r}.{suggest(name, KNOWN)}"
        raise ValueError(f"--policy {spec}: {hint} There are {', '.join(KNOWN)}")
    given = parse_options(rest, PURSUITS[name], spec)
    beliefs = _beliefs(given.pop("model", None), given.pop("temperature", 1.0), options)
    made: Callable[..., Policy] = InformationPursuit if name == "ip" else ConformalPursuit
    return made(name=spec, seed=options.seed, beliefs=beliefs, **given)


def parse_options(text: str, kinds: Mapping[str, Callable[[str], Any]], spec: str) -> dict[str, Any]:
    """`alpha=0.2,calibration=100`, each value of its kind."""
    found = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if not equals or key not in kinds:
            raise ValueError(
                f"--policy {spec}: unknown option {word!r}.{suggest(key, kinds)} It takes {', '.join(kinds)}"
            )
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise ValueError(f"--policy {spec}: {key} must be a number, got {value!r}") from None
    return found


def _beliefs(path: str | None, temperature: float, options: argparse.Namespace) -> Any:
    if path is None:
        return functools.partial(exact_beliefs, temperature=temperature)
    from entrl.models.load import load_policy

    return language_beliefs(*load_policy(path, dtype=options.dtype), temperature=temperature)


def _model_policy(spec: str, path: str, options: argparse.Namespace) -> Policy:
    from entrl.environments.model_policy import ModelPolicy
    from entrl.evaluation.asked import settled, template_kwargs
    from entrl.models.load import load_policy

    if not path:
        raise ValueError("--policy model needs a folder or a hub id: model:PATH")
    asked, taken = settled(path, {"chat_template_kwargs": template_kwargs(options.chat_template_kwargs)})
    if taken is not None and "chat_template_kwargs" in asked:
        print(f"asking {spec} as its run did: {taken}", file=sys.stderr)
    model, tokenizer = load_policy(path, dtype=options.dtype)
    return ModelPolicy(
        model=model,
        tokenizer=tokenizer,
        name=spec,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        max_completion_length=options.max_completion_length,
        chat_template_kwargs=asked.get("chat_template_kwargs") or {},
    )
