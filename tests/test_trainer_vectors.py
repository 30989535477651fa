"""The published losses, number by number, through the trainer's own loss.

A pure function may be right and the trainer still train wrongly: TRL takes min(rA, clip(r)A) itself, multiplies its
own weights and divides by its own normaliser. So the vectors' log-probs are put where TRL's forward pass would have
put them, `_compute_loss` runs as in training, and gradients are compared.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny_model import trainer
from trl import GRPOTrainer

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.hooks import Controller, LossTerms
from entrl.controllers.kl_cov import KLCov
from entrl.trainers.grpo.controlled_loss import ControlledLoss
from entrl.trainers.shared import row_columns

VECTORS = json.loads((Path(__file__).parent / "vectors" / "entropy_mechanism.json").read_text())
CASES = {case["id"]: case for case in VECTORS["cases"]}
PARTITIONS = {case["function"]: case for case in VECTORS["partitions"]}
RTOL, ATOL = 1e-6, 1e-7  # the covariance is float32, the loss float64


def controller_for(case, **kwargs):
    """The controller with a case's settings, in the published scope unless told otherwise."""
    params = case["params"]
    settings = {"scope": "micro_batch", "allow_large_fraction": True, "skip_zero_std_groups": False} | kwargs
    if case["function"].endswith("kl_cov"):
        settings = {"coef": params["kl_coef"]} | settings
        fraction = params["kl_cov_ratio"] if "kl_cov_ratio" in params else params["k_percent"] / 100
        return [KLCov(fraction=fraction, **settings)]
    if case["function"].endswith("clip_cov"):
        return [
            ClipCov(
                fraction=params["clip_cov_ratio"],
                lower=params["clip_cov_lb"],
                upper=params["clip_cov_ub"],
                clip_low=params["clip_low"],
                clip_high=params["clip_high"],
                **settings,
            )
        ]
    return []


class Recorded(Controller):
    """Clip-Cov's weight at the tokens the official run drew."""

    name = "recorded"

    def __init__(self, case):
        self.case = case

    @property
    def clip_range(self):
        return self.case["params"]["clip_low"], self.case["params"]["clip_high"]

    def on_loss(self, rows, selection, view):
        weight = torch.ones(rows.mask_BT.shape)
        for row, column in self.case["outputs"]["selected"]:
            weight[row, column] = 0.0
        return LossTerms(weight_BT=weight)


def tensors(case, rows=slice(None)):
    inputs = case["inputs"]
    out = {k: torch.tensor(v, dtype=torch.float64)[rows] for k, v in inputs.items() if k != "response_mask"}
    return out | {"mask": torch.tensor(inputs["response_mask"])[rows]}


