"""The asynchronous trainer's loss side: rows, selection, penalty, weights, ages; no engine."""

import math
import types

import numpy as np
import pytest
import torch
from async_setup import GROUP, async_options, async_trainer, make_samples, saved_model
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
from trl.experimental.async_grpo.async_grpo_trainer import DataCollatorForRollout
from trl.experimental.async_grpo.packing import TreeRow

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.guard import EntropyGuard
from entrl.controllers.hooks import Controller, LossTerms, OneRank, Window
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.std_floor import StdFloor
from entrl.rollouts import cpu_tree_attention
from entrl.rollouts.async_loop import UNKNOWN
from entrl.trainers.async_grpo import EntropyAsyncGRPOTrainer, check_async
from entrl.trainers.async_rows import SUMS, FlatBatch, Layout, TrailCollator, padded_rows, staleness_metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    cpu_tree_attention.install()
    return saved_model(tmp_path_factory.mktemp("model"))


def large(**kwargs):
    return KLCov(fraction=0.1, penalty="k2", allow_large_fraction=True, **kwargs)


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


def weights(trainer):
    return {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}


# ---- rows


def packed(samples, *, rows=1):
    """A micro-batch as the collator hands it over, for `rows` ranks."""
    trees = [TreeRow() for _ in range(rows)]
    for i, s in enumerate(samples):
        keys = ("input_ids", "completion_mask", "old_log_probs", "advantage", "group_id", "metrics")
        trees[i * rows // len(samples)].add({k: getattr(s, k) for k in keys})
    seen = []
    collator = TrailCollator(DataCollatorForRollout(pad_token_id=1, num_processes=rows), seen.extend)
    return collator([trees]), seen


def test_every_trained_token_brings_its_own_entropy_and_version(model):
    samples = make_samples(model, 2, versions=lambda group, i: 10 * group + i)
    batch, seen = packed(samples)
    assert len(seen) == len(samples)
    flat = FlatBatch.of(batch)
    expected = np.concatenate([s.metrics.trail.entropies[s.completion_mask == 1] for s in samples])
    np.testing.assert_array_equal(flat.entropies_M.numpy(), expected)
    for row, sample in enumerate(samples):
        mine = flat.versions_M[flat.layout.row_M == row]
        assert mine.tolist() == [sample.model_version] * int(sample.completion_mask.sum())
    assert flat.rows.row_id_B.tolist() == [s.metrics.trail.row_id for s in samples]
    # Log-probs of the same tokens ride in TRL's own columns: the two must be in one order.
    old = np.concatenate([s.old_log_probs[s.completion_mask == 1] for s in samples])
    np.testing.assert_array_equal(flat.old_log_probs_M.numpy(), old)


def test_ranks_get_their_own_rows_with_padding_between_them_left_out(model):
    samples = make_samples(model, 2)
    batch, _ = packed(samples, rows=2)
    for rank, mine in enumerate((samples[:GROUP], samples[GROUP:])):
        flat = FlatBatch.of({k: v[rank : rank + 1] if v.dim() else v for k, v in batch.items()})
        assert len(flat.entropies_M) == sum(int(s.completion_mask.sum()) for s in mine)
        assert not flat.entropies_M.isnan().any()


def test_a_sample_of_another_worker_has_no_version_and_counts(model):
    batch, _ = packed(make_samples(model, 1, trails=False))
    flat = FlatBatch.of(batch)
    assert (flat.versions_M == UNKNOWN).all()
    assert flat.entropies_M.isnan().all()
    assert flat.rows.informative_B.all()
    assert len(flat.rows.row_id_B.unique()) == GROUP


def test_layout_is_a_round_trip_and_refuses_scattered_samples():
    segment_M = torch.tensor([0, 0, 0, 2, 2, 3])  # sample 1 has no trained token
    layout = Layout.of(segment_M)
    x_M = torch.arange(6.0, requires_grad=True)
    x_BT = layout.spread(x_M)
    assert x_BT.tolist() == [[0, 1, 2], [0, 0, 0], [3, 4, 0], [5, 0, 0]]
    assert torch.equal(layout.flat(x_BT), x_M)
    layout.flat(x_BT).square().sum().backward()
    assert x_M.grad.tolist() == [0, 2, 4, 6, 8, 10]
    with pytest.raises(ValueError, match="not together"):
        Layout.of(torch.tensor([0, 1, 0]))


def test_padded_rows_select_as_the_rows_themselves(model):
    """Ranks hold different numbers of rows here, which gathers cannot take: masked rows must change nothing."""
    flat = FlatBatch.of(packed(make_samples(model, 4, noise=0.3))[0])
    old_BT = flat.layout.spread(flat.old_log_probs_M)
    controller = large()

    def rule(rows, old):
        return controller.select(Window(rows=rows, log_probs_BT=old, old_log_probs_BT=old, step=0, ranks=OneRank()))

    plain = rule(flat.rows, old_BT)
    rows, others = padded_rows(flat.rows, {"old": old_BT}, shape=(flat.layout.rows + 3, flat.layout.columns + 5))
    wide = rule(rows, others["old"])
    assert wide.top.threshold == plain.top.threshold
    assert wide.stats.n == plain.stats.n
    assert len(rows.row_id_B.unique()) == len(rows.row_id_B)


# ---- the loss


def reference_log_probs(folder, samples):
    """One plain forward per sample, with the graph: parameters and (log-probs of the trained tokens) per sample."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for s in samples:
        ids, prompt = torch.tensor(s.input_ids), int((s.completion_mask == 0).sum())
        log_pi = torch.log_softmax(plain(input_ids=ids[None]).logits[0, prompt - 1 : -1], -1)
        out.append(log_pi[torch.arange(len(ids) - prompt), ids[prompt:]])
    return plain, out


def one_loss(trainer, samples):
    """(loss, gradients) of one micro-batch, without accumulation, as the policy stands."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = packed(samples)[0]
    trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def test_kl_cov_loss_and_gradients_are_the_equation(model, tmp_path):
    """-min(r A, r A) + [i in S] coef x^2 / 2, summed, over the number of tokens; S by loops over all tokens."""
    samples = make_samples(model, 3, noise=0.5)
    trainer = async_trainer(tmp_path, samples, model=model, controllers=[large(coef=0.7)])
    trainer._latest_version = 5  # the samples are of version 1: stale
    loss, gradients = one_loss(trainer, samples)

    plain, log_probs = reference_log_probs(model, samples)
    tokens = [(lp, float(o), s.advantage) for lps, s in zip(log_probs, samples, strict=True)
              for lp, o in zip(lps, s.old_log_probs[s.completion_mask == 1], strict=True)]  # fmt: skip
    n = len(tokens)
    mean_old, mean_a = sum(o for _, o, _ in tokens) / n, sum(a for *_, a in tokens) / n

    def covariance(log_prob, a):
        return (log_prob - mean_old) * (a - mean_a)  # means of the sampling policy, membership of the current one

    k = max(1, int(0.1 * n))
    by_old = sorted((covariance(o, a) for _, o, a in tokens), reverse=True)
    threshold = (by_old[k - 1] + by_old[k]) / 2
    total, selected = 0.0, 0
    for lp, o, a in tokens:
        total = total - torch.exp(lp - o) * a
        if covariance(lp.item(), a) > threshold:
            selected += 1
            total = total + 0.7 * (lp - o) ** 2 / 2
    expected = total / n
    expected.backward()
    assert selected > 0
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-5)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-3)


