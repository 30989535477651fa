"""entrl.runs.train: the run folder, resume, and two-step runs of every kind of recipe with a random model."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from rich.console import Console
from safetensors.torch import load_file
from tiny_model import saved_model, tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from entrl.models.merge import merge_adapter
from entrl.runs.folder import RunFolder, append_lines, read_recipe, write_json
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.train import before_after_table, train
from entrl.settings.groups import flat
from entrl.settings.json_lines import finite
from entrl.settings.provenance import git_state

RECIPES = Path(__file__).parents[1] / "recipes"
TINY = (
    "data.train_size=32",
    "trainer.per_device_train_batch_size=4",
    "trainer.num_generations=4",
    "trainer.max_completion_length=6",
    "trainer.max_steps=4",
    "eval=null",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def recipe(name: str, model: str, out: Path, *more: str) -> Recipe:
    words = (*TINY, f"model.path={model}", f"trainer.output_dir={out}", *more)
    return load_recipe(RECIPES / "tiny-reasoner" / f"{name}.yaml", words)


def quietly(recipe: Recipe, **how: Any) -> Any:
    return train(recipe, console=Console(quiet=True), **how)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_behind(model: str, tmp_path: Path):
    out = tmp_path / "run"
    evaluation = "eval={task: sums, size: 4, samples: 2, k: [1, 2]}"
    made = recipe("kl-cov", model, out, evaluation)
    result = quietly(made)
    assert {p.name for p in out.iterdir()} >= {
        "recipe.yaml", "manifest.json", "metrics.jsonl", "completions.jsonl",
        "eval_before.json", "eval_after.json", "checkpoints", "model", "report.html",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["world_size"] == 1
    assert read_recipe(out).resolved() == made.resolved()
    assert manifest["config_hash"] == made.config_hash()
    rows = lines(out / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert all(r["kind"] == "train" and "kl_cov/selected" in r for r in rows)
    assert ["reward" in r for r in rows] == [True, False, True, False]  # two updates per rollout
    assert [r["tokens"] for r in rows] == sorted(r["tokens"] for r in rows)
    assert rows[-1]["forward_passes"] > 0
    samples = lines(out / "completions.jsonl")
    assert {s["step"] for s in samples} == {0, 2}
    assert all(len(s["tokens"]) == len(s["entropies"]) == len(s["phases"]) for s in samples)
    assert result.eval_before["n_problems"] == result.eval_after["n_problems"] == 4
    assert result.eval_before["problems"][0]["id"] == result.eval_after["problems"][0]["id"]
    assert result.report.is_file()
    assert list(before_after_table(result).columns[0].cells)[:2] == ["Greedy accuracy, %", "Sampled accuracy, %"]


@pytest.mark.parametrize("name", ["grpo", "clip-cov", "pear", "pear-kl-cov"])
def test_each_recipe_trains(name: str, model: str, tmp_path: Path):
    quietly(recipe(name, model, tmp_path / "run", "trainer.max_steps=2"))
    assert [r["step"] for r in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_lora_trains_and_merges(model: str, tmp_path: Path):
    result = quietly(recipe("lora", model, tmp_path / "run", "lora.r=2"))
    assert (result.model_dir / "adapter_config.json").is_file()
    merged = merge_adapter(result.model_dir, tmp_path / "merged")
    before, after = load_file(Path(model) / "model.safetensors"), load_file(merged / "model.safetensors")
    adapter = load_file(result.model_dir / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    scale = 32 / 2  # lora_alpha / r
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + scale * b @ a)
    with pytest.raises(ValueError, match="is not empty"):
        merge_adapter(result.model_dir, merged)


def test_resumed_run_equals_an_uninterrupted_one(model: str, tmp_path: Path):
    saving = ("trainer.save_strategy=steps", "trainer.save_steps=1", "trainer.learning_rate=1e-2")
    whole = recipe("kl-cov", model, tmp_path / "whole", *saving)
    quietly(whole)
    broken = recipe("kl-cov", model, tmp_path / "broken", *saving)
    quietly(broken)
    interrupt(tmp_path / "broken", keep_step=3)  # in the middle of the second rollout
    quietly(broken, resume=True)
    expected, found = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    timing = {"seconds", "step_time"}
    rows = [[{k: v for k, v in r.items() if k not in timing} for r in lines(tmp_path / n / "metrics.jsonl")]
            for n in ("whole", "broken")]  # fmt: skip
    assert rows[0] == rows[1]
    assert lines(tmp_path / "whole" / "completions.jsonl") == lines(tmp_path / "broken" / "completions.jsonl")


def interrupt(out: Path, *, keep_step: int) -> None:
    """Make a finished folder look as if it had been killed after `keep_step`, its last line half-written."""
    import shutil

    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > keep_step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(out / "model")
    manifest = json.loads((out / "manifest.json").read_text())
    write_json(out / "manifest.json", {**manifest, "status": "running"})
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kin')


def test_existing_folder_rules(model: str, tmp_path: Path):
    folder = RunFolder(path=tmp_path / "run")
    made = recipe("grpo", model, folder.path)
    assert folder.open(made, resume=False, overwrite=False) is None
    write_json(folder.path / "manifest.json", {"entrl": "0", "status": "failed", "config_hash": made.config_hash()})
    (folder.path / "recipe.yaml").write_text(made.to_yaml())
    with pytest.raises(ValueError, match=r"holds a run already \(failed\); add resume=true"):
        folder.open(made, resume=False, overwrite=False)
    with pytest.raises(ValueError, match="exclude each other"):
        folder.open(made, resume=True, overwrite=True)
    other = recipe("grpo", model, folder.path, "trainer.seed=5")
    with pytest.raises(ValueError, match=r"started with other settings \(trainer.seed\)"):
        folder.open(other, resume=True, overwrite=False)
    write_json(folder.path / "manifest.json", {"entrl": "0", "status": "finished", "config_hash": made.config_hash()})
    with pytest.raises(ValueError, match="is finished, there is nothing to resume"):
        folder.open(made, resume=True, overwrite=False)
    (folder.path / "mine.txt").write_text("keep me")
    assert folder.open(made, resume=False, overwrite=True) is None
    assert [p.name for p in folder.path.iterdir()] == ["mine.txt"]


def test_folder_of_somebody_else_is_left_alone(model: str, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for how in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(ValueError, match="is not a run folder"):
            RunFolder(path=tmp_path).open(
                recipe("grpo", model, tmp_path), **({"resume": False, "overwrite": False} | how)
            )


def test_resume_with_nothing_there_starts_from_the_beginning(model: str, tmp_path: Path):
    made = recipe("grpo", model, tmp_path / "run")
    assert RunFolder(path=tmp_path / "run").open(made, resume=True, overwrite=False) is None


def test_failed_run_says_so_in_its_manifest(model: str, tmp_path: Path):
    (tmp_path / "bad.py").write_text("def bad(completions, **kw):\n    raise KeyError('gold')\n")
    text = (RECIPES / "tiny-reasoner" / "grpo.yaml").read_text().replace("accuracy", "bad.py:bad")
    (tmp_path / "own.yaml").write_text(text)
    words = [*TINY, f"model.path={model}", f"trainer.output_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"reward 'bad' raised KeyError: 'gold' \(in a trial call on "):
        quietly(load_recipe(tmp_path / "own.yaml", words))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="reward 'bad' raised KeyError"):
        quietly(load_recipe(tmp_path / "own.yaml", [*words, "reward_trial_s=0"]))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "KeyError" in manifest["error"]


def test_custom_rewards_from_a_recipe(model: str, tmp_path: Path):
    """A plain TRL function with an argument, and one that names token_entropies."""
    (tmp_path / "mine.py").write_text(
        "def short(completions, per_char=1.0, **kw):\n    return [-per_char * len(c) for c in completions]\n"
        "def calm(completions, token_entropies, **kw):\n    return [-float(e.mean()) for e in token_entropies]\n"
    )
    rewards = "rewards=[{use: 'mine.py:short', weight: 0.5, args: {per_char: 2.0}}, {use: 'mine.py:calm'}]"
    (tmp_path / "own.yaml").write_text((RECIPES / "tiny-reasoner" / "grpo.yaml").read_text())
    words = [*TINY, f"model.path={model}", f"trainer.output_dir={tmp_path / 'run'}", "trainer.max_steps=1", rewards]
    quietly(load_recipe(tmp_path / "own.yaml", words))
    row = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["rewards/short/mean"] < 0
    assert row["reward"] == pytest.approx(0.5 * row["rewards/short/mean"] + row["rewards/calm/mean"], abs=1e-5)


def test_a_reward_that_applies_to_nothing_does_not_stop_the_progress_line(model: str, tmp_path: Path):
    (tmp_path / "never.py").write_text("def never(completions, **_):\n    return [None] * len(completions)\n")
    result = quietly(recipe("grpo", model, tmp_path / "run", f"rewards=[{{use: '{tmp_path}/never.py:never'}}]"))
    rows = lines(result.run_dir / "metrics.jsonl")
    assert all(row.get("reward") is None for row in rows)


def test_column_missing_stops_before_anything_is_written(model: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text("def mine(completions, gold, **kw):\n    return [0.0] * len(completions)\n")
    (tmp_path / "own.yaml").write_text((RECIPES / "tiny-reasoner" / "grpo.yaml").read_text())
    words = [*TINY, f"model.path={model}", f"trainer.output_dir={tmp_path / 'run'}", "rewards=['mine.py:mine']"]
    with pytest.raises(ValueError, match="needs 'gold', which is neither a dataset column"):
        quietly(load_recipe(tmp_path / "own.yaml", words))
    assert not (tmp_path / "run").exists()


def test_world_size_other_than_asked(model: str, tmp_path: Path):
    with pytest.raises(ValueError, match="asks for 2 processes, there are 1"):
        quietly(recipe("grpo", model, tmp_path / "run", "world_size=2"))


def qwen3_like(folder: Path) -> str:
    """A random Qwen3 behind Qwen3's own chat template and a byte-level BPE that has its special tokens."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["a baker sells 12 loaves and then 7 more; how many in all?"] * 4,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=words[:3]),
    )
    backend.add_tokens([AddedToken(w, special=False, normalized=False) for w in words[3:]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tiny_model(vocabulary=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pear-kl-cov", "lora-pear"])
def test_qwen3_recipe_is_constructed_and_steps_with_a_random_model(name: str, tmp_path: Path):
    """The recipe but for scale: Qwen3's template and architecture, chat rows like GSM8K's, its rewards and controllers.

    Not its vLLM, its hub data and its length: those need another machine.
    """
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} loaves and {i} more?"}], "answer": str(2 * i)} for i in range(64)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = [
        f"model={{path: {qwen3_like(tmp_path / 'model')}, dtype: float32}}",
        f"data={{task: 'jsonl:{tmp_path / 'rows.jsonl'}', train_size: 64}}",
        f"eval={{task: 'jsonl:{tmp_path / 'rows.jsonl'}', size: 3, samples: 2, k: [1, 2], max_new_tokens: 6}}",
        "world_size=1",
        "trainer.use_vllm=false",
        "trainer.per_device_train_batch_size=1",
        "trainer.max_completion_length=6",
        "trainer.max_steps=2",
        f"trainer.output_dir={tmp_path / 'run'}",
    ]
    result = quietly(load_recipe(RECIPES / "qwen3" / f"{name}.yaml", words))
    found = lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in found] == [1, 2]
    assert "pear/h_think" in found[0]
    assert result.eval_after is not None
    assert result.eval_after["n_problems"] == 3
    sample = lines(tmp_path / "run" / "completions.jsonl")[0]
    assert "<|im_start|>user" in sample["prompt"]
    assert sample["entropies"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "games"),
    [
        ("twenty-questions", "task: twenty_questions, args: {rows: 4, columns: 4, max_questions: 3}"),
        ("diagram", "task: diagram, args: {slots: 3, expertise: mixed, max_questions: 3}"),
    ],
)
def test_qwen3_dialogues_are_constructed_and_step_with_a_random_model(name: str, games: str, tmp_path: Path):
    """The recipe with tools but for scale: Qwen3's template with its tool schemas, LoRA, credit per turn, dialogues."""
    words = [
        f"model={{path: {qwen3_like(tmp_path / 'model')}, dtype: float32}}",
        f"data={{{games}, train_size: 64}}",
        f"eval={{{games}, split: test, size: 3, samples: 2, k: [1, 2], max_new_tokens: 6}}",
        "world_size=1",
        "trainer.use_vllm=false",
        "trainer.per_device_train_batch_size=1",
        "trainer.gradient_accumulation_steps=8",
        "trainer.max_completion_length=6",
        "trainer.max_steps=2",
        f"trainer.output_dir={tmp_path / 'run'}",
    ]
    result = quietly(load_recipe(RECIPES / "qwen3" / f"{name}.yaml", words))
    found = lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in found] == [1, 2]
    assert found[0]["information_gain/submitted"] == 0  # random bytes call nothing
    assert found[0]["turns/per_completion"] == 1
    assert result.eval_after is not None
    assert result.eval_after["inquiry"]["greedy"]["questions"]["mean"] == 0
    sample = lines(tmp_path / "run" / "completions.jsonl")[0]
    assert '"name": "ask"' in sample["prompt"]


