"""The card beside a trained model: what Hugging Face reads of it, what was done, and no secret."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from short_run import manifest, quietly, short_recipe
from tiny_model import saved_model

from entrl.runs.card import name_and_licence, without_paths
from entrl.trainers.shared.completeness import flaw
from entrl.version import __version__

TOKEN = "hf_" + "abcdefghij" * 3
EVAL = "eval={task: sums, size: 4, samples: 2}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    path = saved_model(folder)
    (Path(path) / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    return path


@pytest.fixture(scope="module")
def out(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a LoRA, a controller, an evaluation and a secret, resumed once more after its end was cut off."""
    out = tmp_path_factory.mktemp("carded") / "run"
    lora = "lora={r: 2, lora_alpha: 4, target_modules: all-linear}"
    parts = (
        "rewards=[{use: pear, args: {alpha: 0.5}}]",
        "controllers=[{use: kl_cov}]",
        "trainer.steps_per_generation=2",
        f"trainer.hub_token={TOKEN}",
    )
    made = short_recipe(model, out, EVAL, lora, *parts, "trainer.save_strategy=no")
    quietly(made)
    (out / "report.html").unlink()
    quietly(made, resume=True)
    return out


def test_hugging_face_reads_it(out: Path, model: str):
    card = ModelCard.load(out / "model" / "README.md")
    assert card.data.license == "mit"
    assert {"entrl", "trl", "grpo"} <= set(card.data.tags)
    assert not hasattr(card.data, "licence")
    assert "None" not in card.text
    assert f"fine-tuned version of {Path(model).name}" in card.text


def test_it_says_what_was_done(out: Path, model: str):
    text = (out / "model" / "README.md").read_text()
    for said in ("| Rewards | pear", "| Controllers | kl_cov", "| Data | sums |", "| Steps | 4 |", "alpha: 0.5"):
        assert said in text, said
    assert f"| entrl | {__version__}, commit {manifest(out)['git']['commit']} |" in text
    assert f"| Base model | {Path(model).name} |" in text
    after = json.loads((out / "eval_after.json").read_text())
    low, high = after["sampled_accuracy_ci"]
    row = next(line for line in text.splitlines() if line.startswith("| Sampled accuracy"))
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in row.replace("−", "-")
    assert text.count("</summary>") == text.count("</details>") == 1
    assert text.count("## What was done") == 1  # also after the resume


def test_it_tells_no_secret_and_no_path_and_leaves_the_model_whole(out: Path, model: str):
    text = (out / "model" / "README.md").read_text()
    assert TOKEN not in text
    assert str(out.parent) not in text
    assert str(Path(model).parent) not in text
    assert flaw(out / "model") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("think_close: </think>", "think_close: </think>"),
        ("task: jsonl:/home/a/x.jsonl", "task: jsonl:x.jsonl"),
        ("'/data/sets/3x.json', ~/x/y", "'3x.json', y"),
        ("../a/b.yaml 1/2 1 /2", "b.yaml 1/2 1 /2"),
        ("https://h.co/a/b rewards/mine.py:f", "https://h.co/a/b rewards/mine.py:f"),
    ],
)
def test_paths_and_nothing_else_lose_their_folders(text: str, shown: str):
    assert without_paths(text) == shown


def test_name_and_licence_of_a_base(model: str, tmp_path: Path):
    assert name_and_licence("tiny-reasoner") == ("tiny-reasoner", "apache-2.0")
    assert name_and_licence("Qwen/Qwen3-4B") == ("Qwen/Qwen3-4B", None)
    made = Path(saved_model(tmp_path / "made"))
    assert name_and_licence(str(made)) == (made.name, None)
    (made / "manifest.json").write_text(json.dumps({"licence": "Apache-2.0"}))
    assert name_and_licence(str(made)) == (made.name, "apache-2.0")