class HalfOfEven(Controller):
    """Weight 0.5 on even columns; a controller whose effect is easy to write down."""

    name = "half_of_even"

    def on_loss(self, rows, selection, **_):
        weight_BT = torch.ones_like(rows.advantages_BT)
        weight_BT[:, ::2] = 0.5
        return LossTerms(weight_BT=weight_BT)


def test_a_weight_scales_the_policy_term_of_its_tokens(model, tmp_path):
    samples = make_samples(model, 2, noise=0.5)
    trainer = async_trainer(tmp_path, samples, model=model, controllers=[HalfOfEven()])
    trainer._latest_version = 5
    loss, gradients = one_loss(trainer, samples)
    plain, log_probs = reference_log_probs(model, samples)
    terms = []
    for lps, s in zip(log_probs, samples, strict=True):
        for t, (lp, o) in enumerate(zip(lps, s.old_log_probs[s.completion_mask == 1], strict=True)):
            a = s.advantage * (0.5 if t % 2 == 0 else 1.0)
            r = torch.exp(lp - float(o))
            terms.append(-torch.minimum(r * a, r.clamp(0.8, 1.2) * a))
    expected = torch.stack(terms).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), atol=1e-5, rtol=1e-5)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-3)


def test_without_controllers_it_is_stock_trl_bit_for_bit(model, tmp_path):
    found = []
    for cls, config in ((AsyncGRPOTrainer, AsyncGRPOConfig), (EntropyAsyncGRPOTrainer, None)):
        options = async_options(tmp_path, cls=config) if config else async_options(tmp_path)
        trainer = async_trainer(tmp_path, make_samples(model, 16, noise=0.2), model=model, cls=cls, options=options)
        trainer.train()
        found.append(weights(trainer))
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_a_plain_async_config_is_accepted(model, tmp_path):
    options = async_options(tmp_path, cls=AsyncGRPOConfig, max_steps=1)
    trainer = async_trainer(tmp_path, make_samples(model, 8), model=model, options=options)
    trainer.train()
    assert trainer.state.global_step == 1


