"""The replica pool's bookkeeping, against scripted servers that misbehave on demand.

What real vLLM servers do is in test_engines_pool_vllm.py; these stand for the orders of failure that cannot be
produced there at will: an answer one request later than its timeout, a cut-off body, another model's name.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from entrl.engines import liveness
from entrl.engines.adapters import CONFIG, WEIGHTS, adapter_name
from entrl.engines.completions import checked_sampling, item_seed, make_items, read_answer, request_body
from entrl.engines.faults import NoReplicaLeft, ReplicaMismatch, RolloutError, StaleVersion
from entrl.engines.pool import ReplicaPool
from entrl.engines.servers import checked_urls

SAMPLING = {"max_tokens": 4, "seed": 7}


def drawn(prompt: list[int], seed: int, n: int) -> list[list[int]]:
    """What any of the scripted servers generates: a function of the prompt and the seed alone."""
    return [list(hashlib.blake2b(f"{prompt}{seed + i}".encode(), digest_size=4).digest()) for i in range(n)]


class Listener(ThreadingHTTPServer):
    request_queue_size = 256  # the default 5 resets connections when a pool opens fifty at once
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is what these tests are about."""


class Scripted:
    """An HTTP server that speaks what the pool needs of vLLM; `script` says how the next completions go wrong."""

    def __init__(self) -> None:
        self.script: list[str] = []
        self.adapters: dict[str, str] = {}
        self.info: dict = {"logprobs_mode": "processed_logprobs", "max_lora_rank": 16, "max_loras": 2, "root": "m"}
        self.top_logprob: Callable[[float], float] = lambda temperature: -temperature
        self.asked: list[dict] = []
        self.orders: list[tuple[str, dict]] = []
        self.lock = threading.Lock()
        self.http = Listener(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, content: object) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    cards = [{"id": "m", "root": "m", "parent": None}]
                    cards += [{"id": n, "root": p, "parent": "m"} for n, p in server.adapters.items()]
                    self.answer(200, {"data": cards})
                elif self.path == "/v1/entrl/info":
                    self.answer(200, server.info)
                else:
                    self.answer(200, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/completions":
                    return self.complete(body)
                with server.lock:
                    server.orders.append((self.path, body))
                    if "unload" in self.path:
                        server.adapters.pop(body["lora_name"], None)
                    else:
                        server.adapters[body["lora_name"]] = body["lora_path"]
                self.answer(200, b"done")

            def complete(self, body: dict) -> None:
                if body["logprobs"]:
                    top = [{"a": server.top_logprob(body["temperature"]), "b": -9.0}]
                    return self.answer(200, {"choices": [{"logprobs": {"top_logprobs": top}}]})
                with server.lock:
                    server.asked.append(body)
                    action = server.script.pop(0) if server.script else "well"
                if body["model"] != "m" and body["model"] not in server.adapters:
                    return self.answer(404, {"error": {"message": "no such model"}})
                good = reply(body)
                if action == "drop":
                    return self.close_connection_now()
                if action == "error":
                    return self.answer(500, {"error": {"message": "engine died"}})
                if action == "refuse":
                    return self.answer(400, {"error": {"message": "prompt too long"}})
                if action == "cut":
                    return self.answer(200, json.dumps(good)[:-20].encode())
                if action == "late":
                    time.sleep(0.6)
                if action == "slow":  # in time, and long enough for another server to come back meanwhile
                    time.sleep(0.1)
                if action == "model":
                    good["model"] = "entrl-other-v3"
                if action == "short":
                    good["choices"] = good["choices"][:-1]
                if action == "shifted":
                    good["choices"][0]["logprobs"]["tokens"].reverse()
                self.answer(200, good)

            def close_connection_now(self) -> None:
                self.close_connection = True
                self.connection.close()

        return Handler

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def reply(body: dict) -> dict:
    choices = [
        {
            "index": i,
            "token_ids": ids,
            "finish_reason": "length",
            "logprobs": {"tokens": [f"token_id:{t}" for t in ids], "token_logprobs": [-t / 256 for t in ids]},
        }
        for i, ids in enumerate(drawn(body["prompt"], body["seed"], body["n"]))
    ]
    if "vllm_xargs" in body:
        for choice in choices:
            choice["entrl"] = {"entropies": [0.5] * 4, "kept_mass": [1.0] * 4}
    return {"model": body["model"], "choices": choices[::-1]}


@pytest.fixture
def two() -> Iterator[list[Scripted]]:
    servers = [Scripted(), Scripted()]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "MAX_PAUSE", 0.05)


