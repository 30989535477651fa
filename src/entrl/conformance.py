"""Run our implementation on a file of reference vectors and say which numbers it reproduces.

Two kinds of file are known, by `meta.method`: PEAR (rewards, advantages, tag search) and the entropy mechanism
(Clip-Cov, KL-Cov, plain PPO clip, selections under different splits, entropies). A section or function we do not
implement is counted as not covered, never as passed.

The policy loss around a controller is written out here as the published programs write it, aggregations included, so
that a case says something about the controller's weight and penalty; that a trainer's loss agrees is for its own tests.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.covariance import ppo_clipped, token_covariance
from entrl.controllers.hooks import LossTerms, Rows, Window
from entrl.controllers.kl_cov import KLCov
from entrl.phases import locate_close
from entrl.signals import entropy_from_logits, masked_mean, masked_token_mean, pad_rows

PEAR_FUNCTIONS = "entrl_rewards.pear"  # by name, because the library does not depend on the rewards
PUBLISHED_OFFSET = 1e-8  # the published masked means add it to the count; rows with a zero sum show it
FLOAT32_COV = (1e-5, 1e-5)  # rtol, atol: covariances are ours in float32, the vectors' in float64

Status = Literal["passed", "failed", "not_covered"]
Case = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    id: str
    status: Status
    max_error: float | None = None  # largest absolute difference of numbers held to the file's tolerance; None = none
    note: str = ""
    computed: dict[str, Any] = field(default_factory=dict)


class Comparison:
    """Collects what one case computed and where it disagrees."""

    def __init__(self, *, rtol: float, atol: float) -> None:
        self.rtol, self.atol = rtol, atol
        self.error: float | None = None
        self.wrong: list[str] = []
        self.computed: dict[str, Any] = {}

    def close(self, name: str, got: Any, want: Any, *, rtol: float | None = None, atol: float | None = None) -> None:
        """Numbers, nested lists of one shape; a NaN never agrees."""
        got = torch.as_tensor(got, dtype=torch.float64).detach()
        want = torch.as_tensor(want, dtype=torch.float64)
        self.computed[name] = got.tolist()
        if got.shape != want.shape:
            self.wrong.append(f"{name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
            return
        gap = (got - want).abs()
        allowed = (self.atol if atol is None else atol) + (self.rtol if rtol is None else rtol) * want.abs()
        if gap.numel() and rtol is None and atol is None:
            self.error = max(self.error or 0.0, float(gap.max()))
        if not bool((gap <= allowed).all()):
            self.wrong.append(f"{name} off by {float(gap.max()):.3g}")

    def same(self, name: str, got: Any, want: Any) -> None:
        self.computed[name] = got
        if got != want:
            self.wrong.append(f"{name} is {_short(got)}, expected {_short(want)}")

    def result(self, case_id: str, note: str = "") -> CaseResult:
        return CaseResult(
            id=case_id,
            status="failed" if self.wrong else "passed",
            max_error=self.error,
            note="; ".join(self.wrong) or note,
            computed=self.computed,
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the published policy loss -----------------------------------------------------------------------------------


def token_losses(
    inputs: dict[str, Tensor], terms: LossTerms, *, eps_low: float, eps_high: float, ratio_is_clipped: bool = True
) -> Tensor:
    """max(-A r, -A clip(r)) under a controller's weight, plus its penalty, times the rollout weights if there are."""
    ratio_BT = torch.exp(inputs["log_prob"] - inputs["old_log_prob"])
    weight_BT = 1.0 if terms.weight_BT is None else terms.weight_BT
    gain_BT = inputs["advantages"] * weight_BT
    loss_BT = -gain_BT * ratio_BT
    if ratio_is_clipped:
        loss_BT = torch.maximum(loss_BT, -gain_BT * ratio_BT.clamp(1 - eps_low, 1 + eps_high))
    if terms.penalty_BT is not None:
        loss_BT = loss_BT + terms.penalty_BT
    return loss_BT * inputs["rollout_is_weights"] if "rollout_is_weights" in inputs else loss_BT