def test_no_penalty_while_the_policy_is_the_one_that_sampled(model, tmp_path):
    samples = make_samples(model, 3, noise=0.5)  # the noise plays the engines' disagreement
    trainer = async_trainer(tmp_path, samples, model=model, controllers=[large(coef=100.0)])
    stock = async_trainer(tmp_path, samples, model=model, epsilon=math.inf)
    for one in (trainer, stock):
        one._latest_version, one._synced_at = 1, 0
    loss, gradients = one_loss(trainer, samples)
    plain_loss, plain_gradients = one_loss(stock, samples)
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(gradients[k], plain_gradients[k]) for k in gradients)
    trainer._synced_at = -1  # a step since the version was sent: stale again
    assert one_loss(trainer, samples)[0] > plain_loss + 0.1


def wide_clip_cov():
    return ClipCov(fraction=0.1, allow_large_fraction=True, bounds="std", lower=0.1, upper=9)


@pytest.mark.parametrize("make", [large, wide_clip_cov, CWGRPO])
def test_selection_is_of_the_whole_step_whatever_the_micro_batches(model, tmp_path, make):
    def first_step(rows, accumulation):
        controller = make()
        seen = []

        class Spy(type(controller)):
            def on_loss(self, rows, selection, **kwargs):
                terms = super().on_loss(rows, selection, **kwargs)
                picked = terms.weight_BT if terms.weight_BT is not None else terms.penalty_BT
                seen.extend(
                    (int(i), t, round(float(p), 5))
                    for i, p_T, m_T in zip(rows.row_id_B, picked.detach(), rows.mask_BT, strict=True)
                    for t, (p, m) in enumerate(zip(p_T, m_T, strict=True))
                    if m
                )
                return terms

        controller.__class__ = Spy
        trainer = async_trainer(
            tmp_path, make_samples(model, 12, noise=0.4), model=model, controllers=[controller], max_steps=1,
            per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer._sync_weight = types.MethodType(lambda self: None, trainer)
        trainer._latest_version = 3
        trainer.train()
        return sorted(seen)

    whole, halves = first_step(16, 1), first_step(4, 4)
    assert whole == halves
    assert len({p for *_, p in whole}) > 1  # something was told apart


# ---- ages


class AgesAtTraining(TrainerCallback):
    """Versions between the sampling and the training of every sample, read where the loss is computed."""

    def __init__(self, trainer):
        self.ages = []
        inner = trainer.compute_loss

        def compute_loss(model, inputs, **kwargs):
            self.ages += (trainer.model_version - inputs["entrl_versions"][inputs["entrl_versions"] >= 0]).tolist()
            return inner(model, inputs, **kwargs)

        trainer.compute_loss = compute_loss


def aged_run(folder, model, *, max_staleness):
    """Four steps of one micro-batch each; every group is of the version that is out when it is fetched.

    Two groups are fetched before the first step, so the second is of version 1 as well.
    """
    trainer = async_trainer(
        folder, make_samples(model, 12, versions=lambda group, i: max(1, group)), model=model, max_steps=4,
        gradient_accumulation_steps=1, max_staleness=max_staleness,
    )  # fmt: skip
    watch = AgesAtTraining(trainer)
    trainer.train()
    return trainer, watch.ages


@pytest.mark.xfail(strict=True, reason="TRL 1.16 judges staleness when a sample is fetched, one micro-batch too early")
def test_trl_trains_nothing_older_than_max_staleness(model, tmp_path):
    """Every group is of the newest version when fetched, and all but the first are trained one version later."""
    trainer, ages = aged_run(tmp_path, model, max_staleness=0)
    assert not logged(trainer, "sample/dropped_stale_total")
    assert max(ages) <= 0


def test_our_ages_are_those_at_training_and_trl_says_one_less(model, tmp_path):
    trainer, ages = aged_run(tmp_path, model, max_staleness=0)
    assert sorted(set(ages)) == [0, 1]
    assert max(logged(trainer, "sample/staleness_max")) == 0
    counted = {a: sum(logged(trainer, f"staleness/{a}/tokens_total")) for a in (0, 1)}
    assert counted == {a: ages.count(a) for a in (0, 1)}


def test_entropies_and_gap_by_age(model, tmp_path):
    trainer = async_trainer(tmp_path, make_samples(model, 16), model=model, max_steps=3)
    trainer.train()
    # Step 1 trains version 1 under version 1: trainer and "sampler" are the same float32 weights.
    assert logged(trainer, "staleness/0/abs_log_ratio")[0] < 1e-5
    assert logged(trainer, "staleness/0/abs_entropy_gap")[0] < 1e-5
    assert logged(trainer, "policy_version") == [1, 2, 3]
    assert logged(trainer, "staleness/2/abs_log_ratio")[0] > logged(trainer, "staleness/0/abs_log_ratio")[0]


def test_staleness_metrics_by_hand():
    sums = [[0.0] * len(SUMS) for _ in range(3)]
    sums[1] = [4.0, 2.0, -0.4, 0.8, 2.0, 1.5, 1.0, 0.5]
    sums[2] = [1.0, 0.3, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]
    found = staleness_metrics(sums)
    assert found["staleness/1/entropy"] == (2.0, 4.0)
    assert found["staleness/1/entropy_change"] == (-0.5, 2.0)  # trainer's 1.0 less the sampler's 1.5, of 2 tokens
    assert found["staleness/unknown/tokens_total"] == 1.0
    assert "staleness/unknown/sampler_entropy" not in found
    assert not any(name.startswith("staleness/0") for name in found)


def test_disagreeing_engines_raise_the_alarm_once(model, tmp_path):
    trainer = async_trainer(tmp_path, make_samples(model, 16, noise=0.5), model=model, max_steps=2)
    with pytest.warns(UserWarning, match="trainer and server disagree by 0") as caught:
        trainer.train()
    assert sum("disagree" in str(w.message) for w in caught) == 1


# ---- refusals, checkpoints


def plain(completions, **_):
    return [0.0] * len(completions)


def hungry(completions, token_entropies, **_):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("options", "controllers", "reward", "message"),
    [
        ({}, [KLCov(penalty="k2", scope="exact")], plain, "take scope 'step'"),
        ({}, [KLCov()], plain, "penalty 'abs' pushes"),
        ({}, [EntropyGuard(controller=KLCov(), knob="coef")], plain, "penalty 'abs' pushes"),
        ({}, [StdFloor()], plain, "scale_rewards=group"),
        ({"top_p": 0.9}, [CWGRPO()], plain, "truncated distribution"),
        ({"min_p": 0.1}, [], hungry, "truncated distribution"),
        ({"sampler_entropies": False}, [], hungry, "sampler_entropies=True"),
        ({"epsilon": 0.3}, [KLCov(penalty="k2")], plain, "sets the ratio range itself"),
        ({}, [CWGRPO(), ClipCov()], plain, "cannot be combined"),
    ],
)  # fmt: skip
def test_what_would_train_something_else_is_refused(tmp_path, options, controllers, reward, message):
    problems = check_async(async_options(tmp_path, **options), controllers, [reward])
    assert any(message in p for p in problems), problems


