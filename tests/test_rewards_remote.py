"""Rewards asked over HTTP, against a real server that is slow, fails, recovers, refuses and writes nonsense."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from entrl_rewards.llm_judge import JudgeExpert, LLMJudge
from entrl_rewards.remote import NotAnswered, Refused, RemoteExpert, RemoteScore

Reply = tuple[int, Any]
TEXTS = ["one", "two two", "three"]


class Server:
    """`reply` makes the answer to the n-th request (from 0) of its body; what was asked is kept."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers))
                status, answer = reply(number, body)
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except BrokenPipeError:  # whoever asked did not wait
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/score"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Reply]], Server]]:
    started: list[Server] = []

    def start(reply: Callable[[int, dict[str, Any]], Reply]) -> Server:
        started.append(Server(reply))
        return started[-1]

    yield start
    for server in started:
        server.close()


def by_length(number: int, body: dict[str, Any]) -> Reply:
    return 200, {"score": len(body["completion"])}


def called(reward: Any, texts: list[str] = TEXTS, **columns: Any) -> list[float | None]:
    return asyncio.run(reward(prompts=["p"] * len(texts), completions=texts, **columns))


def test_scores_come_back_in_order_and_columns_are_sent(serve: Any):
    server = serve(by_length)
    reward = RemoteScore(url=server.url, columns=("answer",))
    assert called(reward, answer=["a", "b", "c"], level=["x"] * 3) == [3.0, 7.0, 5.0]
    assert sorted(body["answer"] for body in server.asked) == ["a", "b", "c"]
    assert all(set(body) == {"prompt", "completion", "answer"} for body in server.asked)


def test_a_server_that_fails_and_recovers_is_asked_again(serve: Any):
    server = serve(lambda n, body: (503, "busy") if n < 3 else by_length(n, body))
    logged: dict[str, float] = {}
    reward = RemoteScore(url=server.url, at_once=1, expert=RemoteExpert(pause_s=0.01))
    assert called(reward, log_metric=logged.__setitem__) == [3.0, 7.0, 5.0]
    assert (logged["remote/retried"], logged["remote/failed"], logged["remote/asked"]) == (3.0, 0.0, 3.0)


def test_one_that_is_too_slow_for_one_of_them_costs_that_one(serve: Any):
    over = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> Reply:
        if body["completion"] == "three":
            over.wait(30)
        return by_length(number, body)

    logged: dict[str, float] = {}
    reward = RemoteScore(url=serve(slow).url, timeout_s=0.5, retries=1, expert=RemoteExpert(pause_s=0.0))
    assert called(reward, log_metric=logged.__setitem__) == [3.0, 7.0, None]
    over.set()
    assert logged["remote/failed"] == 1.0
    assert logged["remote/seconds"] < 30  # two tries of 0.5 s, none of which waited for the server


def test_too_many_failures_stop_the_run(serve: Any):
    server = serve(lambda n, body: (500, "down"))
    with pytest.raises(NotAnswered, match=r"no answer for 3 of 3 completions .* raise timeout_s \(30\) or retries"):
        called(RemoteScore(url=server.url, retries=1, expert=RemoteExpert(pause_s=0.0)))
    assert len(server.asked) == 6
    assert called(RemoteScore(url=server.url, retries=0, expert=RemoteExpert(most_failed=1.0))) == [None] * 3


def test_nobody_listens():
    with pytest.raises(NotAnswered, match="no answer for 3 of 3"):
        called(RemoteScore(url="http://127.0.0.1:9/score", retries=0))


def test_a_completion_that_the_service_cannot_take_costs_that_one(serve: Any):
    """Too long for a judge's context is 400 of an OpenAI-compatible server."""
    server = serve(lambda n, body: (400, "too long") if body["completion"] == "three" else by_length(n, body))
    assert called(RemoteScore(url=server.url)) == [3.0, 7.0, None]
    assert len(server.asked) == 3  # and is not asked again
    with pytest.raises(NotAnswered, match=r"no answer for 1 of 1 .*the latest: status 400: 'too long'"):
        called(RemoteScore(url=server.url), ["three"])