def make_pool(servers: list[Scripted], **options) -> ReplicaPool:
    settings = {"base_model": "m", "lora_rank": 8, "backoff": 0.02, "retries": 3, "request_timeout": 5.0} | options
    return ReplicaPool([s.url for s in servers], None, **settings)


def check(found: list, prompts: list[list[int]], n: int, version: int | None, chunk: int | None = None) -> None:
    items = make_items(prompts, n, chunk=chunk, seed=SAMPLING["seed"], version=None)  # a caller's seed decides alone
    expected: list[list[list[int]]] = [[] for _ in prompts]
    for item in items:
        expected[item.prompt] += drawn(list(item.token_ids), item.seed, item.samples)
    assert [[c.token_ids for c in of] for of in found] == expected
    assert all(c.logprobs == [-t / 256 for t in c.token_ids] for of in found for c in of)


def write_adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_text('{"r": 8}')
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    return folder


PROMPTS = [[i, i + 1] for i in range(12)]


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 9])
def test_every_prompt_gets_its_completions_in_order(two: list[Scripted], chunk: int | None) -> None:
    pool = make_pool(two, samples_per_request=chunk)
    check(pool.generate(PROMPTS, 4, SAMPLING, None), PROMPTS, 4, None, chunk)
    assert pool.counters.repeated == 0
    assert all(server.asked for server in two)  # both work
    seeds = [body["seed"] for server in two for body in server.asked]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_or_doubled_whatever_fails(two: list[Scripted], seed: int) -> None:
    chance = random.Random(seed)
    for server in two:
        server.script = [chance.choice(["well", "drop", "error", "cut", "late"]) for _ in range(10)]
    pool = make_pool(two, request_timeout=0.3, retries=50, samples_per_request=2, max_concurrency=3)
    check(pool.generate(PROMPTS, 4, SAMPLING, None), PROMPTS, 4, None, 2)
    asked = sum(len(server.asked) for server in two)
    # One that timed out on a busy machine may never have arrived.
    assert 24 <= asked <= pool.counters.requests == 24 + pool.counters.repeated
    assert pool.counters.repeated > 0
    assert pool.counters.completions == 48


def test_a_stream_gives_items_as_they_finish_each_with_its_own_sampling(two: list[Scripted]) -> None:
    two[0].script, two[1].script = ["late"], ["drop"]
    items = make_items(PROMPTS, 2, chunk=None, seed=3, version=None)
    work = [(item, {"max_tokens": 4, "temperature": 0.5 + item.prompt}) for item in items]
    pool = make_pool(two, max_concurrency=1)
    found = list(pool.stream(work, None))
    assert {item.prompt: [c.token_ids for c in cs] for item, cs in found} == {
        item.prompt: drawn(list(item.token_ids), item.seed, 2) for item in items
    }
    assert len(found) == len(PROMPTS)  # each once, though one was asked twice
    assert found[0][0].prompt != 0 or found[1][0].prompt != 1  # the late and the dropped one do not hold up the rest
    temperatures = {tuple(body["prompt"]): body["temperature"] for server in two for body in server.asked}
    assert temperatures == {tuple(p): 0.5 + i for i, p in enumerate(PROMPTS)}
    with pytest.raises(StaleVersion):
        next(pool.stream(work, 7))