def test_what_is_sound_is_not_refused(tmp_path):
    args = async_options(tmp_path)
    for controllers in ([large()], [KLCov(dead_zone=0.01)], [ClipCov()], [CWGRPO(scope="micro_batch")], []):
        assert check_async(args, controllers, [hungry]) == []


def test_plain_prompts_are_refused(model, tmp_path):
    from async_setup import FilledQueue, NoTransfer, any_reward
    from tiny_model import prompts

    with pytest.raises(ValueError, match="prompts are plain strings"):
        EntropyAsyncGRPOTrainer(
            model, any_reward, async_options(tmp_path), train_dataset=prompts(),
            rollout_worker=FilledQueue([]), weight_transfer=NoTransfer(),
        )  # fmt: skip


def test_options_refuse_what_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="gap_alarm must be > 0"):
        async_options(tmp_path, gap_alarm=0)
    with pytest.raises(ValueError, match="sample_completions"):
        async_options(tmp_path, sample_completions=-1)


def acting_guard():
    return EntropyGuard(controller=large(coef=1.0), knob="coef", start_entropy=100.0)  # nats; far above what there is


def test_a_checkpoint_brings_controllers_and_rewards_back(model, tmp_path):
    guard = acting_guard()
    samples = make_samples(model, 16, noise=0.2)
    samples[0].metrics.trail.reward_state = [{"ema": 0.25}]
    kwargs = {"model": model, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer = async_trainer(tmp_path, samples, controllers=[guard], **kwargs)
    trainer.train()
    again = acting_guard()
    resumed = async_trainer(
        tmp_path, make_samples(model, 16, seed=1), controllers=[again], **{**kwargs, "max_steps": 3}
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.state.global_step == 3
    assert guard.state_dict()["seen"] == 2
    assert again.state_dict()["seen"] == 3
    assert again.state_dict()["smoothed"] != acting_guard().state_dict()["smoothed"]
    assert resumed._reward_state == [{"ema": 0.25}]
