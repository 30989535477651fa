"""`entrl serve RECIPE`: the vLLM server that generates for a recipe, started with what its trainer will check.

A recipe with `lora` and `trainer.vllm_replicas` gets vLLM's own server with adapters, processed log-probs, our recorder
and our middleware; one with `trainer.vllm_mode: server` and full weights gets TRL's, which takes weights over NCCL
(needs CUDA; built here, not covered by our tests). TRL's client gives no key, so that one asks for none.

It listens on 127.0.0.1 and asks for a key unless told otherwise. The key is ENTRL_VLLM_API_KEY, else the content of
`<run folder>.vllm_api_key`, made on first use and readable by its owner alone; it travels in the environment, not on
the command line, where every user of the machine could read it.
"""

import atexit
import contextlib
import importlib.metadata
import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from entrl.engines.adapters import adapter_rank, server_rank
from entrl.engines.background import end_with_parent
from entrl.engines.middleware import STORE_VARIABLE
from entrl.engines.servers import KEY_VARIABLE, PROCESSED, checked_url, prompts_in_parts
from entrl.models.load import base_of, refuse_adapter
from entrl.runs.wording import shown
from entrl.sandbox.groups import end_group, ended, wait_for
from entrl.settings.secrets import mask_words

if TYPE_CHECKING:
    from entrl.runs.recipe import Recipe

LOCAL = "127.0.0.1"
FIRST_PORT = 8000
MAX_LORAS = 2  # the served version and the next one, loaded beside it
TAIL = 40  # lines of the log shown when a server fails
GRACE = 15.0  # seconds between asking a server to end and ending it
KEYS_PASSED_ON = {  # keys of `trainer:` -> vLLM's options; only where the recipe sets them
    "vllm_max_model_length": "--max-model-len",
    "vllm_gpu_memory_utilization": "--gpu-memory-utilization",
    "vllm_tensor_parallel_size": "--tensor-parallel-size",
    "vllm_model_impl": "--model-impl",
}


class ServerFailed(ConnectionError):
    """The server ended, or did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """What is started. `environment` is added to the caller's and holds no key."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    host: str  # it listens on
    port: int
    asks_key: bool = True  # whether its trainer's client gives one

    @property
    def url(self) -> str:
        """For programs on this machine."""
        host = LOCAL if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def render(self) -> str:
        """As one would type it."""
        variables = [f"{k}={shlex.quote(v)}" for k, v in sorted(self.environment.items())]
        return " ".join([*variables, shlex.join(mask_words(self.argv))])


def server_command(
    recipe: "Recipe", *, replica: int = 0, host: str | None = None, port: int | None = None, extra: str = ""
) -> ServerCommand:
    """The command for one of the recipe's servers. Raises ValueError for a recipe that needs none."""
    trainer = recipe.trainer
    urls = trainer.get("vllm_replicas")
    if urls is None:
        if trainer.get("use_vllm") and trainer.get("vllm_mode") == "server":
            return _trl_command(recipe, host=host, port=port, extra=extra)
        raise ValueError(
            f"recipe {recipe.name} asks for no server; set trainer.vllm_replicas to its address, such as "
            f"[http://{LOCAL}:{FIRST_PORT}], to train a LoRA adapter with it"
        )
    if recipe.lora is None:
        raise ValueError(
            f"recipe {recipe.name} lists vllm_replicas but has no lora group; these servers are sent adapters only. "
            "Add lora, or train full weights with trainer.vllm_mode: colocate"
        )
    if not 0 <= replica < len(urls):
        raise ValueError(f"--replica counts from 0 and the recipe lists {len(urls)}, got {replica}")
    host, port = _address(urls[replica], replica, host, port)
    model, revision = base_of(recipe.model.path, revision=recipe.model.revision)
    argv = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--dtype", served_dtype(recipe)),
        *("--host", host, "--port", str(port)),
        *("--enable-lora", "--max-lora-rank", str(server_rank(adapter_rank(recipe.lora)))),
        *("--max-loras", str(MAX_LORAS), "--logprobs-mode", PROCESSED),
        *("--worker-extension-cls", "entrl.engines.records.WorkerExtension"),
        *("--middleware", "entrl.engines.middleware.Rollouts"),
        "--disable-uvicorn-access-log",
        *(() if prompts_in_parts() else ("--no-enable-chunked-prefill",)),
        *(("--revision", revision) if revision else ()),
        *_model_options(recipe),
        # of the trainer's base the same weights, by the same library
        *(("--quantization", "bitsandbytes") if recipe.model.quantization is not None else ()),
        *shlex.split(extra),
    ]
    return ServerCommand(argv=argv, environment=_environment(len(urls)), host=host, port=port)


