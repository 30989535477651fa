"""Tokens and keys, masked in whatever is printed or kept: the one list of what they are called and what they look like.

A key of settings is secret by its name (`hub_token`, `api_key`, `Authorization`), a text by its looks (`hf_...`,
`Bearer ...`, a password in an address) or because it is the value of a variable of this process with such a name.
A name that ends in `_env` or `_variable` says where a key is, and stays.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
SHORTEST = 8  # characters of a variable's value that is looked for in texts; shorter ones would hide words

_WORDS = r"api_?key|access_?key|private_?key|secret|passw(?:or)?d|passphrase|authorization|credentials?|cookie"
# A name ending in `token` is a secret, but for the words a tokenizer has.
_TOKEN = r"(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!image_)(?<!video_)(?<!audio_)"
_TOKEN += r"(?<!stop_)(?<!think_)(?<!end_)(?<!start_)(?<!per_)(?<![a-z])token"
_WHOSE = "openai|anthropic|hf|judge|wandb|server|signing|ssh|encryption|deploy|license|master|service|account|auth"
_SHORT = r"auth|bearer|pass|pat|jwt|dsn|api_?token|token_?\d+|token_value"
SECRET_NAME = re.compile(
    rf"(?:^|_)(?:{_WORDS})(?:s|_[a-z0-9]+)?$|(?:^|_)(?:(?:{_WHOSE})_?key|{_SHORT})$|_pwd$|{_TOKEN}$"
)  # PWD alone is where a shell stands
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # accessToken
NOT_SECRET = re.compile(r"_(?:env|variable|var|file|path|id|ids|count|name)$")
SECRET_LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}\b|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}\b|\bgithub_pat_[A-Za-z0-9_]{20,}"
    r"|\bxox[abp]-[A-Za-z0-9-]{10,}|\bAKIA[0-9A-Z]{16}\b|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?:(?<=Bearer )|(?<=Basic ))[A-Za-z0-9._~+/=-]{20,}"
)
# name=value, name: value, --name value: in the words of a command and in messages
ASSIGNED = re.compile(
    r"""(?P<name>[A-Za-z][\w-]*)(?P<between>["']?[ \t]*[=:][ \t]*(?:Bearer |Basic )?)"""
    r"""(?P<value>"[^"]*"|'[^']*'|[^\s"',;{}\[\]()]+)"""
)
HEADER = re.compile(r"^((?:authorization|x-api-key|cookie): *(?:(?:bearer|basic) +)?)\S.*", re.I)  # all of a text
QUERY = re.compile(r"(?P<before>[?&])(?P<name>[A-Za-z][\w-]*)=(?P<value>[^&#\s]+)")  # of an address
OPTION = re.compile(r"--(?P<name>[A-Za-z][\w-]*)(?P<between>\s+)(?P<value>[^\s-]\S*)")


def is_secret(name: str) -> bool:
    """Whether a key, an option or a variable of this name holds a token, a key or a password."""
    plain = CAMEL.sub("_", name.rpartition(".")[2]).lower().lstrip("-").replace("-", "_")
    return NOT_SECRET.search(plain) is None and SECRET_NAME.search(plain) is not None


def mask(content: Any) -> Any:
    """Settings with every secret masked, at any depth; what is null or empty stays, for it says that there is none."""
    if isinstance(content, Mapping):
        return {key: _hidden(value) if is_secret(str(key)) else mask(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [mask(value) for value in content]
    return _by_looks(content) if isinstance(content, str) else content


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(inner) for inner in value]
    return value if value in (None, "") or isinstance(value, bool) else MASK


def _by_looks(text: str) -> str:
    text = SECRET_LOOKS.sub(MASK, text)
    text = HEADER.sub(rf"\g<1>{MASK}", text)
    text = QUERY.sub(lambda m: f"{m['before']}{m['name']}={MASK}" if is_secret(m["name"]) else m[0], text)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and is_secret(name) and value in text:
            text = text.replace(value, MASK)
    return text


def mask_text(text: str) -> str:
    """A message or a command with what looks like a secret, is one of this process's, or is set by name masked."""

    def assigned(found: re.Match[str]) -> str:
        if not is_secret(found["name"]) or found["value"] in ("null", "None", "~", '""', "''"):
            return found[0]
        return found[0][: found.start("value") - found.start()] + MASK

    return _by_looks(OPTION.sub(assigned, ASSIGNED.sub(assigned, text)))


def mask_words(words: Sequence[str]) -> list[str]:
    """A command's words: `key=secret` and `--key secret`."""
    masked = []
    for position, word in enumerate(words):
        before = words[position - 1] if position else ""
        hidden = before.startswith("--") and "=" not in before and is_secret(before) and not word.startswith("--")
        masked.append(MASK if hidden else _mask_word(word))
    return masked


def _mask_word(word: str) -> str:
    """`key=value`, the value read as the YAML that it is: a secret in it may hold blanks."""
    from entrl.settings.yaml import parse_yaml  # brings yaml, which `entrl --help` does without

    key, equals, value = word.partition("=")
    if equals and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            content = parse_yaml(value, name=key)
            if (hidden := mask(content)) != content:
                return f"{key}={json.dumps(hidden)}"
    return mask_text(word)


def refuse_masked(content: Any, where: str = "") -> None:
    """ValueError for a secret that reads ***: the recipe of a run folder was used as a recipe."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        name = f"{where}.{key}" if where else str(key)
        if value == MASK and is_secret(str(key)):
            raise ValueError(f"{name} is masked ({MASK}): a run folder keeps no secret; give it anew, or take it out")
        refuse_masked(value, name)


def without_masked(content: Any) -> Any:
    """Settings without the secrets that are masked."""
    if isinstance(content, Mapping):
        return {key: without_masked(v) for key, v in content.items() if not (v == MASK and is_secret(str(key)))}
    return [without_masked(value) for value in content] if isinstance(content, list) else content


def hand_over_hub_token(args: Any) -> None:
    """The hub's token leaves the training arguments, which are pickled into every checkpoint, for its own variable."""
    token, args.hub_token = args.hub_token, None
    if token and args.push_to_hub:
        os.environ["HF_TOKEN"] = token
