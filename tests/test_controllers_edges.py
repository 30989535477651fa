"""Every controller at the edges, with one documented answer each, and every gradient through the trainer's own loss."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import trainer
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOTrainer

from entrl.controllers.ce_gppo import CEGPPO
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.hooks import LossView, Rows, Window
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.steer import Steer
from entrl.controllers.w_reinforce import WReinforce
from entrl.trainers.shared.row_columns import rows_of
from entrl_lab.nursery.tokenizer import character_tokenizer

NAN = math.nan
COV = {"fraction": 0.2, "allow_large_fraction": True, "log_shares": False}
MAKE = {
    "clip_cov": lambda scope: ClipCov(**COV, lower=0.01, upper=50.0, clip_low=0.2, clip_high=0.28, scope=scope),
    "kl_cov": lambda scope: KLCov(**COV, clip_low=0.2, clip_high=0.28, scope=scope),
    "cw_grpo": lambda scope: CWGRPO(scope=scope),
    "steer": lambda scope: Steer(scope=scope),
    "ce_gppo": lambda scope: CEGPPO(),
    "w_reinforce": lambda scope: WReinforce(),
}
every_controller = pytest.mark.parametrize("name", MAKE)
every_scope = pytest.mark.parametrize("scope", ["step", "micro_batch"])


class Batch:
    """Rows with both passes' log-probs; under `step` the window is scored by the sampling policy."""

    def __init__(self, rows, log_probs, old, entropies):
        self.rows, self.log_probs, self.old, self.entropies = rows, log_probs, old, entropies

    def changed(self, *, rows=None, **columns):
        made = Batch(replace(self.rows, **(rows or {})), self.log_probs, self.old, self.entropies)
        for key, value in columns.items():
            setattr(made, key, value)
        return made


def batch(seed=0, shape=(6, 5), dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)
    rows = Rows(
        advantages_BT=torch.randn(shape[0], 1, generator=g).expand(shape).clone(),
        mask_BT=mask,
        row_id_B=torch.arange(shape[0]),
        informative_B=torch.ones(shape[0], dtype=torch.bool),
    )
    old = -3 * torch.rand(shape, generator=g) - 0.01
    log_probs = (old + 0.4 * torch.randn(shape, generator=g)).clamp(max=-0.01)
    return Batch(rows, log_probs.to(dtype), old.to(dtype), 2 * torch.rand(shape, generator=g))


class Acted:
    def __init__(self, acting, of):
        selection = None
        if acting.scope == "step":
            window = Window(
                rows=of.rows,
                log_probs_BT=of.old.float(),
                old_log_probs_BT=of.old.float(),
                entropies_BT=of.entropies,
                step=1,
            )
            selection = acting.select(window)
            self.window_metrics = {k: float(v) for k, v in acting.window_metrics(selection).items()}
        leaf = of.log_probs.clone().requires_grad_()
        terms = acting.on_loss(
            of.rows,
            selection,
            LossView(
                log_probs_BT=leaf,
                old_log_probs_BT=of.old,
                entropies_BT=of.entropies,
                eps_low=0.2,
                eps_high=0.28,
            ),
        )
        assert terms.weight_BT is None or not terms.weight_BT.requires_grad
        self.weight = torch.ones(leaf.shape) if terms.weight_BT is None else terms.weight_BT
        self.penalty = torch.zeros(leaf.shape) if terms.penalty_BT is None else terms.penalty_BT.detach()
        self.grad = torch.zeros(leaf.shape)
        if terms.penalty_BT is not None:
            terms.penalty_BT.sum().backward()
            assert leaf.grad is not None
            self.grad = leaf.grad
        self.metrics = acting.summarise({k: float(v) for k, v in terms.sums.items()})
        for x in (self.weight, self.penalty, self.grad):
            assert x.isfinite().all()
        assert all(math.isfinite(v) for v in self.metrics.values())

    def idle(self):
        return bool((self.weight == 1).all() and not self.penalty.any() and not self.grad.any())


@every_scope
@every_controller
def test_fully_masked_micro_batch(name, scope):
    """Weight 1, no penalty, no gradient, metrics without a division by zero."""
    of = batch()
    of = of.changed(rows={"mask_BT": torch.zeros_like(of.rows.mask_BT)})
    acted = Acted(MAKE[name](scope), of)
    assert acted.idle()
    assert all(v == 0 for v in acted.metrics.values())


