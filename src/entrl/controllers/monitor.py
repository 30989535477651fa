"""Why entropy moves: first-order predictions, covariances of one optimiser step, and a split of a measured change.

For a softmax policy in one state, with z its logits and dz a small change of them,

    dH  ~  -Cov_{a ~ pi}(log pi(a), dz(a))  =  -E_{a ~ pi}[(log pi(a) + H) dz(a)]        because E[log pi] = -H
    theorem 1, policy gradient:           dz = eta pi A
    theorem 2, natural policy gradient:   dz = eta A

so that `(log pi + H) A` of a sampled token estimates the covariance in its own state, while Eq. 10's pooled

    c_i = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j)                           i, j over the counted tokens

also holds what differs between states. Both are logged side by side.

Source:  arXiv 2505.22617, Lemma 1, Theorems 1 and 2, Eq. 10; the groups of its Table 1
Differs: means run over the whole optimiser step on all ranks. Rows of groups without reward spread are left out of
    the covariances (TRL keeps them, with advantage 0) and kept in the entropies
Needs:   torch only; the log-probs and entropies of the pass that is run anyway

A `Monitor` never reads a value back from the device and never picks tokens by a boolean index, so it costs no
synchronisation; what cannot be computed is NaN, and whoever logs drops NaN.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Ranks, Rows
from entrl.controllers.top_shares import share_means
from entrl.maths.signals import covariance

OTHER, THINK, ANSWER = 0, 1, 2  # values of a phase tensor: tags, tool output and padding are OTHER
PHASES = {"think": THINK, "answer": ANSWER}
ROUND_OFF = 1e-13  # relative; a variance below this share of its largest term is float64 cancellation, hence 0


class EntropyChange(NamedTuple):
    change: Tensor  # nats, H after the step minus H before it, exactly
    minus_eta_cov: Tensor  # nats, what the theorem predicts to first order


def tabular_entropy_change(logits: Tensor, advantage: Tensor, eta: float, *, theorem: Literal[1, 2]) -> EntropyChange:
    """Entropy change of softmax policies over (..., V) logits, one state each, and the theorem's prediction; (...) out.

    advantage: (..., V), of every action, with mean 0 under the policy (Proposition 1 needs it).
    """
    log_pi, pi = torch.log_softmax(logits, -1), torch.softmax(logits, -1)
    direction = pi * advantage if _checked(theorem) == 1 else advantage
    entropy = _entropy(logits)
    cov = (pi * (log_pi + entropy[..., None]) * direction).sum(-1)
    return EntropyChange(_entropy(logits + eta * direction) - entropy, -eta * cov)


def _entropy(logits: Tensor) -> Tensor:
    return -(torch.softmax(logits, -1) * torch.log_softmax(logits, -1)).sum(-1)


def _checked(theorem: int) -> int:
    if theorem not in (1, 2):
        raise ValueError(f"theorem must be 1 (policy gradient) or 2 (natural policy gradient), got {theorem!r}")
    return theorem


def first_order_change(
    gain_BT: Tensor,
    log_probs_BT: Tensor,
    entropies_BT: Tensor,
    mask_BT: Tensor,
    *,
    theorem: Literal[1, 2] = 2,
) -> Tensor:
    """(B, T) first-order change of the entropy in each token's state, nats per unit of eta; 0 where masked.

    gain_BT: -d loss / d log pi of the sampled token. With the plain policy-gradient loss at ratio 1 it is the
        advantage; a controller's weight, a ratio clip or a penalty changes it.
    theorem: 2 is -gain (log pi + H). 1 is -gain pi (log pi + H), the sampled token's own part: the exact step of
        one sample also moves every other logit by -gain pi_v, whose effect needs the whole distribution.
    """
    centred_BT = log_probs_BT.detach() + entropies_BT.detach()
    if _checked(theorem) == 1:
        centred_BT = centred_BT * log_probs_BT.detach().exp()
    return torch.where(mask_BT, -gain_BT.detach() * centred_BT, 0.0)


def state_covariance(log_probs_BT: Tensor, entropies_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) (log pi + H) A, nats: one sample of the covariance in the token's own state; 0 where masked."""
    return -first_order_change(advantages_BT, log_probs_BT, entropies_BT, mask_BT, theorem=2)


class Decomposition(NamedTuple):
    """Parts of a change of rollout entropy, nats; within + occupancy = total."""

    total: float
    within: float
    occupancy: float


def decompose(entropy_now: float, probe_now: float, entropy_start: float, probe_start: float) -> Decomposition:
    """Split the change of rollout entropy into a part within states and a part from visiting other states.

    With H_k(d) the mean entropy of the policy of step k over tokens in the states d, d_k the states that policy
    visits, and p the fixed probe prefixes,

        H_k(d_k) - H_0(d_0)  =  [H_k(p) - H_0(p)]  +  the rest
              total                  within            occupancy

    The identity holds for any p. Reading the first bracket as the change within the starting states assumes that the
    probe is drawn from d_0: prefixes sampled by the starting policy, on the training prompts, at the same temperature,
    and enough of them (the sampling error of the probe goes into both parts with opposite sign; what the probe was
    off by at the start cancels). The occupancy part then also holds what is within-state in states only the later
    policy visits: H_k(d_k) - H_k(d_0), not its split into new states and new weights of old ones.
    All four are means over tokens, in nats, of the same flavour (token mean or mean of response means).
    """
    total, within = entropy_now - entropy_start, probe_now - probe_start
    return Decomposition(total, within, total - within)


