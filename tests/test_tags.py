"""One setting for the tags, and the prompt's word for where thinking ends: training and evaluation say the same."""

import json
import math
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from entrl_rewards.accuracy import Accuracy
from entrl_rewards.pear import Pear
from entrl_rewards.think_format import ThinkFormat
from tagged_models import PREFILLED, SWITCH, respelled, templated
from tiny_model import options
from transformers import AutoModelForCausalLM, AutoTokenizer

from entrl.cli.main import main
from entrl.evaluation.answers import evaluate
from entrl.evaluation.asked import asked_by, settled, template_kwargs
from entrl.models.load import load_policy
from entrl.runs.recipe import load_recipe
from entrl.runs.train import train
from entrl.tasks import load_task
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl.trainers.shared.first_look import LOOKED_AT

SPELLINGS = {
    "plain": ("<think>", "</think>", False),
    "special": ("<think>", "</think>", True),
    "thinking": ("<thinking>", "</thinking>", False),
    "bracket": ("[THINK]", "[/THINK]", True),
    "thought": ("<|begin_of_thought|>", "<|end_of_thought|>", True),
    "chinese": ("◁think▷", "◁/think▷", True),
}
TRAINED = ("plain", "special", "bracket")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    found = {name: respelled(folder / name, o, c, special=s) for name, (o, c, s) in SPELLINGS.items()}
    return found | {
        "switch": templated(folder / "switch", SWITCH),
        "prefilled": templated(folder / "prefilled", PREFILLED),
    }


def short_sums(count: int, *, chat: bool = False) -> Dataset:
    """Sums the tiny reasoner gets right now and then, when it samples."""
    rows = load_task({"task": "sums", "terms": [3]}, size=count, seed=1)
    said = [[{"role": "user", "content": p}] if chat else p for p in rows["prompt"]]
    return rows.remove_columns("prompt").add_column("prompt", said)


def trainer(folder: Path, model: str, rewards, *, chat: bool = False, **changes):
    defaults = {
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 48,
        "max_steps": 1,
        "learning_rate": 1e-4,
        "seed": 1,
    }
    return EntropyGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        rewards,
        options(folder, **(defaults | changes)),
        train_dataset=short_sums(16, chat=chat),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )


def logged(made) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.train()
    return next(row for row in made.state.log_history if "reward" in row)


def test_training_pays_the_same_for_every_spelling(models, tmp_path):
    found = {}
    for name in TRAINED:
        opening, closing, _ = SPELLINGS[name]
        rewards = [Accuracy(), Pear(), ThinkFormat()]
        made = trainer(tmp_path / name, models[name], rewards, think_open=opening, think_close=closing)
        row = logged(made)
        found[name] = {k: v for k, v in row.items() if k.startswith(("rewards/", "pear/", "loss", "dynamics/"))}
        phases = [s["phases"] for s in made.completion_samples]
        assert any("answer" in p for p in phases)
        found[name]["phases"] = phases
    assert 0.1 < found["plain"]["rewards/accuracy/mean"] < 1
    for name in TRAINED:
        assert found[name] == found["plain"], name


def test_evaluation_says_the_same_for_every_spelling(models):
    found = {}
    for name, (opening, closing, _) in SPELLINGS.items():
        policy = load_policy(models[name], device="cpu")
        tags = {"think_open": opening, "think_close": closing}
        result = evaluate(*policy, short_sums(12), samples=2, max_new_tokens=48, progress=False, **tags)
        assert {k: result[k] for k in tags} == tags
        gone = ("seconds", "commit", *tags)
        found[name] = {k: v for k, v in result.items() if k not in gone}
        for example in found[name]["examples"]:  # the tags' own text is what differs
            example["text"] = [part for part in example["text"] if part[0] in ("think", "answer")]
    assert found["plain"]["sampled_accuracy"] > 0.1
    for name in SPELLINGS:
        assert found[name] == found["plain"], name


def test_a_reward_that_names_other_tags_than_the_trainer_is_refused(models, tmp_path):
    for reward in (Accuracy(open_tag="[T]"), ThinkFormat(close_tag="[/T]")):
        with pytest.raises(
            ValueError, match=r"is for stock TRL and plain texts; trainer\.think_(open|close) is '</?think"
        ):
            trainer(tmp_path, models["plain"], [reward])
    with pytest.raises(ValueError, match=r"require_close=True is for stock TRL .* pay for the format by think_format"):
        trainer(tmp_path, models["plain"], [Accuracy(require_close=True)])
    same = Accuracy(open_tag="<think>", close_tag="</think>", close="last", require_close=False)
    trainer(tmp_path, models["plain"], [same])  # said twice, and alike


