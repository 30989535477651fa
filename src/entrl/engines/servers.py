"""One vLLM server over HTTP: is it the one this run needs, load and unload an adapter, ask for a completion.

Trouble that a restart or another replica can cure is raised as `Unreachable`; what no retry can cure as one of
`entrl.engines.faults`. Proxies named in the environment are not used: prompts and the key stay on the way to the
address in the recipe.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from entrl.engines.adapters import folder_bytes, pack
from entrl.engines.faults import AdapterRefused, ReplicaMismatch, RolloutError
from entrl.engines.fingerprint import model_fingerprint

KEY_VARIABLE = "ENTRL_VLLM_API_KEY"
INFO_PATH = "/v1/entrl/info"  # ours, from entrl.engines.middleware
ADAPTER_PATH = "/v1/entrl/adapters/"  # ours too
PROCESSED = "processed_logprobs"
SAME_LOGPROB = 1e-5  # nats; the most likely token's log-prob falls by tenths when the temperature doubles
MAX_TEXT = 400  # characters of a server's message that are repeated


def prompts_in_parts() -> bool:
    """Whether an engine here may read a prompt in two steps, as it does when more tokens wait than one step takes.

    Not on a CPU: with a seed vLLM 0.31 dies there of "CPU Generator does not use offset".
    """
    import torch  # seconds, which no other command of a server needs

    return torch.cuda.is_available()


class Unreachable(Exception):
    """No usable answer this time: refused, reset, timed out, 5xx, or the adapter is gone with a restart."""


@dataclass
class Replica:
    """A server and what is known of it. States: unchecked, up, down (being retried), lost (given up for this call)."""

    url: str
    state: str = "unchecked"
    failures: int = 0  # in a row; a completion sets it back
    lives: int = 0  # how often it came up: a failure counts only against the life it was sent in
    in_flight: int = 0  # requests
    answered: int = 0  # completions, in all
    last_error: str = ""
    base_id: str = ""  # how the server calls its base model
    info: dict[str, Any] = field(default_factory=dict)  # what it tells about itself; empty: nothing


def checked_urls(urls: Sequence[str], *, key: str = "trainer.vllm_replicas") -> list[str]:
    """Without trailing slashes. Raises ValueError for none, a repeated one, or one that is no http address.

    key: where they are written
    """
    cleaned = [url.rstrip("/").removesuffix("/v1") for url in urls]
    if not cleaned:
        raise ValueError(f"no replica is listed; set {key} to the addresses `entrl serve` prints")
    for i, url in enumerate(cleaned):
        checked_url(url, key=f"{key}.{i}")
        if cleaned.count(url) > 1:
            raise ValueError(f"{key}: replica {url} is listed {cleaned.count(url)} times; list each server once")
    return cleaned


def checked_url(url: str, *, key: str) -> SplitResult:
    """Its parts. ValueError for what is no http address of a server: no scheme, no host, a port that none can have."""
    why = ""
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query:
            return parts
    except (ValueError, httpx.InvalidURL) as error:
        why = f" ({error})"
    raise ValueError(f"{key} is no address: {url!r}{why}; write it like http://127.0.0.1:8000, its port in 1..65535")


def make_client(api_key: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=None,  # every call has a limit of its own, over its whole duration
        trust_env=False,
    )


async def call(
    client: httpx.AsyncClient, replica: Replica, method: str, path: str, *, timeout: float, **kwargs: Any
) -> httpx.Response:
    """The response, of any status below 500. Raises Unreachable, or ReplicaMismatch for a refused key."""
    try:
        async with asyncio.timeout(timeout):
            response = await client.request(method, replica.url + path, **kwargs)
    except TimeoutError:
        raise Unreachable(f"no answer to {method} {path} within {timeout:g} s") from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Unreachable(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from None
    if response.status_code == 401:
        raise ReplicaMismatch(
            f"replica {replica.url} refused the API key; set {KEY_VARIABLE} to the key it was started with "
            "(`entrl serve` prints the file that holds it)"
        )
    return response


def said(response: httpx.Response) -> str:
    """The server's message in one line."""
    try:
        body = response.json()
        error = body.get("error", body) if isinstance(body, dict) else body
        text = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        text = response.text
    return f"{response.status_code}: {' '.join(str(text).split())[:MAX_TEXT]}"


def _trouble_if_5xx(response: httpx.Response, what: str) -> None:
    if response.status_code >= 500:
        raise Unreachable(f"{what} failed, {said(response)}")


