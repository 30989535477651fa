"""What rewards of models and services need: said by plan, and at the start of train and of the doctor."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from entrl_rewards.llm_judge import LLMJudge
from entrl_rewards.remote import RemoteScore
from short_run import quietly, short_recipe
from tiny_model import saved_model

from entrl.runs.doctor.examination import examine
from entrl.runs.plan import plan
from entrl.runs.plan.services import service_problems, silent_services
from entrl.settings.names import Loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def closed() -> int:
    """A port where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def loaded(value: Any) -> list[Loaded]:
    return [Loaded(value=value, source="entrl_rewards.llm_judge:reward", file=None)]


def test_nobody_listens_is_unchecked_by_plan_and_stops_train_and_the_doctor(model: str, tmp_path: Any, closed: int):
    use = f"rewards=[{{use: llm_judge, args: {{url: 'http://127.0.0.1:{closed}/v1/chat/completions'}}}}]"
    recipe = short_recipe(model, tmp_path / "run", use)
    words = f"rewards.0.args.url of entrl_rewards.llm_judge:reward: nobody answers at 127.0.0.1:{closed} (Connection"
    found = plan(recipe)
    assert found.problems == []
    assert [text for text in found.unchecked if text.startswith(words)]
    assert found.verdict.startswith("no problem found, ")
    with pytest.raises(ValueError, match=r"rewards\.0\.args\.url of .* nobody answers .* start that server"):
        quietly(recipe)
    assert not (tmp_path / "run").exists()
    looked = examine(recipe)
    assert [text for text in looked.errors if text.startswith(words)]
    assert not [text for text in looked.unchecked if text.startswith(words)]


def test_one_that_listens_is_not_asked_for_more():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert silent_services(loaded(RemoteScore(url=f"http://127.0.0.1:{port}/score"))) == []
        assert silent_services(loaded(LLMJudge(url=f"http://localhost:{port}"))) == []


def test_where_nobody_has_to_listen(closed: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """Behind a proxy, with answers kept in a file, and what is no address of ours."""
    url = f"http://127.0.0.1:{closed}/score"
    assert len(silent_services(loaded(RemoteScore(url=url)))) == 1
    kept = tmp_path / "scores.jsonl"
    assert len(silent_services(loaded(RemoteScore(url=url, cache_file=str(kept))))) == 1
    kept.write_text("")
    assert silent_services(loaded(RemoteScore(url=url, cache_file=str(kept)))) == []
    assert silent_services(loaded(SimpleNamespace(url="sqlite://somewhere:1/x"))) == []
    assert silent_services(loaded(SimpleNamespace(url=None))) == []
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert silent_services(loaded(RemoteScore(url=url))) == []


@pytest.mark.parametrize(
    ("url", "why"), [("http://[::1", "no address"), ("http://x:99999/", "no address"), ("http://", "names no host")]
)
def test_what_is_no_address(url: str, why: str):
    assert why in silent_services(loaded(RemoteScore(url=url)))[0]


def test_a_policy_as_a_reward_model_is_named_by_plan(model: str, tmp_path: Any):
    recipe = short_recipe(model, tmp_path / "run", f"rewards=[{{use: reward_model, args: {{path: '{model}'}}}}]")
    (problem,) = plan(recipe).problems
    assert problem.startswith(
        f"rewards.0.args.path of entrl_rewards.reward_model:reward: {model}: it has no score.weight"
    )


def test_a_reward_of_the_users_with_a_path_is_only_asked_for_its_folder(tmp_path: Any):
    own = [Loaded(value=SimpleNamespace(path=str(tmp_path)), source="mine.py:reward", file=None)]
    assert service_problems(own) == []
    gone = [Loaded(value=SimpleNamespace(path=str(tmp_path / "no")), source="mine.py:reward", file=None)]
    assert "does not exist" in service_problems(gone)[0]