@every_scope
@every_controller
def test_nan_in_padding_changes_nothing(name, scope):
    of = batch(1)
    mask = of.rows.mask_BT
    assert not mask.all()
    poisoned = {k: torch.where(mask, getattr(of, k), NAN) for k in ("log_probs", "old", "entropies")}
    clean, dirty = Acted(MAKE[name](scope), of), Acted(MAKE[name](scope), of.changed(**poisoned))
    for key in ("weight", "penalty", "grad"):
        assert torch.equal(getattr(clean, key), getattr(dirty, key))
        assert torch.equal(getattr(clean, key)[~mask], torch.full_like(clean.penalty[~mask], key == "weight"))
    assert clean.metrics == dirty.metrics


@every_scope
@every_controller
def test_an_infinite_padding_slot_changes_nothing(name, scope):
    of = batch(1)
    mask = of.rows.mask_BT
    poisoned = {k: torch.where(mask, getattr(of, k), -math.inf) for k in ("log_probs", "old")}
    clean, dirty = Acted(MAKE[name](scope), of), Acted(MAKE[name](scope), of.changed(**poisoned))
    assert torch.equal(clean.weight, dirty.weight)
    assert torch.equal(clean.grad, dirty.grad)


# What a token whose old log-prob is -101 and whose current one is -1 gets (advantage +1 / -1), H = .5:
LOG_RATIO_100 = {
    "clip_cov": (1.0, 1.0),  # A > 0: the ratio clip silences it, so it is no candidate; A < 0: c < 0 there
    "kl_cov": (1.0, 1.0),  # penalty instead: coef * 100 where chosen
    "steer": (0.8, 0.8),  # the largest |O|: w_min
    "ce_gppo": (1.0, 1.0),  # A > 0: gradient -(1 + eps_high), A < 0: inside the clip of its sign, nothing
    "w_reinforce": (1.0, 1.0),
}


@every_scope
@every_controller
def test_a_log_ratio_of_100(name, scope):
    of = batch(2)
    extreme = torch.zeros_like(of.rows.mask_BT)
    extreme[0, 0] = extreme[1, 0] = True
    advantages = of.rows.advantages_BT.clone()
    advantages[0], advantages[1] = 1.0, -1.0
    of = of.changed(
        rows={"advantages_BT": advantages},
        log_probs=torch.where(extreme, -1.0, of.log_probs),
        entropies=torch.where(extreme, 0.5, of.entropies),
    )
    far = of.changed(old=torch.where(extreme, -101.0, of.old))
    acting = MAKE[name](scope)
    acted = Acted(acting, far)
    if name == "cw_grpo":
        if scope == "micro_batch":  # its covariance knows nothing of the old policy
            assert torch.equal(acted.weight, Acted(MAKE[name](scope), of).weight)
        else:  # the window is scored by the old policy: sigma is large there, the token itself is not
            assert float(acted.weight.max()) < 3
        return
    assert acted.weight[extreme].tolist() == pytest.approx(LOG_RATIO_100[name])
    if name == "ce_gppo":
        assert acted.grad[extreme].tolist() == pytest.approx([-1.28, 0.0])
    if name == "kl_cov":
        for penalty, slope in zip(acted.penalty[extreme].tolist(), acted.grad[extreme].tolist(), strict=True):
            assert (penalty, slope) in ((100.0, 1.0), (0.0, 0.0))


@every_scope
@every_controller
def test_constant_advantages(name, scope):
    """Covariance 0 everywhere: Clip-Cov's open band is empty, CW-GRPO's sigma is 0, KL-Cov takes the first ids."""
    of = batch(3)
    of = of.changed(rows={"advantages_BT": torch.full_like(of.rows.advantages_BT, 0.7)})
    acting = MAKE[name](scope)
    acted = Acted(acting, of)
    mask = of.rows.mask_BT
    if name in ("clip_cov", "cw_grpo", "w_reinforce"):
        assert acted.idle()
    if name == "kl_cov":
        k = int(0.2 * int(mask.sum()))
        ids = mask.nonzero().tolist()[:k]  # row by row, column by column
        assert [p for p in mask.nonzero().tolist() if acted.grad[tuple(p)] != 0] == ids
    if name == "steer":  # |O| still differs by token
        assert float(acted.weight[mask].min()) < 1
    if name == "ce_gppo":  # all A > 0, so only tokens above the clip
        above = mask & (of.log_probs - of.old > math.log(1.28))
        assert torch.equal(acted.grad != 0, above)
        assert above.any()