def _read_json(response: httpx.Response, what: str) -> Any:
    try:
        return response.json()
    except ValueError:
        raise Unreachable(f"{what} returned no JSON: {response.text[:80]!r}") from None


async def look(client: httpx.AsyncClient, replica: Replica, *, timeout: float) -> list[str]:
    """Fill in `base_id` and `info`; the adapters it has loaded. Raises Unreachable or ReplicaMismatch."""
    health = await call(client, replica, "GET", "/health", timeout=timeout)
    if health.status_code != 200:
        raise Unreachable(f"GET /health says {health.status_code}")
    response = await call(client, replica, "GET", "/v1/models", timeout=timeout)
    _trouble_if_5xx(response, "GET /v1/models")
    cards = _read_json(response, "GET /v1/models").get("data") or []
    bases = [card for card in cards if not card.get("parent")]
    if response.status_code != 200 or not bases:
        raise ReplicaMismatch(f"replica {replica.url} is no vLLM server: GET /v1/models says {said(response)}")
    replica.base_id = bases[0]["id"]
    replica.info = {"root": bases[0].get("root"), "max_model_len": bases[0].get("max_model_len")}
    replica.info |= await _told(client, replica, timeout=timeout)
    return [card["id"] for card in cards if card.get("root") and card["id"] != replica.base_id]


async def _told(client: httpx.AsyncClient, replica: Replica, *, timeout: float) -> dict[str, Any]:
    """From our own middleware, else from vLLM's development endpoint, else nothing."""
    response = await call(client, replica, "GET", INFO_PATH, timeout=timeout)
    if response.status_code == 200:
        return dict(_read_json(response, INFO_PATH))
    response = await call(client, replica, "GET", "/server_info?config_format=json", timeout=timeout)
    if response.status_code != 200:
        return {}
    config = _read_json(response, "/server_info").get("vllm_config", {})
    lora = config.get("lora_config") or {}
    return {
        "logprobs_mode": config.get("model_config", {}).get("logprobs_mode"),
        "dtype": str(config.get("model_config", {}).get("dtype", "")).removeprefix("torch."),
        "max_lora_rank": lora.get("max_lora_rank", 0),
        "max_loras": lora.get("max_loras", 0),
        "data_parallel_size": config.get("parallel_config", {}).get("data_parallel_size"),
    }


def check_identity(replica: Replica, *, base_model: str, lora_rank: int | None, processed: bool = True) -> None:
    """Raises ReplicaMismatch where the server says it is not what this run needs; what it does not tell passes."""
    info, url = replica.info, replica.url
    served = info.get("root") or replica.base_id
    ours = model_fingerprint(base_model) if info.get("weights") else None
    if ours is not None and ours != info["weights"]:
        raise ReplicaMismatch(
            f"replica {url} serves {served!r}, whose weights are not those of {base_model!r} (compared by samples of "
            "the safetensors files); start it with `entrl serve` on the same recipe and a copy of the same folder"
        )
    if ours is None and not same_model(base_model, [replica.base_id, info.get("root")]):
        raise ReplicaMismatch(
            f"replica {url} serves {served!r}, this run trains {base_model!r}; "
            "start it with `entrl serve` on the same recipe"
        )
    mode = info.get("logprobs_mode")
    if processed and mode is not None and not mode.startswith(PROCESSED):
        raise ReplicaMismatch(
            f"replica {url} returns {mode}, which are not those of the distribution sampled from; "
            f"start it with --logprobs-mode {PROCESSED} (`entrl serve` does)"
        )
    if lora_rank is None:
        return
    rank, slots, parallel = info.get("max_lora_rank"), info.get("max_loras"), info.get("data_parallel_size")
    if rank is not None and rank < lora_rank:
        why = f"takes adapters up to rank {rank}" if rank else "takes no adapters"
        raise ReplicaMismatch(
            f"replica {url} {why}, this run trains rank {lora_rank}; start it with --enable-lora "
            f"--max-lora-rank {lora_rank} or more (`entrl serve` does)"
        )
    if slots is not None and slots < 2:
        raise ReplicaMismatch(
            f"replica {url} holds {slots} adapter, a new version is loaded beside the old one; "
            "start it with --max-loras 2"
        )
    if parallel is not None and parallel > 1:
        raise ReplicaMismatch(
            f"replica {url} runs --data-parallel-size {parallel}, where an adapter reaches one part only; "
            "start that many servers instead and list them all in trainer.vllm_replicas"
        )