def test_lines_instead_of_a_bar_where_there_is_no_terminal(model: str, tmp_path: Path):
    with (tmp_path / "out.txt").open("w") as file:
        train(recipe("grpo", model, tmp_path / "run"), console=Console(file=file))
    text = (tmp_path / "out.txt").read_text()
    assert "step 4/4" in text
    assert "reward" in text.split("step 4/4")[1]  # also at a step whose rollout was logged before
    assert "using entrl_rewards.accuracy:reward from" in text
    assert re.search(r"optimiser step: (\d+) rows x (\d+) micro-steps x 1 process\(es\) = \d+ rows", text)


def test_json_holds_no_nan(tmp_path: Path):
    assert finite({"a": float("nan"), "b": [float("inf"), 1.0], "c": "x"}) == {"a": None, "b": [None, 1.0], "c": "x"}
    append_lines(tmp_path / "x.jsonl", [{"step": 1, "loss": float("nan")}])
    assert lines(tmp_path / "x.jsonl") == [{"step": 1, "loss": None}]


def test_git_state_outside_a_repository(tmp_path: Path):
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_flat_names():
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": {}}) == {"a.b.0": 1, "a.b.1.c": 2, "d": {}}


@pytest.mark.multiprocess
def test_two_ranks_write_one_folder_and_fail_alike(model: str, tmp_path: Path):
    root, out = RECIPES.parent, tmp_path / "run"
    words = [*TINY, f"model.path={model}", f"trainer.output_dir={out}", "world_size=2", "backend=gloo"]
    launch = [
        "accelerate.commands.launch",
        "--config_file",
        str(root / "launch" / "cpu_2.yaml"),
        "--main_process_port",
        "0",
    ]
    command = [sys.executable, "-m", *launch, "-m", "entrl", "train", str(RECIPES / "tiny-reasoner" / "kl-cov.yaml")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["backend"], manifest["status"]) == (2, "gloo", "finished")
    assert [r["step"] for r in lines(out / "metrics.jsonl")] == [1, 2, 3, 4]
    again = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode != 0
    assert again.stderr.count("holds a run already (finished)") == 1  # both ranks stop, one of them says why
