"""What a vLLM API server does for us beyond vLLM: `--middleware entrl.engines.middleware.Rollouts`.

    POST /v1/completions             where `vllm_xargs` asks our recorder for values, every choice of the answer gets
                                     "entrl": {"entropies": [...], "kept_mass": [...]}, one number per token
    PUT  /v1/entrl/adapters/NAME     stores an adapter for trainers that share no folder with the server
    GET  /v1/entrl/info              what a trainer checks before it starts: weights, log-probs mode, adapter rank

vLLM puts user middleware outside its own, so this runs before vLLM looks at the API key: the key is checked here, and
nothing of a request without it is read. The values come from the engine's workers by `collective_rpc`, called in this
process; no remote way to call it is opened (vLLM's development endpoints, which have one without a key, stay off).
"""

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from entrl.engines.adapters import NAME, unpack_file
from entrl.engines.faults import AdapterRefused
from entrl.engines.fingerprint import model_fingerprint
from entrl.engines.recording import read_options
from entrl.engines.records import RecordError, match_all, unpack
from entrl.engines.servers import ADAPTER_PATH, INFO_PATH
from entrl.version import __version__

STORE_VARIABLE = "ENTRL_ADAPTER_STORE"  # folder for uploads; without it a temporary one
LIMIT_VARIABLE = "ENTRL_MAX_ADAPTER_BYTES"
MAX_ADAPTER_BYTES = 4 * 2**30  # rank 64 on all linear layers of a 32B model is 1.1e9 in 16 bits
MAX_COMPLETION_REQUEST = 64 * 2**20  # bytes; prompts come as token ids, about 7 bytes each
KEPT_VERSIONS = 4  # of one run: the served one, the one before, and room for a trainer that resumes
TAKE_TIMEOUT = 60.0  # seconds the engine may need to hand its records over

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """Answered with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Rollouts:
    """ASGI middleware; see the top of this file. One per API server process."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.store: Path | None = None
        self.uploaded: dict[str, str] = {}  # adapter name -> sha256 of what was sent
        self.weights: str | None = None  # fingerprint, read once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method = scope["method"]
        ours = path == INFO_PATH or path.startswith(ADAPTER_PATH)
        completion = method == "POST" and path == "/v1/completions"
        if not (ours or completion):
            return await self.app(scope, receive, send)
        if not has_key(scope):
            if completion:
                return await self.app(scope, receive, send)  # refused there, in vLLM's words
            return await _reply(send, 401, {"error": "Unauthorized"})
        if completion:
            return await self._complete(scope, receive, send)
        try:
            if path == INFO_PATH and method == "GET":
                answer = await self._info(scope["app"].state)
            elif path.startswith(ADAPTER_PATH) and method == "PUT":
                answer = await self._store(scope, receive, path.removeprefix(ADAPTER_PATH))
            else:
                raise Refused(405, f"{method} {path}: there are GET {INFO_PATH} and PUT {ADAPTER_PATH}NAME")
        except Refused as refusal:
            return await _reply(send, refusal.status, {"error": str(refusal)})
        await _reply(send, 200, answer)

    # --- entropies ----------------------------------------------------------------------------------------------

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _read(receive, MAX_COMPLETION_REQUEST)
            key = asked_key(body)
        except Refused as refusal:
            return await _reply(send, refusal.status, {"error": {"message": str(refusal), "code": refusal.status}})
        again = _replay(body, receive)
        if key is None:
            return await self.app(scope, again, send)
        engine = scope["app"].state.engine_client
        answer = _Answer()
        taken = False
        try:
            await self.app(scope, again, answer.send)
            if answer.status == 200:
                taken = True
                replies = await engine.collective_rpc("entrl_take", timeout=TAKE_TIMEOUT, args=([key],))
                answer.body = with_records(answer.body, replies, key)
        except RecordError as error:
            return await _reply(send, 500, {"error": {"message": str(error), "code": 500}})
        finally:
            if not taken:  # refused, failed, or nobody waits for the answer any more: do not keep the records
                await _forget(engine, key)
        await answer.pass_on(send)

    # --- adapters -----------------------------------------------------------------------------------------------

    async def _store(self, scope: Scope, receive: Receive, name: str) -> dict[str, Any]:
        if not NAME.fullmatch(name):
            raise Refused(400, f"{name!r} is no adapter name; they read entrl-<run>-v<version>")
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        wanted = headers.get("x-entrl-sha256", "")
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise Refused(400, "the header X-Entrl-SHA256 must hold the SHA-256 of the body, 64 hexadecimal digits")
        folder = self._folder() / name
        if name in self.uploaded and self.uploaded[name] != wanted:
            raise Refused(409, f"{name} was uploaded before with other content; a version is never replaced")
        part = folder.parent / f".{name}.{secrets.token_hex(4)}.part"
        try:
            size, found = await _receive_file(receive, part, announced=headers.get("content-length"))
            if found != wanted:
                raise Refused(400, f"{name}: {size:,} bytes arrived with another SHA-256 than announced; send it again")
            await asyncio.to_thread(unpack_file, part, folder)
        except AdapterRefused as error:
            raise Refused(400, f"{name}: {error}") from None
        finally:
            part.unlink(missing_ok=True)
        self.uploaded[name] = wanted
        self._tidy(name)
        return {"path": str(folder), "bytes": size}

    def _folder(self) -> Path:
        if self.store is None:
            asked = os.environ.get(STORE_VARIABLE)
            self.store = Path(asked) if asked else Path(tempfile.mkdtemp(prefix="entrl-adapters-"))
            self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.store

    def _tidy(self, name: str) -> None:
        """Keep the newest versions of this adapter's run."""
        run = name.rpartition("-v")[0]
        versions = sorted((n for n in self.uploaded if n.rpartition("-v")[0] == run), key=_version, reverse=True)
        for old in versions[KEPT_VERSIONS:]:
            shutil.rmtree(self._folder() / old, ignore_errors=True)
            del self.uploaded[old]

    # --- what it is ---------------------------------------------------------------------------------------------

    async def _info(self, state: Any) -> dict[str, Any]:
        config = state.vllm_config
        model, lora, parallel = config.model_config, config.lora_config, config.parallel_config
        if self.weights is None:
            self.weights = await asyncio.to_thread(model_fingerprint, model.model) or ""
        return {
            "entrl": __version__,
            "root": model.model,
            "weights": self.weights,
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "max_model_len": model.max_model_len,
            "max_lora_rank": lora.max_lora_rank if lora else 0,
            "max_loras": lora.max_loras if lora else 0,
            "data_parallel_size": parallel.data_parallel_size,
            "recorder": bool(parallel.worker_extension_cls),
        }