async def check_processed(client: httpx.AsyncClient, replica: Replica, *, timeout: float) -> None:
    """For a server that does not tell its log-probs mode: those of processed ones change with the temperature."""
    seen = []
    for temperature in (1.0, 2.0):
        body = {"model": replica.base_id, "prompt": [0, 1], "max_tokens": 1, "logprobs": 1, "temperature": temperature}
        answer = await complete(client, replica, {**body, "top_p": 1.0, "top_k": 0, "min_p": 0.0}, timeout=timeout)
        seen.append(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
    if abs(seen[0] - seen[1]) < SAME_LOGPROB:
        raise ReplicaMismatch(
            f"replica {replica.url} returns the same log-probs at temperatures 1 and 2 ({seen[0]:.6f}), so they are "
            f"not those of the distribution sampled from; start it with --logprobs-mode {PROCESSED}"
        )
    replica.info["logprobs_mode"] = f"{PROCESSED} (tried out)"


def same_model(wanted: str, served: Iterable[str | None]) -> bool:
    """By name or by the file system; another machine may keep the folder elsewhere, so its last part is enough."""
    names = [name for name in served if name]
    if wanted in names:
        return True
    last = Path(wanted).name
    return any(
        Path(name).name == last
        or (Path(name).exists() and Path(wanted).exists() and Path(name).resolve() == Path(wanted).resolve())
        for name in names
    )


async def load_adapter(
    client: httpx.AsyncClient, replica: Replica, name: str, folder: Path, *, upload: bool, timeout: float
) -> int:
    """Bytes that reached the server. Raises Unreachable, ReplicaMismatch or AdapterRefused."""
    path, sent = str(folder), folder_bytes(folder)
    if upload:
        data = pack(folder)
        path, sent = await _upload(client, replica, name, data, timeout=timeout), len(data)
    order = {"lora_name": name, "lora_path": path, "load_inplace": False}
    response = await call(client, replica, "POST", "/v1/load_lora_adapter", json=order, timeout=timeout)
    if response.status_code == 200 or (response.status_code == 400 and "already been loaded" in response.text):
        return sent  # a name is used once, so what is loaded under it is this adapter
    if response.status_code == 404 and "error" not in response.text:
        raise ReplicaMismatch(
            f"replica {replica.url} takes no adapters while it runs; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 "
            "and --enable-lora (`entrl serve` does)"
        )
    raise AdapterRefused(
        f"replica {replica.url} refused adapter {name} from {path} ({said(response)}); it must be readable there, "
        "whole, of the served base model and of at most the server's --max-lora-rank"
    )


async def _upload(client: httpx.AsyncClient, replica: Replica, name: str, data: bytes, *, timeout: float) -> str:
    """Where the server put it."""
    import hashlib

    response = await call(
        client,
        replica,
        "PUT",
        ADAPTER_PATH + name,
        content=data,
        headers={"X-Entrl-SHA256": hashlib.sha256(data).hexdigest(), "Content-Type": "application/octet-stream"},
        timeout=timeout,
    )
    _trouble_if_5xx(response, "adapter upload")
    if response.status_code == 404:
        raise ReplicaMismatch(
            f"replica {replica.url} takes no uploads and no folder is shared with it; start it with `entrl serve`, "
            "or set trainer.vllm_adapter_dir to a folder both can read"
        )
    if response.status_code != 200:
        raise AdapterRefused(f"replica {replica.url} refused the upload of {name}, {said(response)}")
    return str(_read_json(response, "adapter upload")["path"])


async def unload_adapter(client: httpx.AsyncClient, replica: Replica, name: str, *, timeout: float) -> None:
    """A name it does not have is no error."""
    await call(client, replica, "POST", "/v1/unload_lora_adapter", json={"lora_name": name}, timeout=timeout)


async def complete(
    client: httpx.AsyncClient, replica: Replica, body: Mapping[str, Any], *, timeout: float
) -> Mapping[str, Any]:
    """The answer to one completion request. Raises Unreachable, ReplicaMismatch or RolloutError."""
    response = await call(client, replica, "POST", "/v1/completions", json=body, timeout=timeout)
    _trouble_if_5xx(response, "generation")
    if response.status_code == 404:
        raise Unreachable(f"it has no model {body['model']!r} any more (restarted?), {said(response)}")
    if response.status_code == 429:
        raise Unreachable(f"it is full, {said(response)}")
    if response.status_code != 200:
        raise RolloutError(f"replica {replica.url} refused a generation request, {said(response)}")
    try:
        return json.loads(response.content)
    except ValueError:
        raise Unreachable("the answer was cut short") from None
