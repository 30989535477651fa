"""`entrl serve` without a server: the command it would start, its key, its refusals; and the middleware's two doors."""

import asyncio
import hashlib
import json
import os
import shlex
import socket
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

from entrl.cli.main import main
from entrl.engines import records
from entrl.engines.adapters import CONFIG, HEADER, WEIGHTS
from entrl.engines.middleware import LIMIT_VARIABLE, STORE_VARIABLE, Refused, Rollouts, asked_key
from entrl.models.shipped import model_path
from entrl.runs.recipe import load_recipe
from entrl.runs.serve import (
    check_port,
    find_api_key,
    make_api_key,
    refuse_open,
    serve,
    served_dtype,
    server_command,
)

RECIPE = """
model: {path: tiny-reasoner}
data: {task: sums, train_size: 64}
rewards: [accuracy]
lora: {r: 12, rank_pattern: {q_proj: 20}}
trainer: {use_vllm: true, vllm_replicas: ["http://127.0.0.1:8101", "http://node7:8102"], bf16: false}
"""


@pytest.fixture
def recipe(tmp_path: Path):
    (tmp_path / "two.yaml").write_text(RECIPE)

    def load(*overrides: str):
        return load_recipe(tmp_path / "two.yaml", [f"trainer.output_dir={tmp_path}/runs/two", *overrides])

    return load


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_asks_for_all_that_check_looks_at(recipe) -> None:
    command = server_command(recipe("trainer.vllm_max_model_length=512", "trainer.vllm_tensor_parallel_size=2"))
    argv = command.argv
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert option(argv, "--model") == model_path("tiny-reasoner")
    assert (option(argv, "--host"), option(argv, "--port")) == ("127.0.0.1", "8101")
    assert "--enable-lora" in argv
    assert option(argv, "--max-lora-rank") == "32"  # 20, the largest, rounded up to what vLLM offers
    assert option(argv, "--max-loras") == "2"
    assert option(argv, "--logprobs-mode") == "processed_logprobs"
    assert option(argv, "--max-model-len") == "512"
    assert option(argv, "--tensor-parallel-size") == "2"
    assert "--gpu-memory-utilization" not in argv  # TRL's 0.3 is for a GPU shared with the trainer
    assert "--api-key" not in argv
    assert ("--no-enable-chunked-prefill" in argv) == (not torch.cuda.is_available())
    assert command.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert command.url == "http://127.0.0.1:8101"


def test_another_port_host_and_options_of_vllm(recipe) -> None:
    command = server_command(recipe(), replica=1, host="0.0.0.0", port=9000, extra="--max-num-seqs 8 --x 'a b'")
    assert option(command.argv, "--host") == "0.0.0.0"
    assert option(command.argv, "--port") == "9000"
    assert command.argv[-4:] == ["--max-num-seqs", "8", "--x", "a b"]
    assert command.url == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ([], "float32"),
        (["trainer.bf16=true"], "bfloat16"),
        (["trainer.bf16=false", "trainer.fp16=true"], "float16"),
        (["model.dtype=bfloat16"], "bfloat16"),
        (["model.dtype=auto"], "auto"),
    ],
)
def test_served_dtype_is_what_the_trainer_computes_in(recipe, overrides: list[str], dtype: str) -> None:
    assert served_dtype(recipe(*overrides)) == dtype