def test_a_stream_that_is_left_asks_nothing_more_and_an_error_reaches_the_reader(two: list[Scripted]) -> None:
    work = [(item, SAMPLING) for item in make_items(PROMPTS * 20, 1, chunk=None, seed=3, version=None)]
    pool = make_pool(two, max_concurrency=1)
    for server in two:
        server.script = ["slow"] * 1000
    stream = pool.stream(work, None)
    next(stream)
    stream.close()  # waits until nothing goes on
    asked = sum(len(server.asked) for server in two)
    assert asked < 20
    time.sleep(0.3)
    assert sum(len(server.asked) for server in two) == asked
    two[0].script = two[1].script = ["refuse"]
    with pytest.raises(RolloutError, match="prompt too long"):
        list(pool.stream(work, None))


def test_a_late_answer_is_not_waited_for_and_not_counted(two: list[Scripted]) -> None:
    two[0].script = ["late"] * 12
    pool = make_pool(two, request_timeout=0.25, retries=50)
    check(pool.generate(PROMPTS, 1, SAMPLING, None), PROMPTS, 1, None)
    time.sleep(0.5)  # the late answers are written now, to closed connections
    check(pool.generate(PROMPTS, 1, SAMPLING, None), PROMPTS, 1, None)
    assert pool.counters.completions == 24


def test_a_failing_replica_is_given_up_and_asked_again_later(two: list[Scripted]) -> None:
    two[0].script = ["error"] * 1000
    pool = make_pool(two, retries=2, max_concurrency=2)
    check(pool.generate(PROMPTS * 4, 1, SAMPLING, None), PROMPTS * 4, 1, None)
    assert pool.replicas[0].state != "up"
    assert pool.replicas[0].failures <= 3
    assert "engine died" in pool.replicas[0].last_error
    two[0].script = []
    before = len(two[0].asked)
    for _ in range(5):
        check(pool.generate(PROMPTS, 1, SAMPLING, None), PROMPTS, 1, None)
    assert len(two[0].asked) > before


def test_none_left(two: list[Scripted]) -> None:
    for server in two:
        server.script = ["drop"] * 100
    pool = make_pool(two, retries=1)
    with pytest.raises(NoReplicaLeft, match=r"no replica left of 2, each failed 2 times in a row"):
        pool.generate(PROMPTS, 1, SAMPLING, None)
    assert pool.counters.failures <= 4  # many requests fail with a replica, and it counts once a life
    for server in two:
        server.script = []
    check(pool.generate(PROMPTS, 1, SAMPLING, None), PROMPTS, 1, None)


def test_an_answer_nobody_expected_ends_the_wait(two: list[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(*_: object, **__: object) -> list[str]:
        raise AttributeError("'list' object has no attribute 'get'")  # what `[]` in place of an object leads to

    monkeypatch.setattr("entrl.engines.servers.look", odd)
    with pytest.raises(NoReplicaLeft, match="AttributeError"):
        make_pool(two).generate(PROMPTS, 1, SAMPLING, None)


def test_nobody_listens() -> None:
    server = Scripted()
    server.stop()
    pool = make_pool([server], retries=1)
    with pytest.raises(RolloutError, match=r"does not answer: .*Start it with `entrl serve`"):
        pool.check()
    with pytest.raises(NoReplicaLeft, match="ConnectError"):
        pool.generate(PROMPTS, 1, SAMPLING, None)


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        ("model", StaleVersion, r"answered a request for 'm' with 'entrl-other-v3'"),
        ("short", RolloutError, r"returned 1 completions where 2 were asked for"),
        ("shifted", RolloutError, r"log-probs of other tokens than it generated"),
        ("refuse", RolloutError, r"refused a generation request, 400: prompt too long"),
    ],
)
def test_what_no_retry_cures_stops_at_once(two: list[Scripted], action: str, error: type, words: str) -> None:
    for server in two:
        server.script = [action] * 50
    with pytest.raises(error, match=words):
        make_pool(two).generate(PROMPTS, 2, SAMPLING, None)