class Seen:
    """A reward that keeps what it was given."""

    __name__ = "seen"

    def __call__(self, *, completions, completion_ids, answer_texts, **_):
        self.rows = list(zip(completions, completion_ids, answer_texts, strict=True))
        return [float(len(a) > 0) for a in answer_texts]


def test_a_thought_that_the_prompt_opened_and_the_limit_cut_has_no_answer(models, tmp_path):
    """Every completion ends inside its thought, which holds the gold: without a closing tag there is no answer."""
    seen, accuracy = Seen(), Accuracy(kind="exact")
    made = trainer(tmp_path, models["prefilled"], [seen, accuracy], chat=True, max_completion_length=2)
    rows = short_sums(16, chat=True)
    said = {}

    def cut(prompts, trainer):  # the completion is the gold itself, in front of any tag
        gold = [rows["answer"][rows["prompt"].index(p)] for p in prompts]
        said["ids"] = [trainer.processing_class.encode(g) for g in gold]
        asked = [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in prompts
        ]
        return {"prompt_ids": asked, "completion_ids": said["ids"], "logprobs": [[0.0] * len(i) for i in said["ids"]]}

    made.rollout_func = cut
    row = logged(made)
    assert row["rewards/accuracy/mean"] == 0.0
    assert row["rewards/seen/mean"] == 0.0
    assert [a for _, _, a in seen.rows] == [""] * len(seen.rows)
    assert all(set(s["phases"]) == {"think"} for s in made.completion_samples)


def test_behind_a_block_that_the_prompt_closed_all_is_answer_and_pear_fines_nothing(models, tmp_path):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    made = trainer(tmp_path / "off", models["switch"], [Accuracy(), Pear(), ThinkFormat()], chat=True, **off)
    row = logged(made)
    assert row["pear/think_tokens"] == row["pear/missing_close"] == 0.0
    assert row["pear/answer_tokens"] == row["pear/tokens"] > 0
    assert {p for s in made.completion_samples for p in s["phases"]} == {"answer"}
    assert row["rewards/think_format/mean"] > 0.5  # nothing was left to close
    thinking = logged(trainer(tmp_path / "on", models["switch"], [Accuracy(), Pear()], chat=True))
    assert thinking["pear/think_tokens"] > 0


def test_silence_is_said_once_with_the_key_to_set(models, tmp_path):
    wrong = {"think_open": "[", "think_close": "]"}
    whole = {"per_device_train_batch_size": LOOKED_AT, "max_steps": 2, "max_completion_length": 16}
    made = trainer(tmp_path, models["plain"], [Seen(), Accuracy(kind="exact")], **whole, **wrong)
    with pytest.warns(UserWarning, match="think_close") as caught:
        made.train()
    said = [str(w.message) for w in caught]
    assert sum(f"trainer.think_close: the tag ']' stands in none of the first {LOOKED_AT}" in s for s in said) == 1
    assert not any("every reward of the first" in s for s in said)

    nothing = trainer(tmp_path, models["plain"], [lambda completions, **_: [0.0] * len(completions)], **whole)
    with pytest.warns(UserWarning, match=f"every reward of the first {LOOKED_AT} completions is 0; .* close"):
        nothing.train()
    with pytest.warns(UserWarning, match="cannot encode the tag '§'; set think_open / think_close .* counts as its"):
        trainer(tmp_path, models["plain"], [Accuracy()], think_close="§")


def test_evaluation_says_when_tags_never_occur_or_cannot(models):
    policy = load_policy(models["plain"], device="cpu")
    quick = {"samples": 2, "max_new_tokens": 48, "progress": False}
    with pytest.warns(UserWarning, match=r"closing tag '\]' stands in none of 24 completions; .* --think-close"):
        evaluate(*policy, short_sums(12), think_open="[", think_close="]", **quick)
    with pytest.warns(UserWarning, match="cannot encode the tag '§'"):
        evaluate(*policy, short_sums(12), think_close="§", **quick)
    with pytest.warns(UserWarning, match="none of 36 completions is right; .* the limit of tokens"):
        evaluate(*policy, short_sums(12), **{**quick, "max_new_tokens": 2})


RECIPE = """\
model: {{path: "{model}"}}
data: {{task: "jsonl:{rows}"}}
rewards: [{{use: accuracy}}]
eval: {{task: "jsonl:{rows}", size: null, samples: 2, k: [1, 2], before: false, seed: 3}}
trainer:
  output_dir: "{out}"
  per_device_train_batch_size: 16
  num_generations: 4
  max_steps: 1
  learning_rate: 1.0e-4
  max_completion_length: 32
  bf16: false
  gradient_checkpointing: false
  save_strategy: "no"
  seed: 0
"""