def _address(url: str, replica: int, host: str | None, port: int | None) -> tuple[str, int]:
    """Where to listen for a replica the trainer will call at `url`."""
    parts = checked_url(url, key=f"trainer.vllm_replicas.{replica}")
    if host is None and parts.hostname not in (LOCAL, "localhost", "::1"):
        raise ValueError(
            f"replica {replica} is called at {url}, from other machines; say where it listens with --host 0.0.0.0 "
            "(every machine that reaches this one) or --host ADDRESS. Without --host it would listen on "
            f"{LOCAL} alone"
        )
    return host or LOCAL, port or parts.port or FIRST_PORT


def served_dtype(recipe: "Recipe") -> str:
    """What the trainer computes in: 32-bit weights under bf16 or fp16 autocast are served in 16 bits."""
    if recipe.model.dtype != "float32":
        return recipe.model.dtype
    if recipe.trainer.get("fp16"):
        return "float16"
    bf16 = recipe.trainer.get("bf16")
    return "float32" if bf16 is False else "bfloat16"  # TRL switches bf16 on where a recipe says nothing


def _model_options(recipe: "Recipe") -> list[str]:
    options: list[str] = []
    if recipe.model.tokenizer:
        options += ["--tokenizer", recipe.model.tokenizer]
    if recipe.model.trust_remote_code:
        options.append("--trust-remote-code")
    for key, option in KEYS_PASSED_ON.items():
        if recipe.trainer.get(key) is not None:
            options += [option, str(recipe.trainer[key])]
    return options


def _environment(replicas: int) -> dict[str, str]:
    """Settings the server needs; on machines without a GPU also those of vLLM's CPU build, unless they are set."""
    needed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
    if not cpu_build():
        return needed
    threads = max(1, (os.cpu_count() or 1) // (replicas + 1))  # the trainer wants some too
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own default is 4 and more
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two servers would share cores
        "OMP_NUM_THREADS": str(threads),
    }
    return needed | {k: v for k, v in defaults.items() if k not in os.environ}


def cpu_build() -> bool:
    """Whether the installed vLLM is the one for machines without a GPU."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _trl_command(recipe: "Recipe", *, host: str | None, port: int | None, extra: str) -> ServerCommand:
    """TRL's server for full weights; TRL binds it to every address by default, we do not."""
    if recipe.lora is None:
        refuse_adapter(recipe.model.path, "the engine would read its base alone", revision=recipe.model.revision)
    model, revision = base_of(recipe.model.path, revision=recipe.model.revision)
    host = host or LOCAL
    port = port or int(recipe.trainer.get("vllm_server_port", FIRST_PORT))
    names = {"vllm_max_model_length": "--max_model_len", "vllm_gpu_memory_utilization": "--gpu_memory_utilization"}
    names |= {"vllm_tensor_parallel_size": "--tensor_parallel_size", "vllm_model_impl": "--vllm_model_impl"}
    argv = [
        *(sys.executable, "-m", "trl.scripts.vllm_serve", "--model", model),
        *("--dtype", served_dtype(recipe), "--host", host, "--port", str(port)),
        *(("--revision", revision) if revision else ()),
        *(("--trust_remote_code", "true") if recipe.model.trust_remote_code else ()),
    ]
    for key, option in names.items():
        if recipe.trainer.get(key) is not None:
            argv += [option, str(recipe.trainer[key])]
    return ServerCommand(argv=[*argv, *shlex.split(extra)], host=host, port=port, asks_key=False)


# --- the key ------------------------------------------------------------------------------------------------------


def key_file(run_dir: Path) -> Path:
    """Beside the run folder: that one must not exist before training starts."""
    return run_dir.parent / f"{run_dir.name}.vllm_api_key"


def find_api_key(run_dir: Path, variable: str = KEY_VARIABLE) -> str | None:
    """The servers' key: of the environment, else of the recipe's key file, else None."""
    if os.environ.get(variable):
        return os.environ[variable]
    file = key_file(run_dir)
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None


def make_api_key(run_dir: Path, variable: str = KEY_VARIABLE) -> tuple[str, Path | None]:
    """(key, the file that holds it; None: it came from the environment). Servers of one recipe share the file."""
    if os.environ.get(variable):
        return os.environ[variable], None
    file = key_file(run_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        handle, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
        with contextlib.suppress(FileExistsError):  # servers that start together take the first one's
            os.link(fresh, file)
        os.unlink(fresh)
    if file.stat().st_mode & 0o077:
        raise ValueError(f"{file} can be read by others than its owner; chmod 600 it, or delete it for a new key")
    key = file.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"{file} is empty; delete it for a new key")
    return key, file