def test_versions_are_loaded_switched_to_and_unloaded(two: list[Scripted], tmp_path: Path) -> None:
    pool = make_pool(two, adapter_folder=tmp_path, run_id="run")
    for version in (0, 5):
        report = pool.publish(version, write_adapter(tmp_path / f"a{version}"))
        assert report.name == adapter_name("run", version)
        assert report.bytes_sent == 2 * report.adapter_bytes
        assert not report.missing
        check(pool.generate(PROMPTS, 1, SAMPLING, version), PROMPTS, 1, version)
    for server in two:
        kinds = [(path.split("/")[2].split("_")[0], body["lora_name"]) for path, body in server.orders]
        assert kinds == [("load", "entrl-run-v0"), ("load", "entrl-run-v5"), ("unload", "entrl-run-v0")]
        assert not any(body.get("load_inplace") for _, body in server.orders)
        assert {body["model"] for body in server.asked} <= {"entrl-run-v0", "entrl-run-v5"}
    with pytest.raises(ValueError, match="does not follow 5"):
        pool.publish(5, tmp_path / "a5")
    with pytest.raises(ValueError, match="which the servers share"):
        pool.publish(6, write_adapter(tmp_path.parent / "elsewhere"))


def test_a_restarted_replica_gets_the_current_adapter_and_loses_old_ones(two: list[Scripted], tmp_path: Path) -> None:
    pool = make_pool(two, adapter_folder=tmp_path, run_id="run")
    pool.publish(1, write_adapter(tmp_path / "a"))
    two[1].adapters = {"entrl-run-v0": "old", "entrl-theirs-v0": "another run's"}
    wanted, patience = {"entrl-run-v1", "entrl-theirs-v0"}, time.monotonic() + 180
    # It comes back while others generate, and is counted after its adapters are in order.
    while (set(two[1].adapters) != wanted or not pool.counters.returns) and time.monotonic() < patience:
        two[0].script = ["slow"] * len(PROMPTS)
        check(pool.generate(PROMPTS, 1, SAMPLING, 1), PROMPTS, 1, 1)
    assert set(two[1].adapters) == wanted
    assert pool.counters.returns == 1


def test_a_replica_that_comes_back_as_another_model_gets_no_work(two: list[Scripted], tmp_path: Path) -> None:
    pool = make_pool(two, adapter_folder=tmp_path)
    pool.publish(0, write_adapter(tmp_path / "a"))
    two[1].adapters, two[1].info = {}, {**two[1].info, "logprobs_mode": "raw_logprobs"}
    patience = time.monotonic() + 60  # it is looked at again while others generate, which may be over at once
    while pool.replicas[1].state != "lost" and time.monotonic() < patience:
        two[0].script = ["slow"] * len(PROMPTS)
        check(pool.generate(PROMPTS, 1, SAMPLING, 0), PROMPTS, 1, 0)
    assert "raw_logprobs" in pool.replicas[1].last_error


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "start it with --logprobs-mode processed_logprobs"),
        ({"max_lora_rank": 4}, "takes adapters up to rank 4, this run trains rank 8"),
        ({"max_lora_rank": 0}, "takes no adapters, this run trains rank 8"),
        ({"max_loras": 1}, "start it with --max-loras 2"),
        ({"data_parallel_size": 2}, "start that many servers instead"),
    ],
)
def test_servers_that_would_not_do(two: list[Scripted], info: dict, words: str) -> None:
    two[1].info |= info
    with pytest.raises(ReplicaMismatch, match=words) as caught:
        make_pool(two).check()
    assert two[1].url in str(caught.value)


@pytest.mark.parametrize("falls", [True, False])
def test_a_server_that_does_not_tell_its_mode_is_tried_out(two: list[Scripted], falls: bool) -> None:
    for server in two:
        server.info = {}
        server.top_logprob = (lambda t: -0.5 * t) if falls else (lambda t: -0.5)
    if falls:
        assert all(told["logprobs_mode"].endswith("(tried out)") for told in make_pool(two).check())
    else:
        with pytest.raises(ReplicaMismatch, match="returns the same log-probs at temperatures 1 and 2"):
            make_pool(two).check()


def test_another_base_model(two: list[Scripted]) -> None:
    with pytest.raises(ReplicaMismatch, match=r"serves 'm', this run trains 'org/other'"):
        make_pool(two, base_model="org/other").check()


