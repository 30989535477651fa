"""Offline GRPO and DPO with TRL's own trainers on a random model: tokens, gradients, and the folder of a run."""

import copy
import json
from pathlib import Path

import pytest
import torch
import trl
import yaml
from rounding import gradient_gap, log_prob_gap, parameter_gap
from tiny_model import options, tiny_model
from trl import DPOConfig, DPOTrainer

from entrl.cli.errors import USER_ERRORS
from entrl.environments import load_environment
from entrl.tasks import load_task
from entrl.teach.made_model import is_made
from entrl.teach.offline import CandidateSpec, PairSpec, PrefixSpec, make_groups, make_pairs
from entrl.teach.offline.measure import choice_of, measure, turn_log_probs
from entrl.teach.offline.preferences import loop_template, pair_rows
from entrl.teach.offline.rendering import Rendering
from entrl.teach.offline.rollout import OfflineReward, OfflineRollouts, group_rows
from entrl.teach.offline.run import offline
from entrl.teach.offline.spec import load_offline
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.inquirer.lessons import SENTENCES, TOOLS, words
from entrl_lab.nursery.inquirer.tokenizer import inquirer_tokenizer

ASKED = 3  # questions of the scripted dialogue


def tokenizer_of(kind: str = "inquirer"):
    """The tiny inquirer's; or the same words under Qwen3's template, which renders a turn anew once another follows."""
    tokenizer = inquirer_tokenizer(words(), TOOLS, SENTENCES)
    if kind == "qwen3":
        folder = Path(trl.__file__).parent / "chat_templates"
        tokenizer.chat_template = (folder / "qwen3.jinja").read_text(encoding="utf-8")
        del tokenizer.response_template
    return tokenizer


def small(tokenizer, **kwargs):
    model = tiny_model(vocabulary=tokenizer, **kwargs)
    model.config.max_position_embeddings = 4096  # rotary positions, so any length goes
    return model


def data(size: int = 2):
    return load_task({"task": "twenty_questions", "rows": 8, "columns": 8}, split="train", size=size, seed=0)


def groups(size: int = 2, count: int | None = 4, **prefixes):
    shape = PrefixSpec(**{"longest": 2} | prefixes)
    return make_groups(load_environment("twenty_questions"), data(size), shape, CandidateSpec(count=count)).groups


class Scripted(EntropyGRPOTrainer):
    """TRL's tool loop with a model that asks the table's attributes in order; keeps what it was given each time."""

    def __init__(self, *args, turns, **kwargs) -> None:
        self.turns, self.given = turns, []
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids, *_, **__):
        number = len(self.given)
        self.given.append([list(ids) for ids in prompt_ids])
        said = self.turns[number] if number < len(self.turns) else [self._tokenizer.eos_token_id]
        return [list(said) for _ in prompt_ids], None


@pytest.mark.parametrize("kind", ["inquirer", "qwen3"])
def test_prefixes_have_the_tokens_of_the_real_tool_loop_in_both_methods(kind, tmp_path):
    rows, factory = data(1), load_environment("twenty_questions")
    shape = PrefixSpec(per_row=12, longest=ASKED, policies={"fixed": 1.0})
    made = make_groups(factory, rows, shape, CandidateSpec(count=3)).groups
    by_length = {group.length: group for group in made}
    longest = by_length[max(by_length)]
    assert longest.length >= 2
    tokenizer = tokenizer_of(kind)
    rendering = Rendering(copy.deepcopy(tokenizer))
    said = [m for m in longest.prompt if m["role"] == "assistant"]
    before = [longest.prompt[: 1 + 2 * i] for i in range(len(said))]
    turns = [rendering.turn(p, m, longest.tools) for p, m in zip(before, said, strict=True)]
    trainer = Scripted(
        small(tokenizer),
        [lambda completions, **_: [0.0] * len(completions)],
        options(tmp_path, num_generations=2, per_device_train_batch_size=2, max_completion_length=2000, max_steps=1),
        train_dataset=rows,
        processing_class=tokenizer,
        environment_factory=factory,
        turns=turns,
    )
    trainer.train()
    assert len(trainer.given) == len(turns) + 1
    for length, given in enumerate(trainer.given):
        expected = rendering.prefix(longest.prompt[: 1 + 2 * length], longest.tools)
        assert given[0] == given[1] == expected
    # The same ids through TRL's DPOTrainer, with the template it would otherwise not have used.
    pairs = make_pairs([longest], PairSpec(margin=0.1))
    fresh = tokenizer_of(kind)
    own = fresh.chat_template
    with loop_template(Rendering(fresh)):
        args = DPOConfig(output_dir=str(tmp_path / "dpo"), use_cpu=True, bf16=False, report_to=[], max_length=None)
        rows = pair_rows(pairs)
        preferred = DPOTrainer(small(fresh), small(fresh), args, train_dataset=rows, processing_class=fresh)
    assert fresh.chat_template == own
    row = preferred.train_dataset[0]
    assert row["prompt_ids"] == trainer.given[-1][0]
    newline = [] if kind == "inquirer" else fresh.encode("\n")
    assert row["chosen_ids"] == [*rendering.turn(longest.prompt, pairs[0].chosen[0], longest.tools), *newline]
    assert row["rejected_ids"] == [*rendering.turn(longest.prompt, pairs[0].rejected[0], longest.tools), *newline]