def has_key(scope: Scope) -> bool:
    """As vLLM decides it: any of its keys as a bearer token; a server without keys lets everybody in."""
    given = getattr(getattr(scope["app"].state, "args", None), "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    keys = [key for key in ([given] if isinstance(given, str) else given) if key]
    if not keys:
        return True
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, token = header.partition(b" ")
    digest = hashlib.sha256(token).digest()
    matches = [secrets.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]
    return scheme.lower() == b"bearer" and any(matches)


def asked_key(body: bytes) -> str | None:
    """Under which key a completion request asks for values; None: it does not. Raises Refused."""
    if b'"entrl"' not in body:  # most requests: not worth parsing
        return None
    try:
        request = json.loads(body)
        options = read_options(request.get("vllm_xargs")) if isinstance(request, dict) else None
    except ValueError as error:
        raise Refused(400, str(error)) from None
    if options is None or not options.record:
        return None
    if request.get("stream"):
        raise Refused(400, "entropies come with the whole answer; leave out stream")
    if not request.get("return_token_ids"):
        raise Refused(400, "entropies are matched to completions by token ids; set return_token_ids: true")
    if request.get("echo") or request.get("use_beam_search"):
        raise Refused(400, "entropies belong to sampled tokens; leave out echo and use_beam_search")
    return options.key


def with_records(body: bytes, replies: Any, key: str) -> bytes:
    """The answer with every choice's values. Raises RecordError."""
    answer = json.loads(body)
    choices = answer["choices"]
    records = match_all(
        unpack(replies)[key], [c["token_ids"] for c in choices], [c["prompt_token_ids"] for c in choices]
    )
    for choice, record in zip(choices, records, strict=True):
        choice["entrl"] = {"entropies": record.entropies, "kept_mass": record.kept_mass}
    return json.dumps(answer, separators=(",", ":")).encode()


async def _forget(engine: Any, key: str) -> None:
    """Drop what was recorded; a request that was cut off may still be writing, and the store is bounded anyway."""
    work = engine.collective_rpc("entrl_take", timeout=TAKE_TIMEOUT, args=([key],))
    await asyncio.wait([asyncio.ensure_future(work)], timeout=TAKE_TIMEOUT)


class _Answer:
    """A response held back until it is complete."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def pass_on(self, send: Send) -> None:
        if not self.status:
            return  # nobody is there any more
        headers = [(k, v) for k, v in self.headers if k.lower() != b"content-length"]
        headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then what else comes (the client going away)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _read(receive: Receive, limit: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request was cut off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise Refused(413, f"the request is larger than {limit:,} bytes; send fewer prompts at once")
        more = message.get("more_body", False)
    return b"".join(parts)


async def _receive_file(receive: Receive, path: Path, *, announced: str | None) -> tuple[int, str]:
    """Write the body to `path`; its bytes and SHA-256."""
    limit = int(os.environ.get(LIMIT_VARIABLE, MAX_ADAPTER_BYTES))
    too_large = f"an adapter may have at most {limit:,} bytes here; raise {LIMIT_VARIABLE}"
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise Refused(413, too_large)
    digest, size, more = hashlib.sha256(), 0, True
    with path.open("xb") as file:
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "the upload was cut off")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise Refused(413, too_large)
            digest.update(part)
            file.write(part)
            more = message.get("more_body", False)
    return size, digest.hexdigest()


def _version(name: str) -> int:
    return int(name.rpartition("-v")[2])


async def _reply(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