def test_inside_a_running_event_loop(two: list[Scripted]) -> None:
    import asyncio

    async def notebook() -> list:
        return make_pool(two).generate(PROMPTS, 1, SAMPLING, None)

    check(asyncio.run(notebook()), PROMPTS, 1, None)


def test_entropies_ride_along(two: list[Scripted]) -> None:
    pool = make_pool(two)
    found = pool.generate(PROMPTS[:2], 2, {**SAMPLING, "entrl": {"record": True}}, None)
    assert all(c.entropies == [0.5] * 4 and c.kept_mass == [1.0] * 4 for of in found for c in of)
    asked = [json.loads(body["vllm_xargs"]["entrl"]) for server in two for body in server.asked]
    assert all(options["record"] for options in asked)
    assert len({options["key"] for options in asked}) == 2
    assert all(c.entropies is None for of in pool.generate(PROMPTS[:2], 2, SAMPLING, None) for c in of)


# --- one request ------------------------------------------------------------------------------------------------


def test_a_request_leaves_nothing_to_the_server() -> None:
    item = make_items([[1, 2]], 3, chunk=None, seed=0, version=1)[0]
    body = request_body(item, "name", checked_sampling({"max_tokens": 5, "temperature": 0.5, "seed": 4}))
    assert body["temperature"] == 0.5
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert (body["logprobs"], body["n"], body["seed"]) == (0, 3, item.seed)
    assert "vllm_xargs" not in body


def test_seeds_differ_by_everything_and_stay_in_range() -> None:
    seeds = {
        item_seed(base, version, prompt, first)
        for base in (0, 1)
        for version in (None, 0, 1)
        for prompt in range(5)
        for first in (0, 4)
    }
    assert len(seeds) == 60
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert item_seed(1, 2, 3, 4) == item_seed(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"max_tokens": 4, "temprature": 1.0}, r"no key 'temprature'. Did you mean 'temperature'"),
        ({"max_tokens": 4, "n": 2}, "n is an argument of generate"),
        ({}, "sampling.max_tokens must be a number of tokens >= 1, got None"),
        ({"max_tokens": 0}, "got 0"),
    ],
)
def test_sampling_is_checked(sampling: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked_sampling(sampling)


def test_items_are_checked() -> None:
    with pytest.raises(ValueError, match="n must be >= 1"):
        make_items([[1]], 0, chunk=None, seed=0, version=None)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        make_items([[1], []], 1, chunk=None, seed=0, version=None)


def test_answers_without_what_was_asked() -> None:
    item = make_items([[1, 2]], 1, chunk=None, seed=0, version=1)[0]
    body = request_body(item, "m", checked_sampling({"max_tokens": 5}))
    expect: dict = {"model": "m", "version": 1, "recorded": True, "url": "U"}
    with pytest.raises(RolloutError, match="replica U sent no entropies"):
        read_answer(reply(body), item, **expect)
    short = reply({**body, "vllm_xargs": {}})
    short["choices"][0]["entrl"]["entropies"].pop()
    with pytest.raises(RolloutError, match="recorded 3 entropies for 4 tokens"):
        read_answer(short, item, **expect)
    bare = reply(body)
    del bare["choices"][0]["token_ids"]
    with pytest.raises(RolloutError, match="returned no token ids or no log-probs"):
        read_answer(bare, item, **expect)


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ([], "no replica is listed"),
        (["127.0.0.1:8000"], "write it like http://127.0.0.1:8000"),
        (["http://a:1", "http://a:1/"], "listed 2 times"),
    ],
)
def test_addresses(urls: list[str], words: str) -> None:
    assert checked_urls(["http://a:1/", "https://b/v1"]) == ["http://a:1", "https://b"]
    with pytest.raises(ValueError, match=words):
        checked_urls(urls)


@pytest.mark.parametrize(
    "options", [{"request_timeout": 0}, {"backoff": 0}, {"retries": -1}, {"max_concurrency": 0}, {"run_id": "a/b"}]
)
def test_settings_are_checked(options: dict) -> None:
    make: Callable = ReplicaPool
    with pytest.raises(ValueError, match="got"):
        make(["http://a:1"], None, base_model="m", **options)