def run(folder: Path, model: str, *, chat: bool, trainer: str) -> Path:
    """A finished run in folder/run, of sums in a file."""
    rows = folder / "rows.jsonl"
    made = short_sums(8, chat=chat)
    rows.write_text("".join(json.dumps({"prompt": r["prompt"], "answer": r["answer"]}) + "\n" for r in made))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=rows, out=folder / "run") + f"  {trainer}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(load_recipe(recipe))
    return folder / "run"


def by_command(run_dir: Path, *words: str) -> dict:
    out = run_dir.parent / "by_command.json"
    asked = ("--task", f"jsonl:{run_dir.parent / 'rows.jsonl'}", "-k", "1,2", "--seed", "3", "--max-new-tokens", "32")
    assert main(["eval", str(run_dir / "model"), *asked, *words, "--out", str(out)]) == 0
    return json.loads(out.read_text())


NUMBERS = ("greedy_accuracy", "sampled_accuracy", "pass_at_k", "entropy", "missing_close_rate", "problems")
ASKED = ("think_open", "think_close", "chat_template_kwargs")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "chat", "trainer"),
    [
        ("switch", True, "chat_template_kwargs: {enable_thinking: false}"),
        ("bracket", False, "think_open: '[THINK]'\n  think_close: '[/THINK]'"),
    ],
)
def test_the_command_asks_a_runs_model_as_the_run_did(models, tmp_path, capsys, name, chat, trainer):
    run_dir = run(tmp_path, models[name], chat=chat, trainer=trainer)
    within = json.loads((run_dir / "eval_after.json").read_text())
    found = by_command(run_dir)
    said = capsys.readouterr().err
    assert f"as in {run_dir / 'recipe.yaml'}" in said
    assert trainer.partition(":")[0] in said
    for key in (*NUMBERS, *ASKED):
        assert found[key] == within[key], key
    words = ["--chat-template-kwargs", "enable_thinking=true"] if chat else ["--think-open", "<", "--think-close", ">"]
    other = by_command(run_dir, *words)
    assert other["entropy"] != within["entropy"]
    assert {k: other[k] for k in ASKED} != {k: within[k] for k in ASKED}


def test_what_a_folder_says_of_how_it_was_asked(tmp_path):
    assert asked_by("tiny-reasoner") == ({}, None)
    (tmp_path / "model").mkdir()
    (tmp_path / "recipe.yaml").write_text("trainer: {think_open: '[', chat_template_kwargs: {a: 1}}\n")
    assert asked_by(tmp_path / "model") == ({}, None)  # somebody's folder, not a run's
    (tmp_path / "manifest.json").write_text("{}")
    own = {"think_open": "[", "chat_template_kwargs": {"a": 1}}
    assert asked_by(tmp_path / "model") == (own, tmp_path / "recipe.yaml")
    chosen, line = settled(tmp_path / "model", {"think_open": "<", "think_close": None, "chat_template_kwargs": None})
    assert chosen == {"think_open": "<", "chat_template_kwargs": {"a": 1}}
    assert line == f"chat_template_kwargs={{'a': 1}}: as in {tmp_path / 'recipe.yaml'}"
    (tmp_path / "recipe.yaml").write_text("data: {chat_template_kwargs: {a: 2}}\n")
    assert asked_by(tmp_path)[0] == {"chat_template_kwargs": {"a": 2}}


def test_template_arguments_on_the_command_line():
    assert template_kwargs(None) is None
    assert template_kwargs('{"enable_thinking": false}') == template_kwargs("enable_thinking=false")
    assert template_kwargs("a=1,b=x") == {"a": 1, "b": "x"}
    for text in ("enable_thinking", "a=1,b", "3"):
        with pytest.raises(ValueError, match="takes a mapping such as"):
            template_kwargs(text)


def test_stock_trl_reads_the_end_of_a_text_prompt():
    """There the ids of the prompt are not known; what it ends in is."""
    gold = {"answer": ["7", "7", "7"], "prompts": ["3+4=<think>", "3+4=<think>\n", "3+4="]}
    assert Accuracy(kind="exact")(completions=["7"] * 3, **gold) == [0.0, 0.0, 1.0]
    chat = [[{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "<think>"}]]
    said = [[{"role": "assistant", "content": "7"}]]
    assert Accuracy(kind="exact")(completions=said, prompts=chat, answer=["7"]) == [0.0]
    assert math.isclose(Accuracy(kind="exact")(completions=["7</think>8"], prompts=["<think>"], answer=["8"])[0], 1.0)
