"""Branching inside the trainer, with a tiny model: what trains is the weighted gradient of exactly G rows a prompt."""

import pytest
import torch
from rounding import gradient_gap, log_prob_gap, parameter_gap
from tiny_model import digits, parameters, same, tiny_model, trainer

from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

TOKENS = 20  # of a row at most: prompt and completion
BRANCHED = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "branch_roots": 2,
    "branch_window": 2,
    "branch_quantile": 0.5,
    "scale_rewards": "none",
    "loss_type": "dr_grpo",
}


class Watched(EntropyGRPOTrainer):
    """Keeps what each training rollout was made of, and TRL's tensors of it."""

    def _generate_single_turn(self, *given, **options):
        out = super()._generate_single_turn(*given, **options)
        self.seen = getattr(self, "seen", [])
        self.seen.append(self._parts.rollouts.branched)
        return out

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.outputs = [*getattr(self, "outputs", []), output]
        return output


def watched(folder, **given):
    return trainer(folder, cls=Watched, **(BRANCHED | given))


@pytest.mark.parametrize("at", ["window_start", "window_end"])
def test_a_run_trains_on_trees(tmp_path, at):
    run = watched(tmp_path, branch_at=at, max_steps=4)
    before = parameters(run)
    run.train()
    assert not same(before, parameters(run))
    assert len(run.seen) == 4
    for number, (rollout, output) in enumerate(zip(run.seen, run.outputs, strict=True)):
        columns = rollout.columns
        roots, forks, copied = (columns[f"branch_{c}"].view(2, 4) for c in ("root", "fork", "copied"))
        if number == 0:
            assert roots.tolist() == [[0, 1, 2, 3]] * 2
        else:
            assert roots[:, :2].tolist() == [[0, 1]] * 2
            assert int(roots.max()) == 1
        for i in range(8):
            ids, parent, at_token = rollout.completion_ids[i], int(columns["branch_parent"][i]), int(forks.flatten()[i])
            assert output["completion_ids"][i][output["completion_mask"][i].bool()].tolist() == ids
            if parent >= 0:
                theirs = rollout.completion_ids[i // 4 * 4 + parent]
                shared = len(theirs) if copied.flatten()[i] else at_token
                assert ids[:shared] == theirs[:shared]
            assert len(ids) <= 12
    later = run.seen[1:]
    assert sum(r.metrics["branch/forks"] for r in later) > 0
    logged = [row for row in run.state.log_history if "branch/forks" in row]
    assert [row["branch/forks"] for row in logged] == [r.metrics["branch/forks"] for r in run.seen]


def test_one_step_is_the_weighted_gradient(tmp_path):
    """Parameters after a step of SGD against the formula of the card, tree by tree, with autograd on bare sequences."""
    rate, longest = 0.5, 12
    given = {"optim": "sgd", "learning_rate": rate, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    run = watched(tmp_path, max_steps=1, branch_at="window_end", **given)
    run._parts.rollouts.branching.threshold.value = 0.5  # as after earlier rollouts
    run.train()
    rollout, output = run.seen[0], run.outputs[0]
    assert (rollout.columns["branch_fork"] >= 0).any()

    model = tiny_model()
    prompts = [row[mask.bool()].tolist() for row, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)]
    texts = run._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    rewards = digits(texts)
    roots, weights = rollout.columns["branch_root"].tolist(), rollout.columns["branch_weight"].tolist()
    total = torch.zeros(())
    for group in range(2):
        rows = range(4 * group, 4 * group + 4)
        value = [sum(weights[i] * rewards[i] for i in rows if roots[i] == r) for r in (0, 1)]
        for i in rows:
            ids = torch.tensor([prompts[i] + rollout.completion_ids[i]])
            logits = model(input_ids=ids).logits[0, len(prompts[i]) - 1 : -1]
            log_p = logits.log_softmax(-1).gather(-1, ids[0, len(prompts[i]) :, None]).sum()
            total = total + weights[i] * (rewards[i] - value[1 - roots[i]]) * log_p / 2  # over two roots
    (total / 2 / longest).backward()  # over two prompts; dr_grpo divides by the longest completion
    gradient = gradient_gap(model, TOKENS, 8) * max(float(p.grad.abs().max()) for p in model.parameters())
    for name, old in model.named_parameters():
        new = dict(run.model.named_parameters())[name]
        assert ((new - old - rate * old.grad).abs() <= parameter_gap(gradient, new, slope=rate)).all(), name
    moved = max(float((rate * p.grad).abs().max()) for p in model.parameters())
    assert moved > 1e-2


def test_old_log_probs_are_of_each_rows_own_tokens(tmp_path):
    """With several updates per rollout the ratio of a fork begins at 1 on its prefix as on its own tokens."""
    run = watched(
        tmp_path,
        max_steps=1,
        branch_at="window_start",
        gradient_accumulation_steps=1,
        num_iterations=2,
    )
    run._parts.rollouts.branching.threshold.value = 0.5
    run.train()
    rollout, output = run.seen[0], run.outputs[0]
    model = tiny_model().double().eval()
    allowed = log_prob_gap(tiny_model(), TOKENS)
    assert (rollout.columns["branch_fork"] >= 0).any()
    for i, ids in enumerate(rollout.completion_ids):
        prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()]
        sequence = torch.cat([prompt, torch.tensor(ids)])[None]
        with torch.no_grad():
            log_p = model(input_ids=sequence).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(output["old_per_token_logps"][i, : len(ids)].double(), expected, rtol=0, atol=allowed)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "branch_token_budget": 30}
    whole = watched(tmp_path / "whole", **given)
    whole.train()
    resumed = watched(tmp_path / "resumed", **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-2"))
    assert resumed.kept["branching"].state_dict() == whole.kept["branching"].state_dict()
    assert [r.completion_ids for r in resumed.seen] == [r.completion_ids for r in whole.seen[2:]]
    assert same(parameters(resumed), parameters(whole))


def test_evaluation_writes_every_completion_whole(tmp_path):
    run = watched(tmp_path, max_steps=1)
    run._parts.rollouts.branching.threshold.value = 0.5
    run.model.eval()
    state = run._parts.rollouts.branching.state_dict()
    prompts = [[1, 2, 3]] * 4
    ids, _ = run._generate_single_turn(prompts, None, {}, 4)
    assert run.seen == [None]
    assert len(ids) == 4
    assert run._parts.rollouts.branching.state_dict() == state


def test_more_roots_than_completions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="branch_roots=4 must be at least 2 and below num_generations=4"):
        watched(tmp_path, branch_roots=4)