@pytest.mark.parametrize(
    ("overrides", "options", "words"),
    [
        (["trainer.vllm_replicas=null"], {}, "asks for no server; set trainer.vllm_replicas"),
        (["lora=null"], {}, "has no lora group; these servers are sent adapters only"),
        ([], {"replica": 2}, "counts from 0 and the recipe lists 2, got 2"),
        ([], {"replica": 1}, r"say where it listens with --host 0\.0\.0\.0"),
        (["trainer.vllm_replicas=[localhost]"], {}, "is no address: 'localhost'"),
    ],
)
def test_recipes_it_does_not_serve(recipe, overrides: list[str], options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        server_command(recipe(*overrides), **options)


def test_full_weights_get_trls_server_on_this_machine_only(recipe) -> None:
    full = recipe("trainer.vllm_replicas=null", "lora=null", "trainer.vllm_mode=server", "trainer.vllm_server_port=7")
    command = server_command(full)
    assert command.argv[1:3] == ["-m", "trl.scripts.vllm_serve"]
    assert (option(command.argv, "--host"), option(command.argv, "--port")) == ("127.0.0.1", "7")


def test_full_weights_are_served_without_a_key_that_their_trainer_could_not_give(recipe, tmp_path: Path) -> None:
    full = recipe("trainer.vllm_replicas=null", "lora=null", "trainer.vllm_mode=server")
    assert not server_command(full).asks_key
    assert server_command(recipe()).asks_key
    with pytest.raises(ValueError, match=r"TRL's server takes weights from whoever reaches 0\.0\.0\.0:8000"):
        serve(full, host="0.0.0.0")
    refuse_open(server_command(full, host="0.0.0.0"), key=False)
    assert not list(tmp_path.glob("**/*vllm_api_key"))


def test_dry_run_prints_one_command(recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe()
    assert main(["serve", str(tmp_path / "two.yaml"), "--dry-run", "--port", "9001"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in words
    assert option(words, "--port") == "9001"
    assert not list(tmp_path.glob("runs*"))


# --- the key and the port ---------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY", raising=False)
    run = tmp_path / "runs" / "two"
    assert find_api_key(run, "KEY") is None
    key, file = make_api_key(run, "KEY")
    assert file == tmp_path / "runs" / "two.vllm_api_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert make_api_key(run, "KEY") == (key, file)
    assert find_api_key(run, "KEY") == key
    assert len(key) >= 40
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    monkeypatch.setenv("KEY", "mine")
    assert make_api_key(run, "KEY") == ("mine", None)
    assert find_api_key(run, "KEY") == "mine"


def test_a_key_others_can_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY", raising=False)
    _, file = make_api_key(tmp_path / "two", "KEY")
    assert file is not None
    file.chmod(0o644)
    with pytest.raises(ValueError, match="can be read by others than its owner; chmod 600 it"):
        make_api_key(tmp_path / "two", "KEY")
    file.chmod(0o600)
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        make_api_key(tmp_path / "two", "KEY")


def test_a_taken_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


# --- the middleware ---------------------------------------------------------------------------------------------

KEYS = {"Authorization": "Bearer secret"}


class Behind:
    """What stands for vLLM behind the middleware: it notes what reaches it and answers completions."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.status = 200
        self.calls: list[list[str]] = []

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        self.bodies.append(json.loads(message["body"] or b"null"))
        choices = [{"token_ids": [5, 6, 7], "prompt_token_ids": [1, 2], "index": 0}]
        body = json.dumps({"choices": choices}).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": body[:10], "more_body": True})
        await send({"type": "http.response.body", "body": body[10:]})

    async def collective_rpc(self, method: str, timeout: float, args: tuple) -> list:
        assert method == "entrl_take"
        self.calls.append(args[0])
        return [[records._answer(key, records.take) for key in args[0]]]


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def ask(behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """(method, path, ...) -> response, through the middleware."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    ours = Rollouts(behind)
    state = SimpleNamespace(args=SimpleNamespace(api_key=["secret"]), engine_client=behind)

    async def app(scope, receive, send) -> None:
        await ours({**scope, "app": SimpleNamespace(state=state)}, receive, send)

    def call(method: str, path: str, headers: dict = KEYS, **kwargs) -> httpx.Response:
        async def go() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
                return await client.request(method, path, headers=headers, **kwargs)

        return asyncio.run(go())

    return call


def recorded(key: str) -> None:
    trace = records.STORE.open(key, [1, 2], None)
    for position, (entropy, kept) in enumerate([(0.5, 1.0), (0.25, 0.5), (0.125, 1.0)]):
        trace.follow([5, 6, 7][:position])
        trace.write(position, entropy, kept)


def completion(**options) -> dict:
    wishes = {"entrl": json.dumps({"record": True, "key": "k1"})}
    return {"prompt": [1, 2], "return_token_ids": True, "vllm_xargs": wishes, **options}


def test_entropies_are_added_to_every_choice(ask, behind: Behind) -> None:
    recorded("k1")
    answer = ask("POST", "/v1/completions", json=completion())
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["entrl"] == {"entropies": [0.5, 0.25, 0.125], "kept_mass": [1.0, 0.5, 1.0]}
    assert behind.calls == [["k1"]]
    assert len(records.STORE) == 0
    assert behind.bodies == [completion()]  # vLLM saw the request as it was sent


def test_requests_that_ask_for_nothing_pass_untouched(ask, behind: Behind) -> None:
    for body in ({"prompt": [1]}, {"prompt": "about entrl"}, completion(vllm_xargs={"entrl": '{"record": false}'})):
        assert "entrl" not in ask("POST", "/v1/completions", json=body).json()["choices"][0]
    ask("GET", "/v1/models")
    assert behind.calls == []
    assert len(behind.bodies) == 4


def test_missing_records_are_an_error_not_an_answer(ask) -> None:
    answer = ask("POST", "/v1/completions", json=completion())
    assert answer.status_code == 500
    assert "nothing was recorded under 'k1'" in answer.json()["error"]["message"]


def test_records_of_a_failed_request_are_dropped(ask, behind: Behind) -> None:
    recorded("k1")
    behind.status = 400
    assert ask("POST", "/v1/completions", json=completion()).status_code == 400
    assert len(records.STORE) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stream": True}, "leave out stream"),
        ({"return_token_ids": False}, "set return_token_ids"),
        ({"echo": True}, "leave out echo"),
        ({"vllm_xargs": {"entrl": '{"record": true}'}}, "needs a key"),
        ({"vllm_xargs": {"entrl": "{"}}, "not JSON"),
    ],
)
def test_requests_that_cannot_have_entropies(ask, behind: Behind, options: dict, words: str) -> None:
    answer = ask("POST", "/v1/completions", json=completion(**options))
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert behind.bodies == []


def test_without_the_key_nothing_is_read(ask, behind: Behind, tmp_path: Path) -> None:
    recorded("k1")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        assert ask("PUT", "/v1/entrl/adapters/entrl-a-v1", headers, content=b"x").status_code == 401
        assert ask("GET", "/v1/entrl/info", headers).status_code == 401
        assert "entrl" not in ask("POST", "/v1/completions", headers, json=completion()).json()["choices"][0]
    assert behind.calls == []  # left to vLLM, whose own check answers 401
    assert not (tmp_path / "store").exists()
    records.take("k1")


def packed(rank: int = 8) -> bytes:
    config = json.dumps({"r": rank}).encode()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return HEADER.pack(len(config)) + config + len(header).to_bytes(8, "little") + header + b"1234"


def put(ask, name: str, data: bytes, **headers: str) -> httpx.Response:
    sent = {**KEYS, "X-Entrl-SHA256": hashlib.sha256(data).hexdigest(), **headers}
    return ask("PUT", f"/v1/entrl/adapters/{name}", sent, content=data)


def test_an_upload_is_stored_whole(ask, tmp_path: Path) -> None:
    answer = put(ask, "entrl-run-v1", packed())
    assert answer.status_code == 200
    folder = Path(answer.json()["path"])
    assert folder == tmp_path / "store" / "entrl-run-v1"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert put(ask, "entrl-run-v1", packed()).status_code == 200  # sent again after a lost answer
    assert put(ask, "entrl-run-v1", packed(9)).status_code == 409
    assert json.loads((folder / CONFIG).read_text()) == {"r": 8}


@pytest.mark.parametrize("name", ["x", "entrl-run", "entrl-a-v1%2f..", "..%2f..%2fetc", "entrl-a b-v1", "entrl-..-vx"])
def test_names_that_are_no_adapter(ask, tmp_path: Path, name: str) -> None:
    assert put(ask, name, packed()).status_code == 400
    assert not (tmp_path / "store").exists()


def test_uploads_that_are_cut_altered_or_too_large(ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "another SHA-256" in put(ask, "entrl-a-v1", packed(), **{"X-Entrl-SHA256": "0" * 64}).json()["error"]
    assert "must hold the SHA-256" in put(ask, "entrl-a-v1", packed(), **{"X-Entrl-SHA256": "1"}).json()["error"]
    assert "cut short" in put(ask, "entrl-a-v1", packed()[:-2]).json()["error"]
    monkeypatch.setenv(LIMIT_VARIABLE, "20")
    assert put(ask, "entrl-a-v1", packed()).status_code == 413
    assert list((tmp_path / "store").iterdir()) == []


def test_old_uploads_are_removed_per_run(ask, tmp_path: Path) -> None:
    put(ask, "entrl-b-v0", packed())
    for version in range(12):
        put(ask, f"entrl-a-v{version}", packed())
    left = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert left == ["entrl-a-v10", "entrl-a-v11", "entrl-a-v8", "entrl-a-v9", "entrl-b-v0"]


def test_our_paths_take_only_their_methods(ask) -> None:
    assert ask("GET", "/v1/entrl/adapters/entrl-a-v1").status_code == 405
    assert ask("POST", "/v1/entrl/info").status_code == 405


def test_asked_key_reads_only_what_could_ask() -> None:
    assert asked_key(b"not json at all") is None
    with pytest.raises(Refused):
        asked_key(b'{"entrl"')
    assert asked_key(json.dumps(completion()).encode()) == "k1"
    assert os.environ.get("VLLM_API_KEY") is None