def trained(folder: Path, model, made):
    tokenizer = tokenizer_of()
    size = len(made[0].candidates)
    defaults = {
        "num_generations": size,
        "per_device_train_batch_size": size,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "loss_type": "grpo",
        "beta": 0.0,
    }
    trainer = EntropyGRPOTrainer(
        model,
        [OfflineReward()],
        options(folder, **defaults),
        train_dataset=group_rows(made),
        processing_class=tokenizer,
        rollout_func=OfflineRollouts(made, Rendering(tokenizer)),
    )
    trainer.train()
    return trainer


def test_the_step_on_a_group_is_grpos_computed_by_hand(tmp_path):
    """loss = -1/G sum_i A_i mean_t log p(c_i,t), A_i = (r_i - mean) / (std + 1e-4), ddof 1; SGD of rate 1."""
    (group,) = groups(1, per_row=1)
    tokenizer = tokenizer_of()
    model = small(tokenizer)
    twin = copy.deepcopy(model)
    rendering = Rendering(tokenizer)
    prefix = rendering.prefix(group.prompt, group.tools)
    reward_G = torch.tensor([c.reward for c in group.candidates])
    advantage_G = (reward_G - reward_G.mean()) / (reward_G.std() + 1e-4)
    loss = torch.zeros(())
    for candidate, advantage in zip(group.candidates, advantage_G, strict=True):
        turn = rendering.turn(group.prompt, candidate.message, group.tools)
        logits_TV = twin(input_ids=torch.tensor([[*prefix, *turn]])).logits[0, len(prefix) - 1 : -1]
        log_prob_T = logits_TV.log_softmax(-1)[range(len(turn)), turn]
        loss = loss - advantage * log_prob_T.mean() / len(reward_G)
    loss.backward()
    before = {name: weight.detach().clone() for name, weight in twin.named_parameters()}
    largest = max(float(weight.grad.abs().max()) for weight in twin.parameters())
    gradient = gradient_gap(twin, len(prefix) + len(turn), len(group.candidates)) * largest
    trainer = trained(tmp_path, model, [group])
    moved = 0.0
    for name, weight in trainer.model.named_parameters():
        by_hand = before[name] - twin.get_parameter(name).grad
        assert ((weight.detach().cpu() - by_hand).abs() <= parameter_gap(gradient, by_hand, slope=1.0)).all()
        moved = max(moved, (weight.detach() - before[name]).abs().max().item())
    assert moved > 1e-3  # the comparison would not hold for a step that was not taken


def test_every_row_of_a_rollout_is_its_own_candidate_and_wrong_sizes_are_refused(tmp_path):
    made = groups(2)
    rendering = Rendering(tokenizer_of())
    rollouts = OfflineRollouts(made, rendering)

    class Rank:
        num_generations = 4

        def __init__(self, index: int) -> None:
            self.accelerator = type("A", (), {"process_index": index})()

    prompts = [row["prompt"] for row in group_rows(made) for _ in range(4)][:8]
    whole = rollouts(prompts, Rank(0))
    assert whole["offline_reward"] == [c.reward for g in made[:2] for c in g.candidates]
    halves = [rollouts(prompts[:2], Rank(0)), rollouts(prompts[2:4], Rank(1))]  # a group split over two processes
    assert [ids for half in halves for ids in half["completion_ids"]] == whole["completion_ids"][:4]
    Rank.num_generations = 8
    with pytest.raises(ValueError, match="num_generations is 8, and each prompt has 4 candidates; set it to 4"):
        rollouts(prompts, Rank(0))
    Rank.num_generations = 4
    with pytest.raises(ValueError, match="has no group of candidates"):
        rollouts([[{"role": "user", "content": "?"}]], Rank(0))


