"""What a run never shows or keeps (tokens, keys, control characters), and files that mean no good."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from short_run import RECIPE, manifest, quietly, same_weights, short_recipe, words
from tiny_model import saved_model

from entrl.cli.main import main
from entrl.runs.folder import read_json, read_recipe, write_json
from entrl.runs.recipe import load_recipe
from entrl.runs.wording import escape_completion_tables, shown
from entrl.settings.secrets import MASK, is_secret, mask, mask_text, mask_words
from entrl.settings.yaml import parse_yaml

TOKEN = "hf_" + "q7Rz" * 6  # looks like one and opens nothing


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


# --- secrets ------------------------------------------------------------------------------------------------------


def test_no_file_and_no_line_of_a_run_holds_a_secret(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    secrets = {"hub": TOKEN, "judge": "judge-4711-password", "variable": "only-in-the-environment"}
    monkeypatch.setenv("JUDGE_API_KEY", secrets["variable"])
    (tmp_path / "judge.py").write_text(
        "import os\n"
        "def judge(completions, api_key='', headers=None, **_):\n"
        "    if os.environ.get('FAIL'):\n"
        "        raise RuntimeError('401 for ' + os.environ['JUDGE_API_KEY'] + ' and api_key=' + api_key)\n"
        "    return [0.0] * len(completions)\n"
    )
    (tmp_path / "own.yaml").write_text(RECIPE.read_text())
    out = tmp_path / "run"
    judge = f"{{api_key: {secrets['judge']}, headers: {{Authorization: 'Bearer {secrets['judge']}'}}}}"
    arguments = words(model, out, f"rewards=[{{use: 'judge.py:judge', args: {judge}}}]", "trainer.max_steps=2")
    line = ["train", str(tmp_path / "own.yaml"), *arguments, f"trainer.hub_token={secrets['hub']}"]
    monkeypatch.setattr(sys, "argv", ["entrl", *line])
    assert main(line) == 0
    monkeypatch.setenv("FAIL", "1")
    assert main([*line, "overwrite=true"]) == 2
    printed = capsys.readouterr()
    assert "401 for *** and api_key=***" in printed.err
    kept = [p for p in out.rglob("*") if p.is_file()]
    for secret in secrets.values():
        assert secret not in printed.out + printed.err
        assert not [p for p in kept if secret.encode() in p.read_bytes()]
    assert f"hub_token: '{MASK}'" in (out / "recipe.yaml").read_text()
    assert f"trainer.hub_token={MASK}" in manifest(out)["command"]


def test_checkpoints_hold_no_token_and_a_masked_recipe_still_resumes(model: str, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    token = f"trainer.hub_token={TOKEN}"
    quietly(short_recipe(model, whole))
    quietly(short_recipe(model, out, token, "trainer.max_steps=2"))
    files = [p for p in out.rglob("*") if p.is_file()]
    assert [p for p in files if p.name == "training_args.bin"]
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert read_recipe(out).trainer.get("hub_token") is None
    quietly(short_recipe(model, out, token), resume=True)
    assert same_weights(out, whole)
    with pytest.raises(ValueError, match=r"trainer.hub_token is masked \(\*\*\*\)"):
        load_recipe(out / "recipe.yaml")


def test_a_report_of_an_older_run_hides_what_it_kept(model: str, tmp_path: Path):
    out = tmp_path / "run"
    quietly(short_recipe(model, out, "trainer.max_steps=1"))
    (out / "recipe.yaml").write_text((out / "recipe.yaml").read_text() + f"  hub_token: {TOKEN}\n")
    write_json(out / "manifest.json", {**manifest(out), "command": ["entrl", f"trainer.hub_token={TOKEN}"]})
    assert main(["report", str(out)]) == 0
    assert TOKEN not in (out / "report.html").read_text()


def test_secrets_inside_values():
    settings = {"url": "https://host/x?token=abc&api_key=q&n=1", "headers": ["Authorization: Bearer short"]}
    assert mask(settings) == {
        "url": "https://host/x?token=***&api_key=***&n=1",
        "headers": ["Authorization: Bearer ***"],
    }
    word = "rewards.0.args={api_key: abc def, n: 1}"
    assert mask_words([word, "trainer.seed=1"]) == ['rewards.0.args={"api_key": "***", "n": 1}', "trainer.seed=1"]


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((n, True) for n in ("hub_token", "trainer.hub_token", "HF_TOKEN", "--api-key", "vllm_api_key", "X-API-Key")),
        *((n, True) for n in ("Authorization", "password", "client_secret", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")),
        *(
            (n, True)
            for n in ("judge_key", "openaiApiKey", "accessToken", "apitoken", "auth", "db_pwd", "jwt", "token1")
        ),
        *(
            (n, False)
            for n in ("PWD", "OLDPWD", "answer_key", "sort_key", "author", "tokens", "path", "bypass", "compass")
        ),
        *((n, False) for n in ("vllm_api_key_env", "eos_token", "pad_token_id", "max_new_tokens", "tokenizer", "key")),
        *((n, False) for n in ("log_windows", "mask_truncated_completions", "branch_token_budget", "monkey")),
    ],
)
def test_names_of_secrets(name: str, secret: bool):
    assert is_secret(name) is secret


def test_secrets_in_words_and_texts():
    typed = ["trainer={hub_token: abc, seed: 1}", "--api-key", "xyz", "--vllm-args=--api-key xyz --port 3", "seed=1"]
    trainer = 'trainer={"hub_token": "***", "seed": 1}'
    masked = [trainer, "--api-key", MASK, "--vllm-args=--api-key *** --port 3", "seed=1"]
    assert mask_words(typed) == masked
    assert mask_text("GET https://me:pass@host/x") == "GET https://***@host/x"
    assert mask_text("Authorization: Bearer abcdefgh") == "Authorization: Bearer ***"
    assert mask_text("basic arithmetic, eos_token: <|end|>") == "basic arithmetic, eos_token: <|end|>"


# --- files that mean no good --------------------------------------------------------------------------------------


def test_a_yaml_bomb_is_refused_in_words():
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9))
    with pytest.raises(ValueError, match=r"stands for [\d,]+ values by its aliases \(\*name\), at most 100,000"):
        parse_yaml(f"l0: &l0 [x, x]\n{levels}\n")
    with pytest.raises(ValueError, match="holds an alias of itself"):
        parse_yaml("a: &a [1, *a]")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("[" * 500 + "]" * 500)
    assert parse_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a}") == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1}}


def test_control_characters_of_a_recipe_are_told_in_words():
    with pytest.raises(ValueError, match=r"mine is not valid YAML: .*special characters are not allowed"):
        parse_yaml("name: \x07bell", name="mine")


def test_items_of_lists_are_typed():
    with pytest.raises(ValueError, match=r"eval.k.0 must be int, got '1'"):
        load_recipe(RECIPE, ["eval={task: sums, k: ['1']}"])
    with pytest.raises(ValueError, match=r"trainer.log_windows.1 must be int, got 'x'"):
        load_recipe(RECIPE, ["trainer.log_windows=[1, x]"])


def test_control_characters_do_not_reach_the_terminal(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert shown("a\x1b]0;owned\x07b\x9b2Jc\u202ed\r\n\te") == "a\\x1b]0;owned\\x07b\\x9b2Jc\\u202ed\\r\n\te"
    (tmp_path / "loud.py").write_text(
        "def loud(completions, **_):\n    raise RuntimeError('\\x1b[2J\\x1b]0;owned\\x07')\n"
    )
    (tmp_path / "own.yaml").write_text(RECIPE.read_text())
    line = words(model, tmp_path / "run", "rewards=['loud.py:loud']")
    assert main(["train", str(tmp_path / "own.yaml"), *line]) == 2
    printed = capsys.readouterr()
    assert "\\x1b[2J" in printed.err
    assert not [c for c in printed.out + printed.err if ord(c) < 32 and c not in "\n\t"]


def test_completions_of_a_model_are_shown_without_control_characters(capsys: pytest.CaptureFixture[str]):
    from trl.trainer import grpo_trainer

    escape_completion_tables()
    escape_completion_tables()
    said = [{"role": "user", "content": "p\x1b[2J"}]
    grpo_trainer.print_prompt_completions_sample([said], ["c\x1b]0;owned\x07"], {"r": [1.0]}, [0.5], 1)
    printed = capsys.readouterr().out
    assert "\\x1b[2J" in printed
    assert not [c for c in printed if ord(c) < 32 and c != "\n"]


def test_json_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "eval_after.json").write_text("")
    with pytest.raises(ValueError, match=r"eval_after.json is no JSON"):
        read_json(tmp_path / "eval_after.json")
    with contextlib.suppress(FileNotFoundError):
        assert read_json(tmp_path / "none.json") is None
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "x.json") == {"a": 1}