def aggregate(loss_BT: Tensor, mask_BT: Tensor, mode: str, *, count_empty_rows: bool) -> Tensor:
    """The published reductions; count_empty_rows: whether a fully masked row enters the mean over rows."""
    loss_BT = torch.where(mask_BT, loss_BT, 0.0)
    tokens_B = mask_BT.sum(-1).double()
    rows = len(mask_BT) if count_empty_rows else int((tokens_B > 0).sum())
    if mode == "token-mean":
        return loss_BT.sum() / tokens_B.sum()
    if mode == "seq-mean-token-sum":
        return loss_BT.sum() / rows
    if mode == "seq-mean-token-mean":
        return (loss_BT.sum(-1) / (tokens_B + PUBLISHED_OFFSET)).sum() / rows
    if mode == "seq-mean-token-sum-norm":
        return loss_BT.sum() / mask_BT.shape[1]
    raise ValueError(f"unknown aggregation {mode!r}; known: token-mean and the three seq-mean ones")


# --- entropy mechanism -------------------------------------------------------------------------------------------


def _tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Float64, as the vectors were made; the log-probs are a leaf so that a gradient can be asked for."""
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in inputs.items()}
    tensors["log_prob"].requires_grad_(True)
    return tensors


def _rows(inputs: dict[str, Tensor], start: int = 0, stop: int | None = None) -> Rows:
    mask_BT = inputs["response_mask"].bool()
    part = slice(start, stop)
    return Rows(
        advantages_BT=inputs["advantages"][part],
        mask_BT=mask_BT[part],
        row_id_B=torch.arange(len(mask_BT))[part],
        informative_B=torch.ones(len(mask_BT), dtype=torch.bool)[part],
    )


def _controller(case: Case, *, scope: Literal["exact", "micro_batch"]) -> ClipCov | KLCov:
    p = case["params"]
    shared = {"scope": scope, "allow_large_fraction": True, "skip_zero_std_groups": False, "log_shares": False}
    if "kl_cov" in case["function"]:
        fraction = p["k_percent"] / 100 if "k_percent" in p else p["kl_cov_ratio"]
        return KLCov(fraction=fraction, coef=p["kl_coef"], **shared)
    return ClipCov(
        fraction=p["clip_cov_ratio"],
        lower=p["clip_cov_lb"],
        upper=p["clip_cov_ub"],
        clip_low=p["clip_low"],
        clip_high=p["clip_high"],
        **shared,
    )


def _apply(
    controller: ClipCov | KLCov, inputs: dict[str, Tensor], selection: Any, start: int = 0, stop: int | None = None
) -> LossTerms:
    eps_low, eps_high = controller.clip_range
    part = slice(start, stop)
    log_probs_BT = inputs["log_prob"][part]
    return controller.on_loss(
        _rows(inputs, start, stop),
        selection,
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=inputs["old_log_prob"][part],
        ref_log_probs_BT=None,
        entropies_BT=torch.zeros_like(log_probs_BT),
        eps_low=eps_low,
        eps_high=eps_high,
    )


def _positions(chosen_BT: Tensor, first_row: int = 0) -> list[list[int]]:
    return [[row + first_row, column] for row, column in chosen_BT.nonzero().tolist()]


def _window(inputs: dict[str, Tensor]) -> Window:
    return Window(
        rows=_rows(inputs),
        log_probs_BT=inputs["log_prob"].detach(),
        old_log_probs_BT=inputs["old_log_prob"],
        step=0,
    )


def _chosen(
    controller: ClipCov | KLCov, inputs: dict[str, Tensor], selection: Any, start: int = 0, stop: int | None = None
) -> list[list[int]]:
    """What the loss pass takes: the tokens of weight 0, or for KL-Cov, whose penalty may be 0, its members."""
    if isinstance(controller, ClipCov):
        weight_BT = _apply(controller, inputs, selection, start, stop).weight_BT
        assert weight_BT is not None
        return _positions(weight_BT == 0, start)
    rows, log_probs_BT = _rows(inputs, start, stop), inputs["log_prob"].detach()[start:stop]
    if selection is None:
        old_log_probs_BT = inputs["old_log_prob"][start:stop]
        selection = controller.select(
            Window(rows=rows, log_probs_BT=log_probs_BT, old_log_probs_BT=old_log_probs_BT, step=0)
        )
    return _positions(controller.members(rows, selection, log_probs_BT=log_probs_BT), start)


def _check_loss(check: Comparison, case: Case, inputs: dict[str, Tensor], terms: LossTerms) -> None:
    want, mask_BT = case["outputs"], inputs["response_mask"].bool()
    kl = "kl_cov" in case["function"]
    eps_low, eps_high = (torch.inf, torch.inf) if kl else (case["params"]["clip_low"], case["params"]["clip_high"])
    loss_BT = token_losses(inputs, terms, eps_low=eps_low, eps_high=eps_high, ratio_is_clipped=not kl)
    count_empty_rows = case["function"].startswith("prime.")
    loss = aggregate(loss_BT, mask_BT, "token-mean", count_empty_rows=count_empty_rows)
    (grad_BT,) = torch.autograd.grad(loss, inputs["log_prob"], retain_graph=True)
    check.close("loss", loss, want["loss"])
    check.close("grad_log_prob", grad_BT, want["grad_log_prob"])
    for mode, value in want.get("loss_other_aggregations", {}).items():
        check.close(mode, aggregate(loss_BT, mask_BT, mode, count_empty_rows=count_empty_rows), value)


def _check_metrics(check: Comparison, case: Case, metrics: dict[str, float]) -> None:
    """The published metrics ours have a counterpart of; `selected_fraction` is what they call pg_clipfrac."""
    counterpart = {
        "verl.kl_cov": {"actor/ppo_kl": "abs_log_ratio"},
        "prime.kl_cov": {"third_output": "abs_log_ratio"},
        "verl.clip_cov": {"actor/pg_clipfrac": "selected_fraction"},
        "prime.clip_cov": {"second_output": "selected_fraction"},
    }[case["function"]]
    for theirs, ours in counterpart.items():
        check.close(ours, metrics[ours], case["outputs"]["metrics"][theirs])


def _check_derived(check: Comparison, case: Case, controller: ClipCov | KLCov, inputs: dict[str, Tensor]) -> None:
    derived, rows, window = case["derived"], _rows(inputs), _window(inputs)
    selection = controller.select(window)
    cov_BT = token_covariance(window.log_probs_BT, rows, rows.mask_BT, selection.stats)
    known_BT = torch.tensor([[c is not None for c in row] for row in derived["cov"]])
    want_BT = torch.tensor([[0.0 if c is None else c for c in row] for row in derived["cov"]], dtype=torch.float64)
    check.same("valid_tokens", selection.stats.n, derived["valid_tokens"])
    check.same("cov_positions", bool((known_BT == rows.mask_BT).all()), True)
    rtol, atol = FLOAT32_COV
    check.close("cov", cov_BT, want_BT, rtol=rtol, atol=atol)
    if "candidates" in derived and isinstance(controller, ClipCov):
        candidate_BT = controller.candidates(
            rows,
            cov_BT,
            selection.spread,
            log_probs_BT=window.log_probs_BT,
            old_log_probs_BT=window.old_log_probs_BT,
            eps_low=controller.clip_low,
            eps_high=controller.clip_high,
        )
        check.same("candidates", _positions(candidate_BT), derived["candidates"])


def _loss_case(case: Case, check: Comparison) -> str:
    inputs = _tensors(case["inputs"])
    if case["function"] == "prime.ppo_clip":
        return _plain_case(case, check, inputs)
    controller = _controller(case, scope="micro_batch")
    terms = _apply(controller, inputs, None)
    chosen = _chosen(_controller(case, scope="micro_batch"), inputs, None)
    want = case["outputs"]["selected"]
    _check_derived(check, case, controller, inputs)
    _check_metrics(check, case, controller.summarise({k: float(v) for k, v in terms.sums.items()}))
    if case["deterministic_selection"]:
        check.same("selected", chosen, want)
        _check_loss(check, case, inputs, terms)
        return ""
    candidates = case["derived"]["candidates"]
    check.same("selected_count", len(chosen), min(case["derived"]["clip_num"], len(candidates)))
    check.same("selected_are_candidates", all(c in candidates for c in chosen), True)
    check.same("recorded_are_candidates", all(c in candidates for c in want), True)
    weight_BT = torch.ones_like(inputs["advantages"])
    for row, column in want:
        weight_BT[row, column] = 0.0
    _check_loss(check, case, inputs, LossTerms(weight_BT=weight_BT))
    return "random choice: size and membership of ours, loss and gradient of the recorded one"


def _plain_case(case: Case, check: Comparison, inputs: dict[str, Tensor]) -> str:
    _check_loss(check, case, inputs, LossTerms())
    p, mask_BT = case["params"], inputs["response_mask"].bool()
    clipped_BT = ppo_clipped(
        inputs["log_prob"],
        inputs["old_log_prob"],
        inputs["advantages"],
        mask_BT,
        eps_low=p["clip_low"],
        eps_high=p["clip_high"],
    )
    share = clipped_BT.sum() / mask_BT.sum().double()
    check.close("ppo_clipped", share, case["outputs"]["metrics"]["second_output"])
    return "no controller"


def _partition_case(case: Case, check: Comparison) -> str:
    inputs = _tensors(case["inputs"])
    size = len(inputs["log_prob"])
    whole = _controller(case, scope="exact")
    selection = whole.select(_window(inputs))
    for rows, want in case["selected_by_micro_batch_rows"].items():
        starts = range(0, size, int(rows))
        split = [c for i in starts for c in _chosen(whole, inputs, selection, i, i + int(rows))]
        check.same(f"selected_whole_in_slices_of_{rows}", split, case["selected_whole_batch"])
        if want is not None:
            slices = _controller(case, scope="micro_batch")
            alone = [c for i in starts for c in _chosen(slices, inputs, None, i, i + int(rows))]
            check.same(f"selected_per_slice_of_{rows}", alone, want)
    outputs = {"loss": case["loss_whole_batch"], "grad_log_prob": case["grad_whole_batch"]}
    _check_loss(check, {**case, "outputs": outputs}, inputs, _apply(whole, inputs, selection))
    return ""


def _entropy_case(case: Case, check: Comparison) -> str:
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    mask_BT = torch.tensor(case["inputs"]["response_mask"]).bool()
    entropy_BT, want = entropy_from_logits(logits), case["outputs"]
    per_response_B = masked_mean(entropy_BT, mask_BT)
    check.close("token_entropy", entropy_BT, want["token_entropy"])
    check.close("per_response_mean", per_response_B, want["per_response_mean"])
    check.close("mean_of_response_means", per_response_B.mean(), want["mean_of_response_means"])
    check.close("token_mean", masked_token_mean(entropy_BT, mask_BT), want["token_mean"])
    return ""


# --- PEAR --------------------------------------------------------------------------------------------------------


def _phase_rewards(members: Sequence[Case], options: Case, *, floor: float | None) -> Any:
    pear = importlib.import_module(PEAR_FUNCTIONS)
    entropy_BT, mask_BT = pad_rows([torch.tensor(m["entropies"], dtype=torch.float64) for m in members])
    return pear.phase_rewards(
        entropy_BT,
        mask_BT,
        close_index=[m["close_index"] for m in members],
        correct_B=torch.tensor([m["correct"] for m in members]),
        alpha=options["alpha"],
        s=options["s"],
        r_fmt=options["r_fmt"],
        floor=floor,
    )


def _pear_case(case: Case, check: Comparison) -> str:
    got = _phase_rewards([case], case, floor=case["floor"])
    for name, want in case["expect"].items():
        check.close(name, getattr(got, name)[0], want)
    return ""


def _locate_case(case: Case, check: Comparison) -> str:
    want = case["expect"]
    for which in ("first", "last"):
        index = locate_close(case["ids"], case["tag_ids"], which=which)
        check.same(which, None if index is None else index + 1, want[which])  # the file counts from 1
    check.same("span_len", len(case["tag_ids"]), want["span_len"])
    return ""


def _group_case(case: Case, check: Comparison) -> str:
    pear = importlib.import_module(PEAR_FUNCTIONS)
    got = _phase_rewards(case["members"], case, floor=None)
    correct_B = torch.tensor([m["correct"] for m in case["members"]])
    tenfold_B = pear.gated_reward(10 * got.penalty, correct_B, s=case["s"], r_fmt=case["r_fmt"], floor=None)
    centred_B, std = got.reward - got.reward.mean(), got.reward.std()
    computed = {
        "reward": got.reward,
        "advantage_mean_only": centred_B,
        "advantage_eps1e6": centred_B / (std + 1e-6),
        "advantage_eps1e4": centred_B / (std + 1e-4),
        "advantage_eps1e6_penalty_x10": (tenfold_B - tenfold_B.mean()) / (tenfold_B.std() + 1e-6),
    }
    for name, want in case["expect"].items():
        check.close(name, computed[name], want)
    return ""


# --- files -------------------------------------------------------------------------------------------------------

Runner = Callable[[Case, Comparison], str]

LOSS_FUNCTIONS = frozenset({"verl.clip_cov", "verl.kl_cov", "prime.clip_cov", "prime.kl_cov", "prime.ppo_clip"})
SECTIONS: dict[str, dict[str, Runner]] = {  # first word of meta.method -> section -> how to run one of its cases
    "PEAR": {"cases": _pear_case, "locate_close": _locate_case, "groups": _group_case},
    "Clip-Cov": {"cases": _loss_case, "partitions": _partition_case, "entropy": _entropy_case},
}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Runner]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    method = str(content.get("meta", {}).get("method", "")) if isinstance(content, dict) else ""
    sections = SECTIONS.get(method.split(" ")[0]) if method else None
    if sections is None:
        raise ValueError(
            f"{path} has meta.method {method!r}, which no check here knows; known methods start with "
            + " or ".join(SECTIONS)
        )
    return content, sections


def _tolerance(meta: dict[str, Any]) -> tuple[float, float]:
    tolerance = meta["tolerance"]
    if isinstance(tolerance, dict):
        return float(tolerance["rtol"]), float(tolerance["atol"])
    return 0.0, float(tolerance)


def _run_case(case: Case, case_id: str, runner: Runner | None, tolerance: tuple[float, float]) -> CaseResult:
    if runner is None:
        return CaseResult(id=case_id, status="not_covered", note="no implementation for this section")
    if runner is _loss_case and case.get("function") not in LOSS_FUNCTIONS:
        return CaseResult(id=case_id, status="not_covered", note=f"no implementation of {case.get('function')}")
    check = Comparison(rtol=tolerance[0], atol=tolerance[1])
    try:
        note = runner(case, check)
    except KeyError as error:
        return CaseResult(id=case_id, status="failed", note=f"the case has no key {error}")
    return check.result(case_id, note)


def _cases(content: dict[str, Any]) -> Iterator[tuple[str, str, Case]]:
    for section, cases in content.items():
        if section != "meta":
            for i, case in enumerate(cases):
                yield section, str(case.get("id") or f"{section}/{case.get('name', i)}"), case


def run_file(path: str | Path) -> list[CaseResult]:
    """One result per case of the file, in its order; ValueError when the file is of no known kind."""
    content, sections = _read(Path(path))
    tolerance = _tolerance(content["meta"])
    results = [_run_case(case, name, sections.get(section), tolerance) for section, name, case in _cases(content)]
    if not results:
        raise ValueError(f"{path} holds no cases; an empty file would pass whatever the code does")
    return results


def conformance(paths: Sequence[str | Path], strict: bool = False, as_json: bool = False) -> int:
    """Print a table (or JSON with the computed values). 0 = all covered cases agree, 1 = some do not, 2 = no answer.

    strict: a case that is not covered counts as one that fails.
    """
    try:
        results = {str(path): run_file(path) for path in paths}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not results:
        print("error: no vector file given; name at least one", file=sys.stderr)
        return 2
    statuses = [r.status for file in results.values() for r in file]
    counts = {status: statuses.count(status) for status in ("passed", "failed", "not_covered")}
    if as_json:
        files = {path: [asdict(r) for r in file] for path, file in results.items()}
        print(json.dumps({"counts": counts, "files": files}))
    else:
        _print_table(results, counts)
    return int(counts["failed"] > 0 or (strict and counts["not_covered"] > 0))


def _print_table(results: dict[str, list[CaseResult]], counts: dict[str, int]) -> None:
    console, style = Console(), {"passed": "green", "failed": "bold red", "not_covered": "yellow"}
    for path, file in results.items():
        table = Table("case", "status", "largest error", "note", title=path)
        for r in file:
            error = "" if r.max_error is None else f"{r.max_error:.1e}"
            table.add_row(escape(r.id), f"[{style[r.status]}]{r.status.replace('_', ' ')}", error, escape(r.note))
        console.print(table)
    console.print(", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.items()))