def test_the_measurement_reads_what_is_written_and_ranks_by_log_prob():
    tokenizer, made = tokenizer_of(), groups(2, count=None)
    model, group = small(tokenizer), made[0]
    rendering = Rendering(tokenizer)
    parse = rendering.policy._parsed
    prefix = rendering.prefix(group.prompt, group.tools)
    for candidate in group.candidates:
        ids = rendering.turn(group.prompt, candidate.message, group.tools)
        kind = "repeated" if candidate.kind == "repeated" else "question"
        assert choice_of(parse(ids, prefix, group.tools), group) == (kind, candidate.key)
    assert choice_of({"role": "assistant", "content": "well"}, group) == ("other", "")
    turns = [rendering.turn(group.prompt, c.message, group.tools) for c in group.candidates]
    found = turn_log_probs(model, prefix, turns, batch_size=3)
    each = log_prob_gap(model, len(prefix) + max(map(len, turns)))
    with torch.no_grad():
        for turn, value in zip(turns, found, strict=True):
            logits_TV = model(input_ids=torch.tensor([[*prefix, *turn]])).logits[0, len(prefix) - 1 : -1]
            wanted = logits_TV.log_softmax(-1)[range(len(turn)), turn].sum().item()
            assert value == pytest.approx(wanted, abs=each * len(turn))
    result = measure(model, tokenizer, made, max_new_tokens=4)
    assert result["prefixes"] == len(made)
    assert result["written"]["kinds"]["other"] == 1  # random weights write no call
    assert 0 <= result["ranked"]["gain"]["mean"] <= result["best"]["mean"]


def file_of(folder: Path, **changes) -> Path:
    tokenizer = tokenizer_of()
    small(tokenizer).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    content = {
        "model": {"path": str(folder / "start")},
        "data": {
            "task": "twenty_questions",
            "size": 3,
            "args": {"rows": 8, "columns": 8},
            "prefixes": {"per_row": 1, "longest": 2},
            "candidates": {"count": 4, "submit": 1.0},
        },
        "held_out": {"size": 2, "max_new_tokens": 4},
        "trainer": {"max_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "bf16": False},
        "out": str(folder / "out"),
    }
    file = folder / "offline.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_a_run_writes_its_folder_and_says_what_it_was_made_from(method, tmp_path):
    extra = (
        {"controllers": [{"use": "kl_cov", "args": {"fraction": 0.3, "allow_large_fraction": True}}]}
        if method == "grpo"
        else {"pairs": {"margin": 0.05}, "lora": {"r": 2, "target_modules": ["q_proj"]}}
    )
    file = file_of(tmp_path, method=method, **extra)
    batch = ["trainer.per_device_train_batch_size=4"]
    # A second look at a group, so that the controller has something to hold.
    spec = load_offline(file, batch + (["trainer.num_iterations=2"] if method == "grpo" else []))
    manifest = offline(spec)
    folder = spec.folder
    assert manifest["status"] == "finished"
    assert manifest["steps"] == 2
    assert manifest["git"].keys() == {"commit", "dirty"}
    assert set(manifest["data_sha256"]) == {"candidates.jsonl", "held_out.jsonl"} | (
        {"pairs.jsonl"} if method == "dpo" else set()
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["data"]["train"]["kinds"]["submit"] == report["data"]["train"]["prefixes"]
    assert set(report["change"]) == {"written", "ranked"}
    assert (folder / "model" / ("config.json" if method == "grpo" else "adapter_config.json")).is_file()
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if method == "grpo":
        assert any("rewards/offline_gain/mean" in row for row in logged)
        assert any(key.startswith("kl_cov/") for row in logged for key in row)
    else:
        assert any("rewards/margins" in row for row in logged)
    card = (folder / "model" / "README.md").read_text()
    assert f"| Method | {method} on fixed candidates, offline |" in card
    assert "- held out: best question" in card
    assert is_made(spec)
    other = load_offline(file, [*batch, "data.size=4"])
    with pytest.raises(USER_ERRORS, match=r"made with other settings .*data.size"):
        offline(other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_what_is_taught_is_learnt(method, tmp_path):
    """The prefixes trained on, measured again: the best question becomes the likeliest turn."""
    file = file_of(tmp_path, method=method, held_out={"split": "train", "seed": 5, "size": 3})
    longer = ["trainer.max_steps=60", "trainer.learning_rate=3e-3", "trainer.per_device_train_batch_size=4"]
    spec = load_offline(file, ["data.candidates.submit=null", *longer])
    offline(spec)
    from transformers import AutoModelForCausalLM

    from entrl.teach.offline import read_groups

    tokenizer, made = tokenizer_of(), read_groups(spec.folder / "candidates.jsonl")
    before = measure(small(tokenizer), tokenizer, made, max_new_tokens=2)
    after = measure(AutoModelForCausalLM.from_pretrained(spec.model_dir), tokenizer, made, max_new_tokens=2)
    assert after["ranked"]["gain"]["mean"] > before["ranked"]["gain"]["mean"]