class Monitor:
    """Covariances and phase entropies of one optimiser step over all ranks, out of its micro-batches.

    `observe` once per micro-batch, `finish` once per optimiser step, by every rank: two collectives, whatever the
    number of micro-batches. Holds 9 bytes a token of the step (log-prob, advantage, counted).
    device: where the collectives take place if no micro-batch was seen; otherwise that of the tensors.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._log_probs: list[Tensor] = []  # (N,) each: micro-batches differ in width
        self._advantages: list[Tensor] = []
        self._counted: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, rows: Rows, log_probs_BT: Tensor, entropies_BT: Tensor, phase_BT: Tensor | None = None) -> None:
        """Take in one micro-batch, under the policy before the step.

        log_probs_BT, entropies_BT: of the sampled tokens, nats; any graph is left behind.
        phase_BT: int8, OTHER, THINK or ANSWER per token; None where the tokenizer knows no thinking tags.
        """
        self.device = log_probs_BT.device
        counted_BT = rows.mask_BT & rows.informative_B[:, None]
        log_p_BT = torch.where(counted_BT, log_probs_BT.detach().float(), 0.0)
        entropy_BT = torch.where(rows.mask_BT, entropies_BT.detach().float(), 0.0)
        adv_BT = torch.where(counted_BT, rows.advantages_BT.detach().float(), 0.0)
        self._log_probs.append(log_p_BT.flatten())
        self._advantages.append(adv_BT.flatten())
        self._counted.append(counted_BT.flatten())
        self._add(_moments(log_p_BT.double(), adv_BT.double(), counted_BT))
        self._add({"state_cov": _total(state_covariance(log_p_BT, entropy_BT, adv_BT, counted_BT))})
        if phase_BT is not None:
            self._add(_phase_sums(entropy_BT, phase_BT, rows.mask_BT))

    def _add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def sums(self) -> dict[str, Tensor]:
        """What this rank has seen since the last `finish`: float64 scalars, the same names on every rank."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return {name: self._sums.get(name, zero) for name in SUMS}

    @torch.no_grad()
    def finish(self, ranks: Ranks) -> dict[str, Tensor]:
        """Metrics of the step over all ranks, the same on each: 0-dim float64 tensors, NaN where nothing counts.

        The monitor is empty afterwards, ready for the next step.
        """
        total = dict(zip(SUMS, ranks.sum(torch.stack(list(self.sums().values()))).unbind(), strict=True))
        metrics = _covariance_metrics(total)
        metrics |= {f"policy_entropy/{phase}": total[f"entropy_{phase}"] / total[f"tokens_{phase}"] for phase in PHASES}
        shares = self._top_shares(total, ranks)
        self._log_probs, self._advantages, self._counted, self._sums = [], [], [], {}
        return metrics | shares

    def _top_shares(self, total: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
        none = torch.zeros(0, device=self.device)
        log_p_1N = torch.cat([none, *self._log_probs])[None]
        adv_1N = torch.cat([none, *self._advantages])[None]
        counted_1N = torch.cat([none.bool(), *self._counted])[None]
        n = total["n"].clamp(min=1)
        cov_1N = covariance(log_p_1N, adv_1N, counted_1N, mean_log_prob=total["x"] / n, mean_advantage=total["a"] / n)
        found = share_means(cov_1N, counted_1N, ranks, negative_BT=adv_1N < 0)
        return {f"dynamics/{name}": torch.where(total["n"] > 0, value, torch.nan) for name, value in found.items()}


# x = log pi, a = A: mean and variance of (x - mean x)(a - mean a) follow from these, so one collective will do.
MOMENTS = ("n", "x", "a", "xa", "xx", "aa", "xxa", "xaa", "xxaa")
SUMS = (*MOMENTS, "state_cov", *(f"{what}_{phase}" for phase in PHASES for what in ("entropy", "tokens")))


def _total(x: Tensor) -> Tensor:
    return x.sum(dtype=torch.float64)


def _moments(x: Tensor, a: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Sums over tokens; `x` and `a` are float64 and 0 where nothing counts."""
    products = (x, a, x * a, x * x, a * a, x * x * a, x * a * a, x * x * a * a)
    return dict(zip(MOMENTS, (_total(counted), *(_total(p) for p in products)), strict=True))


def _phase_sums(entropy_BT: Tensor, phase_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for phase, value in PHASES.items():
        inside_BT = mask_BT & (phase_BT == value)
        sums[f"entropy_{phase}"] = _total(torch.where(inside_BT, entropy_BT, 0.0))
        sums[f"tokens_{phase}"] = _total(inside_BT)
    return sums


def _covariance_metrics(total: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and population standard deviation of c, and the mean state covariance; 0 / 0 = NaN without tokens."""
    n = total["n"]
    x, a, xa, xx, aa, xxa, xaa, xxaa = (total[name] / n for name in MOMENTS[1:])
    mean = xa - x * a
    # E[(x - mx)^2 (a - ma)^2], multiplied out
    square = xxaa - 2 * a * xxa + a * a * xx - 2 * x * xaa + 4 * x * a * xa + x * x * aa - 3 * x * x * a * a
    variance = square - mean * mean
    variance = torch.where(variance <= ROUND_OFF * xxaa, 0.0 * variance, variance)  # 0 * NaN stays NaN
    return {
        "dynamics/cov_mean": mean,
        "dynamics/cov_std": variance.sqrt(),
        "dynamics/state_cov": total["state_cov"] / n,
        "dynamics/tokens": n,
    }
