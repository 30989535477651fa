"""HTTP servers that speak what a pool of replicas needs of vLLM and write what a function says."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Write = Callable[[list[int], int, int], list[list[int]]]  # prompt, seed, n -> token ids of the n completions


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

    def __init__(self, write: Write = drawn) -> None:
        self.write = write
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
                good = reply(body, server.write)
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


def reply(body: dict, write: Write = drawn) -> dict:
    choices = [
        {
            "index": i,
            "token_ids": ids,
            "finish_reason": "length",
            "logprobs": {"tokens": [f"token_id:{t}" for t in ids], "token_logprobs": [-t / 256 for t in ids]},
        }
        for i, ids in enumerate(write(body["prompt"], body["seed"], body["n"]))
    ]
    if "vllm_xargs" in body:
        for choice in choices:
            choice["entrl"] = {
                "entropies": [0.5] * len(choice["token_ids"]),
                "kept_mass": [1.0] * len(choice["token_ids"]),
            }
    return {"model": body["model"], "choices": choices[::-1]}