@every_scope
@every_controller
def test_one_token(name, scope):
    """c = 0 of its own mean; STEER: its |O| is the largest; CE-GPPO does not look at others."""
    of = batch(4, shape=(1, 1))
    rows = {"mask_BT": torch.ones(1, 1, dtype=torch.bool), "advantages_BT": torch.full((1, 1), 2.0)}
    of = of.changed(
        rows=rows,
        log_probs=torch.full((1, 1), -0.5),
        old=torch.full((1, 1), -1.0),
        entropies=torch.full((1, 1), 2.0),
    )
    with warnings_of_one_row(name, scope):
        acted = Acted(MAKE[name](scope), of)
    if name in ("clip_cov", "cw_grpo", "w_reinforce"):
        assert acted.idle()
    if name == "kl_cov":  # k is at least 1
        assert (float(acted.penalty), float(acted.grad)) == (0.5, 1.0)
    if name == "steer":  # the update has raised |O|, so under `step` it lies beyond the window's largest
        assert float(acted.weight) == pytest.approx(0.8)
    if name == "ce_gppo":  # r = 1.65 > 1.28: the published loss has TRL's value there and a gradient
        assert (float(acted.penalty), float(acted.grad)) == pytest.approx((0.0, -1.28 * 2))


def warnings_of_one_row(name, scope):
    if name in ("clip_cov", "kl_cov") and scope == "micro_batch":
        return pytest.warns(UserWarning, match="one completion per micro-batch")
    return torch.no_grad() if name == "w_reinforce" else torch.enable_grad()


@every_scope
@every_controller
def test_ties_of_bfloat16_log_probs(name, scope):
    """Equal tokens get equal weights, a count is met exactly, and the order of rows does not matter."""
    of = batch(5, shape=(8, 40), dtype=torch.bfloat16)
    coarse = of.old.mul(4).round().div(4).clamp(max=-0.25)
    signs = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0)[:, None].expand(8, 40).clone()
    step = torch.where(torch.arange(40) % 3 == 0, -0.5, 0.0).bfloat16()
    of = of.changed(
        rows={"advantages_BT": signs},
        old=coarse,
        log_probs=coarse + step,
        entropies=torch.full((8, 40), 0.75),
    )
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = Batch(of.rows.map(lambda x: x[order]), of.log_probs[order], of.old[order], of.entropies[order])
    acted, again = Acted(MAKE[name](scope), of), Acted(MAKE[name](scope), moved)
    assert torch.equal(acted.weight[order], again.weight)
    assert torch.equal(acted.grad[order], again.grad)
    mask = of.rows.mask_BT
    if name in ("clip_cov", "kl_cov"):
        fresh = Acted(MAKE[name](scope), of.changed(log_probs=of.old))  # later updates take about as many
        assert fresh.metrics["selected"] == int(0.2 * int(mask.sum()))
    if name in ("cw_grpo", "steer"):
        seen: dict[tuple, set] = {}
        for p in mask.nonzero().tolist():
            token = tuple(float(x[tuple(p)]) for x in (of.rows.advantages_BT, of.log_probs, of.old))
            seen.setdefault(token, set()).add(float(acted.weight[tuple(p)]))
        assert len(seen) < int(mask.sum()) / 2, "nothing tied, nothing was shown"
        assert all(len(weights) == 1 for weights in seen.values())


@every_scope
@pytest.mark.parametrize("name", ["cw_grpo", "steer", "ce_gppo"])
def test_nothing_reads_the_device(name, scope):
    """Tensors without values: whatever needs one on the host, and would wait for a GPU, raises."""
    of, acting = batch(), MAKE[name](scope)
    rows = of.rows.map(lambda x: x.to("meta"))
    log_probs, old, entropies = (x.to("meta") for x in (of.log_probs, of.old, of.entropies))
    selection = None
    if acting.scope == "step":
        window = Window(rows=rows, log_probs_BT=old, old_log_probs_BT=old, entropies_BT=entropies, step=1)
        selection = acting.select(window)
        acting.window_metrics(selection)
    terms = acting.on_loss(
        rows,
        selection,
        LossView(
            log_probs_BT=log_probs.requires_grad_(),
            old_log_probs_BT=old,
            entropies_BT=entropies,
            eps_low=0.2,
            eps_high=0.28,
        ),
    )
    with pytest.raises(RuntimeError, match="meta"):
        terms.sums[next(iter(terms.sums))].item()


def test_rollout_edges_of_w_reinforce():
    """NaN rewards, equal rewards and a single row each have an answer that is finite and needs no group."""
    for rewards in ([NAN, NAN], [1.0, 1.0], [0.0]):
        count = len(rewards)
        got = WReinforce().on_rollout(torch.tensor(rewards), torch.zeros(count), torch.full((count,), NAN))
        want = {True: 0.1, False: -1.0}
        assert got.tolist() == pytest.approx([0.0 if r != r else want[r >= 0.5] for r in rewards])


# Gradients through the trainer's own loss


