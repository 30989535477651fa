"""What rewards of models and services need before their first call: a model, a key, a place for answers, a listener."""

import os
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from entrl.models.scorers import scorer_problem
from entrl.settings.names import Loaded

KNOCK_S = 3.0  # seconds in which somebody must answer the door
PORTS = {"http": 80, "https": 443}


def service_problems(rewards: Sequence[Loaded]) -> list[str]:
    """What is wrong whoever listens; asks nobody."""
    out = []
    for i, reward in enumerate(rewards):
        where, own = f"rewards.{i}.args", reward.value
        path, key, cache = (getattr(own, name, None) for name in ("path", "api_key_env", "cache_file"))
        out += _path_problems(f"{where}.path of {reward.source}", path, reward)
        if isinstance(key, str) and not os.environ.get(key):
            out.append(f"{where}.api_key_env of {reward.source} names {key}, which is not set here; set it")
        if isinstance(cache, str) and not _can_be_written(Path(cache).expanduser()):
            out.append(f"{where}.cache_file of {reward.source}: {cache} cannot be written; name another place")
    return out


def _path_problems(what: str, path: Any, reward: Loaded) -> list[str]:
    if path == "":
        return [f"{what} is empty; name the folder or hub id of the model that scores"]
    if not isinstance(path, str):
        return []
    there = Path(path).expanduser().is_dir()
    if path.startswith((".", "/", "~")) and not there:
        return [f"{what}: the folder {path} does not exist; correct it"]
    scores = reward.source.startswith("entrl_rewards.reward_model:")
    why = scorer_problem(path) if there and scores else None
    return [f"{what}: {path}: {why}"] if why else []


def _can_be_written(file: Path) -> bool:
    there = next(place for place in (file, *file.absolute().parents) if place.exists())
    return os.access(there, os.W_OK) and (there == file or there.is_dir())


def silent_services(rewards: Sequence[Loaded]) -> list[str]:
    """Addresses of the `url` of a reward where nobody answers: a connection is opened and closed.

    Not asked where a proxy stands between, or a file may hold every answer already.
    """
    out = []
    for i, reward in enumerate(rewards):
        url, cache = getattr(reward.value, "url", None), getattr(reward.value, "cache_file", None)
        if isinstance(url, str) and not (cache and Path(cache).expanduser().is_file()) and (why := _silence(url)):
            out.append(f"rewards.{i}.args.url of {reward.source}: {why}; start that server, or correct url")
    return out


def _silence(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError as error:  # a port that is none
        return f"it is no address ({error})"
    if parts.scheme not in PORTS:  # none of ours
        return None
    if not host:
        return "it names no host"
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=KNOCK_S).close()
    except OSError as error:
        return f"nobody answers at {host}:{port} ({error.strerror or error or type(error).__name__})"
    return None