# --- the process --------------------------------------------------------------------------------------------------


class Server:
    """A started server; `stop` (also at the end of a `with`, and when this process ends) takes its children along."""

    def __init__(self, command: ServerCommand, *, api_key: str | None, log: Path) -> None:
        check_port(command.host, command.port)
        self.command = command
        self.log = log
        self.started = time.monotonic()
        self.store = Path(tempfile.mkdtemp(prefix="entrl-adapters-"))  # readable by this user alone
        environment = {**os.environ, **command.environment, STORE_VARIABLE: str(self.store)}
        environment.pop("VLLM_API_KEY", None)
        if api_key:
            environment["VLLM_API_KEY"] = api_key
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command.argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that its workers can be ended with it
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        atexit.register(self.stop)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, timeout: float) -> float:
        """Seconds it took to answer. Raises ServerFailed with the end of the log."""
        url = self.command.url + "/health"
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() - self.started < timeout:
                if (code := ended(self.process)) is not None:
                    raise self._failed(f"ended with status {code} before it was ready")
                with contextlib.suppress(httpx.TransportError):
                    if client.get(url).status_code == 200:
                        return time.monotonic() - self.started
                time.sleep(0.5)
        raise self._failed(f"did not answer within {timeout:g} s; raise --timeout")

    def wait(self) -> int:
        """Until it ends: its exit status. `stop` ends what is left of it."""
        return wait_for(self.process)

    def _failed(self, what: str) -> ServerFailed:
        print(shown(tail(self.log)), file=sys.stderr)
        return ServerFailed(f"the server on {self.command.url} {what}; the end of {self.log} is above")

    def stop(self) -> None:
        atexit.unregister(self.stop)
        end_group(self.process, patience_s=GRACE)  # and workers that outlived it
        shutil.rmtree(self.store, ignore_errors=True)


def check_port(host: str, port: int) -> None:
    """Raises ValueError where something listens already: vLLM says so with a traceback, after its imports."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host}:{port} ({error.strerror}); end what runs there, or take another port in "
                "trainer.vllm_replicas (--port here)"
            ) from None


def tail(log: Path, lines: int = TAIL) -> str:
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, maxlen=lines)).rstrip()


def serve(
    recipe: "Recipe",
    *,
    replica: int = 0,
    host: str | None = None,
    port: int | None = None,
    dry_run: bool = False,
    timeout: float = 600.0,
    key: bool = True,
    extra: str = "",
) -> int:
    """Start the recipe's server, wait until it answers, stay until it ends. The exit status of `entrl serve`."""
    command = server_command(recipe, replica=replica, host=host, port=port, extra=extra)
    refuse_open(command, key)
    if dry_run:
        print(command.render())
        return 0
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("vLLM is not installed for this Python; bash launch/install_vllm.sh does it (cpu or gpu)")
    if recipe.model.quantization is not None and importlib.util.find_spec("vllm_bnb_plugin") is None:
        raise ValueError(
            "model.quantization: vLLM quantises as its bitsandbytes plugin does; pip install vllm-bnb-plugin"
        )
    asks = key and command.asks_key
    api_key, file = make_api_key(recipe.run_dir, _key_variable(recipe.trainer)) if asks else (None, None)
    log = recipe.run_dir.parent / f"{recipe.run_dir.name}.server{replica}.log"
    print(f"starting {command.url}, log in {log}", flush=True)
    if file is not None:
        print(f"key for trainers that do not find {file}: export {_key_variable(recipe.trainer)}=...", flush=True)
    with _ending_on_signals(), Server(command, api_key=api_key, log=log) as server:
        seconds = server.wait_ready(timeout)
        print(f"ready: {command.url} after {seconds:.0f} s", flush=True)
        status = server.wait()
        if status:
            raise server._failed(f"ended with status {status}")
    return 0


def refuse_open(command: ServerCommand, key: bool) -> None:
    """ValueError where a server without a key would listen to other machines and nobody has said that it may."""
    if key and not command.asks_key and command.host not in (LOCAL, "localhost", "::1"):
        raise ValueError(
            f"TRL's server takes weights from whoever reaches {command.host}:{command.port}: its trainer gives no key. "
            f"Leave --host out ({LOCAL}), or add --no-api-key where the network is yours alone"
        )


def _key_variable(trainer: Mapping[str, Any]) -> str:
    return str(trainer.get("vllm_api_key_env") or KEY_VARIABLE)


@contextlib.contextmanager
def _ending_on_signals() -> Any:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that the server is ended in order."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