class Frozen:
    """A controller as the loss sees it while a parameter is moved: everything detached stays where it was."""

    def __init__(self, acting, selection):
        self.acting, self.selection, self.base = acting, selection, None
        self.name, self.scope, self.clip_range = acting.name, acting.scope, acting.clip_range

    def on_loss(self, rows, selection, view):
        terms = self.acting.on_loss(rows, self.selection, view)
        if self.base is None:
            self.base = (terms.weight_BT, view.log_probs_BT.detach(), terms.penalty_BT)
            return terms
        weight_BT, at_BT, _ = self.base
        if terms.penalty_BT is not None and self.acting.name == "ce_gppo":
            terms = replace(terms, penalty_BT=self.restored(rows, view.log_probs_BT, at_BT, view.old_log_probs_BT))
        return replace(terms, weight_BT=weight_BT)

    def restored(self, rows, log_probs_BT, at_BT, old_BT):
        """CE-GPPO's equation with sg(r) at the base point."""
        a, ratio = rows.advantages_BT.double(), (at_BT - old_BT).exp()
        growth = (log_probs_BT - at_BT).exp()
        below, above = (a < 0) & (ratio < 0.8), (a > 0) & (ratio > 1.28)
        low = 0.8 * a * (1 - self.acting.beta_low * growth)
        high = 1.28 * a * (1 - self.acting.beta_high * growth)
        return torch.where(rows.mask_BT & below, low, torch.where(rows.mask_BT & above, high, 0.0))

    def summarise(self, sums):
        return self.acting.summarise(sums)


def float64_model():
    """GPT-2, because Qwen3 takes its norms in float32 whatever the weights are."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config).double()


def float64_scores(_trainer, model, input_ids, _attention_mask, logits_to_keep, *_args, **_kwargs):
    """TRL's forward pass without its fused head, which works in float32."""
    log_p = model(input_ids).logits[:, -logits_to_keep - 1 : -1].log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0], entropies.detach(), None


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@every_controller
def test_gradient_through_the_trainers_loss_against_finite_differences(tmp_path, monkeypatch, name, loss_type):
    """A float64 model, its parameters moved along a random direction, and the controller doing something."""
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", float64_scores)
    acting = MAKE[name]("step")
    run = trainer(
        tmp_path,
        controllers=[acting],
        model=float64_model(),
        loss_type=loss_type,
        epsilon=0.2,
        epsilon_high=0.28,
        steps_per_generation=2,
    )
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    run.accelerator.gradient_state._set_sync_gradients(False)  # the step is never finished: nothing to log
    g = torch.Generator().manual_seed(1)
    shape = (4, 9)
    mask = torch.arange(shape[1]) < torch.tensor([[9], [7], [5], [3]])
    ids = torch.randint(5, 40, shape, generator=g)
    prompt = torch.randint(5, 40, (shape[0], 3), generator=g)
    advantages = torch.tensor([1.3, -0.9, 0.6, -1.2], dtype=torch.float64)
    if name == "w_reinforce":
        advantages = acting.on_rollout(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4), advantages)
    with torch.no_grad():
        now, entropies, _ = float64_scores(run, run.model, torch.cat([prompt, ids], 1), None, shape[1])
    old = now + 0.4 * torch.randn(shape, generator=g, dtype=torch.float64)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum().double() * 2,
        "entrl_row_id": torch.arange(4),
        "entrl_informative": torch.ones(4, dtype=torch.bool),
    }
    selection = None
    if acting.scope == "step":
        rows = rows_of(inputs)
        window = Window(rows=rows, log_probs_BT=old, old_log_probs_BT=old, entropies_BT=entropies, step=1)
        selection = acting.select(window)
    controls = run._parts.loss.controls
    controls.selections = [selection] if acting.uses_loss_hook else []
    frozen = Frozen(acting, selection)
    controls.on_loss = [frozen] if acting.uses_loss_hook else []

    def loss():
        run._step = 1  # the second window of the rollout: an update lies between the two policies
        return run._compute_loss(run.model, dict(inputs))

    base = loss()
    assert base.dtype == torch.float64
    base.backward()
    touched = [p for p in run.model.parameters() if p.grad is not None]
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in touched]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(touched, direction, strict=True) if p.grad is not None)
    if frozen.base is not None:
        weight, _, penalty = frozen.base
        weighs = weight is not None and bool((weight != 1)[mask].any())
        assert weighs or (penalty is not None and bool(penalty.any())), "the controller did nothing here"
    h, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(touched, direction, strict=True):
                p.add_(sign * h * d)
            sides.append(float(loss()))
            for p, d in zip(touched, direction, strict=True):
                p.sub_(sign * h * d)
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(slope, rel=1e-5)