def test_what_was_answered_outlasts_a_refusal(serve: Any, tmp_path: Path):
    server = serve(lambda n, body: (401, "no") if body["completion"] == "three" else by_length(n, body))
    file = tmp_path / "scores.jsonl"
    with pytest.raises(Refused, match="answers 401"):
        called(RemoteScore(url=server.url, cache_file=str(file)))
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("status", [302, 401, 404])
def test_what_another_try_would_not_change_stops_at_once(serve: Any, status: int):
    server = serve(lambda n, body: (status, "no such model"))
    with pytest.raises(Refused, match=rf"answers {status}: 'no such model'"):
        called(RemoteScore(url=server.url), ["one"])
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", [{"score": "high"}, {"points": 1}, {"score": float("nan")}, "<html>", [1]])
def test_an_answer_without_a_score_counts_as_failed(serve: Any, answer: Any):
    server = serve(lambda n, body: (200, answer) if body["completion"] == "one" else by_length(n, body))
    assert called(RemoteScore(url=server.url, retries=0)) == [None, 7.0, 5.0]


def test_nothing_is_asked_twice_and_a_file_outlasts_the_run(serve: Any, tmp_path: Path):
    server = serve(by_length)
    file = tmp_path / "deep" / "scores.jsonl"
    reward = RemoteScore(url=server.url, cache_file=str(file))
    assert called(reward, ["one", "one", "two two"]) == [3.0, 3.0, 7.0]
    assert called(reward, ["two two", "one"]) == [7.0, 3.0]
    assert len(server.asked) == 2
    with file.open("a") as opened:
        opened.write('["torn')  # a run that was killed
    assert called(RemoteScore(url=server.url, cache_file=str(file)), ["one", "three"]) == [3.0, 5.0]
    assert len(server.asked) == 3


def test_no_more_are_under_way_than_asked_for(serve: Any):
    under_way, most, lock, three = 0, 0, threading.Lock(), threading.Event()

    def counted(number: int, body: dict[str, Any]) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            if most == 3:
                three.set()
        three.wait(10)
        time.sleep(0.02)  # for a fourth, which must not come
        with lock:
            under_way -= 1
        return by_length(number, body)

    called(RemoteScore(url=serve(counted).url, at_once=3), [f"text {i}" for i in range(12)])
    assert most == 3


def test_the_key_is_read_from_the_environment(serve: Any, monkeypatch: pytest.MonkeyPatch):
    server = serve(by_length)
    reward = RemoteScore(url=server.url, api_key_env="JUDGE_KEY")
    with pytest.raises(Refused, match="JUDGE_KEY, which is not set"):
        called(reward)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    called(reward)
    assert server.headers[0]["Authorization"] == "Bearer secret"


def said(text: str) -> Reply:
    return 200, {"choices": [{"message": {"content": text}}]}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Right.\nScore: 7", 0.7),
        ("Score: 2, no: it is right after all\nScore: **9.5**", 0.95),
        ("Score: 10", 1.0),
        ("Score: 11", None),
        ("10 of 10", None),
    ],
)
def test_the_judges_last_score_counts(serve: Any, text: str, score: float | None):
    judge = LLMJudge(url=serve(lambda n, body: said(text)).url, retries=0, expert=JudgeExpert(most_failed=1.0))
    assert called(judge, ["one"]) == [score]


def test_what_the_judge_is_shown(serve: Any):
    server = serve(lambda n, body: said("Score: 0"))
    judge = LLMJudge(url=server.url, model="large")
    prompt = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]]
    answer = [[{"role": "assistant", "content": r"\frac{4}{2} {answer}"}]]
    asyncio.run(judge(prompts=prompt, completions=answer, answer=["2"]))
    (body,) = server.asked
    text = body["messages"][0]["content"]
    assert body["model"] == "large"
    assert body["temperature"] == 0.0
    assert "system: Be brief.\n\nuser: 1+1?" in text
    assert r"\frac{4}{2} {answer}" in text  # a completion's braces are left alone
    assert "Reference answer, which may be empty:\n2" in text
    assert "from 0 to 10" in text


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"url": "localhost:8000"}, "http://"),
        ({"timeout_s": 0.0}, "above 0"),
        ({"retries": -1}, "at least 0"),
        ({"at_once": 0}, "at least 1"),
    ],
)
def test_options(options: dict[str, Any], rule: str):
    with pytest.raises(ValueError, match=rule):
        RemoteScore(**options)
    with pytest.raises(ValueError, match="share"):
        RemoteExpert(most_failed=50.0)
    with pytest.raises(ValueError, match="pause_s"):
        RemoteExpert(pause_s=-1.0)


def test_a_judges_instruction_holds_the_completion():
    with pytest.raises(ValueError, match="completion"):
        LLMJudge(instruction="How good?")
    with pytest.raises(ValueError, match="above lowest"):
        JudgeExpert(lowest=5.0, highest=1.0)