class Bench:
    """A real trainer, whose forward pass answers with the log-probs at hand."""

    def __init__(self, folder, monkeypatch, controllers, case, *, loss_type="dapo", slices=1, **options):
        params = (
            {}
            if controllers
            else {
                "epsilon": case["params"].get("clip_low", 0.2),
                "epsilon_high": case["params"].get("clip_high", 0.2),
            }
        )
        self.trainer = trainer(
            folder,
            controllers=controllers,
            loss_type=loss_type,
            gradient_accumulation_steps=slices,
            steps_per_generation=2 * slices,
            **params,
            **options,
        )
        self.slices = slices
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = slices
        self.leaf = None
        self.no_grad_passes = []  # what the passes of scope `exact` answer, slice by slice

        def forward(_, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            answer = self.no_grad_passes.pop(0) if self.no_grad_passes else self.leaf
            return answer, torch.zeros_like(answer).detach(), None

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", forward)

    def micro_batch(self, data, total):
        mask = data["mask"]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        batch = {
            "prompt_ids": torch.zeros(mask.size(0), 1, dtype=torch.long),
            "prompt_mask": torch.ones(mask.size(0), 1, dtype=torch.long),
            "completion_ids": ids,
            "completion_mask": mask.long(),
            "advantages": data["advantages"],
            "old_per_token_logps": data["old_log_prob"],
            # TRL's count is of the rollout, twice the window here
            "num_items_in_batch": total * 2,
            "entrl_row_id": data["row_id"],
            "entrl_informative": torch.ones(mask.size(0), dtype=torch.bool),
        }
        if "rollout_is_weights" in data:
            self.trainer.use_vllm = self.trainer.vllm_importance_sampling_correction = True
            batch["importance_sampling_ratio"] = data["rollout_is_weights"]
        return batch

    def run(self, case, rows_per_slice=None):
        """Loss and gradient of the whole window; the rows of each slice in `rows_per_slice`."""
        whole = tensors(case)
        count = whole["mask"].size(0)
        step = rows_per_slice or count
        parts = [slice(i, i + step) for i in range(0, count, step)]
        total = whole["mask"].sum().double()
        batches = [self.micro_batch(tensors(case, p) | {"row_id": torch.arange(count)[p]}, total) for p in parts]
        # The second window of the rollout: an update lies between the old log-probs and the current ones.
        self.trainer._buffered_inputs = [None] * self.slices + batches
        self.trainer._step = self.slices
        if any(c.scope == "exact" for c in self.trainer.controllers):
            self.no_grad_passes = [whole["log_prob"][p] for p in parts]
        self.trainer._parts.loss.prepare()
        assert not self.no_grad_passes, "scope `exact` did not look at every slice"
        loss, grads = 0.0, []
        for p, batch in zip(parts, batches, strict=True):
            self.trainer.accelerator.gradient_state._set_sync_gradients(batch is batches[-1])
            self.leaf = whole["log_prob"][p].clone().requires_grad_()
            part = self.trainer._compute_loss(self.trainer.model, batch)
            part.backward()
            loss += part.item()
            grads.append(self.leaf.grad)
        return loss, torch.cat(grads)

    def metric(self, name):
        self.trainer._observation.read()
        return self.trainer._metrics["train"][name][-1]


@pytest.mark.parametrize("name", [c for c in CASES if CASES[c]["deterministic_selection"]])
def test_every_deterministic_vector_through_the_loss(tmp_path, monkeypatch, name):
    case = CASES[name]
    bench = Bench(tmp_path, monkeypatch, controller_for(case), case)
    loss, grad = bench.run(case)
    mask = tensors(case)["mask"].bool()
    expected = torch.tensor(case["outputs"]["grad_log_prob"], dtype=torch.float64)
    assert loss == pytest.approx(case["outputs"]["loss"], rel=RTOL, abs=ATOL)
    torch.testing.assert_close(grad[mask], expected[mask], rtol=RTOL, atol=ATOL)
    assert not grad[~mask].any()


@pytest.mark.parametrize("name", [c for c in CASES if not CASES[c]["deterministic_selection"]])
def test_random_draws_have_the_published_size_and_the_recorded_draw_the_published_gradient(tmp_path, monkeypatch, name):
    case = CASES[name]
    if case["function"].endswith("kl_cov"):
        pytest.fail("KL-Cov has no random draw")
    drawn = Bench(tmp_path, monkeypatch, controller_for(case), case)
    _, grad = drawn.run(case)
    recorded = Bench(tmp_path, monkeypatch, [Recorded(case)], case)
    loss, expected_grad = recorded.run(case)
    mask = tensors(case)["mask"].bool()
    torch.testing.assert_close(
        expected_grad[mask],
        torch.tensor(case["outputs"]["grad_log_prob"], dtype=torch.float64)[mask],
        rtol=RTOL,
        atol=ATOL,
    )
    assert loss == pytest.approx(case["outputs"]["loss"], rel=RTOL, abs=ATOL)
    candidates = [tuple(c) for c in case["derived"]["candidates"]]
    wanted = min(case["derived"]["clip_num"], len(candidates))
    assert drawn.metric("clip_cov/selected") == wanted == len(case["outputs"]["selected"])
    zeroed = {(r, c) for r, c in (grad == 0).nonzero().tolist() if mask[r, c]}
    assert len(zeroed & set(candidates)) == wanted


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_penalty_is_divided_like_the_policy_term(tmp_path, monkeypatch, loss_type):
    """With every token penalised by coef |x|, the loss grows by exactly TRL's own aggregate of that penalty."""
    case = CASES["pub/kl/larger_batch"]

    class Everywhere(Controller):
        name = "everywhere"
        clip_range = (torch.inf, torch.inf)

        def __init__(self, weight, penalty):
            self.weight, self.penalty = weight, penalty

        def on_loss(self, rows, selection, view):
            ratio = (view.log_probs_BT - view.old_log_probs_BT).exp()
            return LossTerms(
                weight_BT=torch.full(rows.mask_BT.shape, self.weight, dtype=torch.float64),
                penalty_BT=self.penalty * -ratio * rows.advantages_BT.double(),
            )

    policy = Bench(tmp_path, monkeypatch, [Everywhere(1.0, 0.0)], case, loss_type=loss_type, slices=2)
    loss, grad = policy.run(case, rows_per_slice=len(case["inputs"]["log_prob"]) // 2)
    penalty = Bench(tmp_path, monkeypatch, [Everywhere(0.0, 1.0)], case, loss_type=loss_type, slices=2)
    same_loss, same_grad = penalty.run(case, rows_per_slice=len(case["inputs"]["log_prob"]) // 2)
    assert loss != 0
    assert same_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(same_grad, grad, rtol=1e-6, atol=1e-9)


def ids_of_zero_gradient(grad, mask):
    return {(r, c) for r, c in (grad == 0).nonzero().tolist() if mask[r, c]}


@pytest.mark.parametrize("scope", ["step", "exact"])
@pytest.mark.parametrize("function", sorted(PARTITIONS))
def test_a_window_selects_the_same_tokens_however_it_is_cut(tmp_path, monkeypatch, function, scope):
    """The published code picks other tokens for every micro-batch size; ours equals its whole-batch choice."""
    case = PARTITIONS[function]
    rows = len(case["inputs"]["log_prob"])
    whole_loss, whole_grad = case["loss_whole_batch"], torch.tensor(case["grad_whole_batch"], dtype=torch.float64)
    for per_slice in (rows, 4, 2, 1):
        bench = Bench(tmp_path, monkeypatch, controller_for(case, scope=scope), case, slices=rows // per_slice)
        if scope == "step":  # the recorded choice is of the current log-probs, which `step` does not threshold by
            monkeypatch.setattr(row_columns, "window_of", current_window(row_columns.window_of, case))
        loss, grad = bench.run(case, rows_per_slice=per_slice)
        monkeypatch.undo()
        assert loss == pytest.approx(whole_loss, rel=RTOL, abs=ATOL)
        torch.testing.assert_close(grad, whole_grad, rtol=RTOL, atol=ATOL)


def current_window(original, case):
    """`window_of` whose log-probs are the current ones."""

    def window_of(slices):
        rows, _, entropies = original(slices)
        return rows, torch.tensor(case["inputs"]["log_prob"], dtype=torch.float64), entropies

    return window_of


@pytest.mark.parametrize("function", sorted(PARTITIONS))
def test_the_published_scope_reproduces_the_published_dependence_on_micro_batches(tmp_path, monkeypatch, function):
    case = PARTITIONS[function]
    rows = len(case["inputs"]["log_prob"])
    whole = {tuple(t) for t in case["selected_whole_batch"]}
    differing = 0
    for per_slice, selected in case["selected_by_micro_batch_rows"].items():
        if selected is None:
            continue
        bench = Bench(tmp_path, monkeypatch, controller_for(case), case, slices=rows // int(per_slice))
        bench.run(case, rows_per_slice=int(per_slice))
        assert bench.metric(f"{bench.trainer.controllers[0].name}/selected") == len(selected)
        differing += {tuple(t) for t in selected} != whole
    assert differing, "the vectors show no dependence, so this test would show nothing"


def test_no_penalty_while_the_policy_is_the_one_that_generated(tmp_path, monkeypatch):
    """|x| has slope 1 at any size, so in the first window after a rollout round-off alone would push every token."""
    case = CASES["pub/kl/larger_batch"]
    fresh = Bench(tmp_path, monkeypatch, controller_for(case, scope="step"), case)
    stale_loss, _ = fresh.run(case)
    monkeypatch.setattr(ControlledLoss, "policy_is_fresh", True)
    loss, grad = fresh.run(case)
    plain = Bench(tmp_path, monkeypatch, controller_for(case, scope="step", coef=0.0), case)
    plain_loss, plain_grad = plain.run(case)
    assert loss == plain_loss != stale_loss
    assert torch.equal(grad, plain_grad)
    published = Bench(tmp_path, monkeypatch, controller_for(case), case)
    published_loss, _ = published.run(case)
    assert published_loss == pytest.approx(case["outputs"]["loss"], rel=RTOL), "micro_batch is the published code"


@pytest.mark.parametrize("masks", [{"top_entropy_quantile": 0.5}, {"off_policy_mask_threshold": 1e-4}])
def test_the_penalty_carries_the_masks_of_the_policy_term(tmp_path, monkeypatch, masks):
    """A token whose policy term TRL masks is not penalised either."""
    case = CASES["pub/kl/larger_batch"]
    grads = {}
    for coef in (0.0, 1.0):
        bench = Bench(tmp_path, monkeypatch, controller_for(case, coef=coef) if coef else [], case, **masks)
        bench.trainer.epsilon_low = bench.trainer.epsilon_high = torch.inf
        keep = torch.zeros(tensors(case)["mask"].shape, dtype=torch.bool)
        keep[::2] = True  # every other completion is kept
        monkeypatch.setattr(GRPOTrainer, "get_high_entropy_mask", lambda self, *a, k=keep: k)
        monkeypatch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(lambda *a, k=keep, **kw: k))
        grads[coef] = bench.run(case)[1]
    assert not torch.equal(grads[0.0][keep], grads[1.0][keep]), "nothing was penalised, the masks were not tested"
    assert not grads[1.0][~keep].any()
