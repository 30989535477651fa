"""What Clip-Cov and KL-Cov share: the covariance score of a token, the statistics under it, and its metrics.

    c_i = (log pi(y_i) - mean_j log pi(y_j)) (A_i - mean_j A_j)        i, j over the counted tokens

Source:  arXiv 2505.22617, Eq. 10
Differs: the means run over the optimiser step on all ranks, or over one micro-batch of one rank as in the published
    code (scope `micro_batch`). Rows of groups without reward spread are left out unless told otherwise: the
    published recipes drop such groups before training, TRL keeps them with advantage 0, and they would move n and
    both means. c and the selection made from it are outside the graph, in float32.
Needs:   the final advantages of TRL's loss and the log-probs of the sampled tokens

A selection is made once and applied with the log-probs of each loss pass, so it travels as a rule (means, threshold),
not as a mask. Tokens are named by id = row_id * 2**24 + column, which no split over micro-batches or ranks changes.

No value is read from a device: counts, means and thresholds stay there, and every shape follows from shapes. (On the
CPU, where a look is free, a few paths take one to skip work; `reads_are_free` marks them.) One step of a selecting
controller gathers twice: three numbers for the means, then from each rank the few tokens or keys that can decide the
threshold, 8 to 16 bytes each, together with the sums behind mean and std of c.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from entrl.controllers.hooks import Controller, LossView, Ranks, Rows, Scope, Window

LARGEST_FRACTION = 0.05  # our guard: the published settings are 2e-4 and 2e-3, percent read as fraction gives 0.02 up
COLUMN_SPAN = 2**24  # tokens a row may hold; leaves 2**39 rows
LAST_ID = torch.iinfo(torch.int64).max
TOP_SHARES = {"0.02%": 2e-4, "0.2%": 2e-3, "2%": 0.02, "20%": 0.2, "50%": 0.5}  # the groups of the paper's Table 1
BLOCK = 64  # tokens whose maximum stands for them in the first pass of a top-k
RUN = 2**16  # tokens worked on at once on a CPU: a quarter of a megabyte in float32
MINUS_INF_BITS = 0xFF800000 - 2**32  # of a float32, as a signed number

# Bins of `share_means`: 2**6 an octave of |c|, so a bin is 1/64 to 1/128 of its values wide, read off the float32 bits.
BIN_BITS = 6
LOWEST, HIGHEST = -20, 16  # log2 |c|: below, one bin around zero; above, one bin for all
HALF_BINS = (HIGHEST - LOWEST) << BIN_BITS


class TokenStats(NamedTuple):
    """Over the counted tokens of the scope: a whole optimiser step on all ranks, or one micro-batch."""

    n: Tensor  # float64 scalars, on the device
    mean_log_prob: Tensor
    mean_advantage: Tensor
    world: int = 1  # ranks behind the numbers


class CovSpread(NamedTuple):
    mean: Tensor  # float64 scalars; 0 where no token counts
    std: Tensor  # population standard deviation


def token_ids(row_id_B: Tensor, columns: int) -> Tensor:
    """(B, T) int64, one number per token that depends on nothing but its row and column."""
    return row_id_B.to(torch.int64)[:, None] * COLUMN_SPAN + torch.arange(columns, device=row_id_B.device)


def reads_are_free(x: Tensor) -> bool:
    """True on the CPU, where a value can be looked at without waiting for a device. Results never depend on it."""
    return x.device.type == "cpu"


def unexpanded(x_BT: Tensor) -> Tensor:
    """(B, 1) where all columns of `x_BT` are the same memory (advantages broadcast over tokens), else `x_BT`."""
    return x_BT[:, :1] if x_BT.stride(1) == 0 else x_BT


# On a CPU torch runs floats and integers through vector instructions and most work on bools one by one, at four to ten
# times the cost a token; so masks are combined and counted as bytes, and applied as bits.


def both(mask_BT: Tensor, other: Tensor) -> Tensor:
    """`&` of two bool masks that broadcast."""
    return (mask_BT.view(torch.uint8) & other.view(torch.uint8)).view(torch.bool)


def count(mask_BT: Tensor) -> Tensor:
    """True entries of a bool mask, int32 scalar."""
    return mask_BT.view(torch.uint8).sum(dtype=torch.int32)


def bits_of(mask_BT: Tensor) -> Tensor:
    """(B, T) int32: all bits where the mask is True, none elsewhere."""
    return mask_BT.view(torch.uint8).to(torch.int32).neg_()


def zeroed_(x_BT: Tensor, bits_BT: Tensor) -> Tensor:
    """Set float32 `x_BT` to 0, in place and NaN included, where `bits_of` the mask has no bits."""
    x_BT.view(torch.int32).bitwise_and_(bits_BT)
    return x_BT


def total(x_BT: Tensor) -> Tensor:
    """Float64 sum of a float32 matrix: in float32 within runs of BLOCK columns, in float64 over them.

    A row's runs start at its first column, so zeros appended to it and rows beside it change none of their sums.
    """
    return blocks_of(x_BT, 0.0).sum(1).sum(dtype=torch.float64)


def runs(x_BT: Tensor) -> list[slice]:
    """Rows of a window in pieces to be worked on one after the other: on a CPU what its cache holds, else all at once.

    Fresh megabytes cost a CPU more than the arithmetic done on them: the system hands them out page by page.
    """
    rows = max(1, RUN // max(x_BT.shape[1], 1)) if reads_are_free(x_BT) else len(x_BT)
    return [slice(start, start + rows) for start in range(0, len(x_BT), max(rows, 1))]


def rows_in(rows: Rows, run: slice) -> Rows:
    return rows.map(lambda x: x[run])


@torch.no_grad()
def token_stats(log_probs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, ranks: Ranks) -> TokenStats:
    """One gather of three numbers; means are 0 where no token counts."""
    parts = [_stats_sums(log_probs_BT[run], advantages_BT[run], mask_BT[run]) for run in runs(log_probs_BT)]
    # Gathered, not reduced: the length says how many ranks there are, and every rank adds in the same order.
    every_R3 = ranks.gather(torch.stack(parts).sum(0, keepdim=True))
    sums = every_R3.sum(0)
    mean = sums[1:] / sums[0].clamp(min=1)
    return TokenStats(sums[0], mean[0], mean[1], len(every_R3))


def _own(x_BT: Tensor) -> Tensor:
    """A float32 copy that may be written to."""
    return x_BT.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _stats_sums(log_probs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(3,) float64: tokens, sum of log-probs, sum of advantages."""
    one_BX, bits_BT = unexpanded(advantages_BT.detach()), bits_of(mask_BT)
    if one_BX.shape[1] == 1:
        n_B1 = mask_BT.view(torch.uint8).sum(1, keepdim=True, dtype=torch.int32)
        advantage, n = (torch.where(n_B1 > 0, one_BX, 0.0).double() * n_B1).sum(), n_B1.sum()
    else:
        advantage, n = total(zeroed_(_own(advantages_BT), bits_BT)), count(mask_BT)
    return torch.stack([n.double(), total(zeroed_(_own(log_probs_BT), bits_BT)), advantage])


def _centred(advantages_BT: Tensor, stats: TokenStats) -> Tensor:
    return unexpanded(advantages_BT).detach().float() - stats.mean_advantage


def raw_covariance(log_probs_BT: Tensor, advantages_BT: Tensor, stats: TokenStats) -> Tensor:
    """(B, T) float32, c where a token counts, anything elsewhere; the same bits for the same log-prob in every pass."""
    return (log_probs_BT.detach().float() - stats.mean_log_prob).mul_(_centred(advantages_BT, stats))


@torch.no_grad()
def token_covariance(log_probs_BT: Tensor, rows: Rows, mask_BT: Tensor, stats: TokenStats) -> Tensor:
    """(B, T) float32, 0 where `mask_BT` is False."""
    return zeroed_(raw_covariance(log_probs_BT, rows.advantages_BT, stats), bits_of(mask_BT))


def spread_sums(cov_BT: Tensor) -> Tensor:
    """(2,) float64, sum of c and of c squared over this rank; c is 0 at the tokens that do not count."""
    norm_B = torch.linalg.vector_norm(cov_BT, dim=1)
    return torch.stack([total(cov_BT), norm_B.double().square().sum()])


def spread_of(sums_2: Tensor, n: Tensor) -> CovSpread:
    """Mean and standard deviation of c from the sums of all ranks."""
    mean, square = (sums_2 / n.clamp(min=1)).unbind()
    return CovSpread(mean, (square - mean * mean).clamp(min=0).sqrt())


@torch.no_grad()
def cov_spread(cov_BT: Tensor, mask_BT: Tensor, n: Tensor, ranks: Ranks) -> CovSpread:
    """One all-reduce of two numbers."""
    return spread_of(ranks.sum(spread_sums(zeroed_(_own(cov_BT), bits_of(mask_BT)))), n)


def agreed_tokens(tokens_BT: Tensor, ranks: Ranks) -> int:
    """A bound on the tokens of any one rank, the same number on every rank: buffers of a gather are sized by it.

    Ranks hold equally many rows of different widths. Ranks that know a bound on the width (`columns`) need no
    exchange; the others are asked for the largest rank, which on several GPUs waits for the device.
    """
    columns = getattr(ranks, "columns", None)
    if columns is None:
        return ranks.max(tokens_BT.numel())
    if tokens_BT.shape[1] > columns:
        raise ValueError(
            f"a window of {tokens_BT.shape[1]} columns exceeds the ranks' bound of {columns}; give AccelerateRanks "
            "the longest completion a rollout may hold, padding included"
        )
    return tokens_BT.shape[0] * columns


def rule_size(fraction: float, tokens: int, world: int) -> int:
    """Entries each rank brings so that place `share_of(fraction, n)` of all and the next are among them, for any n."""
    # Multiplied as `share_of` does, or rounding could make room for one entry too few.
    return min(max(1, int(tokens * world * fraction)) + 1, tokens)


def share_of(fraction: float, n: Tensor) -> Tensor:
    """max(1, int(fraction n)) as an int64 scalar on the device."""
    return (n * fraction).floor().clamp(min=1).long()


def entry(x_N: Tensor, index: Tensor) -> Tensor:
    """x_N[index] for an index on the device, which plain indexing would read on the host; clamped to the length."""
    return x_N.index_select(0, index.clamp(max=len(x_N) - 1).reshape(1))[0]


def blocks_of(x_BT: Tensor, fill: float) -> Tensor:
    """(blocks, BLOCK): rows cut into runs of columns, the last one filled up."""
    short = -x_BT.shape[1] % BLOCK
    if short:  # not torch's pad, whose fill is a float and cannot be LAST_ID
        x_BT = torch.cat([x_BT, x_BT.new_full((len(x_BT), short), fill)], dim=1)
    return x_BT.reshape(-1, BLOCK)


def _order_bits(value_N: Tensor) -> Tensor:
    """int64 in [-2**31, 2**31) that sort as the float32 values do; -0.0 counts as 0.0."""
    bits_N = (value_N.float() + 0.0).contiguous().view(torch.int32)
    return (bits_N ^ ((bits_N >> 31) & 0x7FFFFFFF)).long()


def _values_of(order_N: Tensor) -> Tensor:
    """Inverse of `_order_bits`."""
    bits_N = order_N.int()
    return (bits_N ^ ((bits_N >> 31) & 0x7FFFFFFF)).view(torch.float32)


def block_tops(cov_BT: Tensor, bits_BT: Tensor) -> Tensor:
    """(blocks,) largest c of each run of BLOCK columns, -inf where none of its tokens counts; c is 0 at those."""
    filled_BT = (~bits_BT).bitwise_and_(MINUS_INF_BITS).bitwise_or_(cov_BT.view(torch.int32)).view(torch.float32)
    return blocks_of(filled_BT, -torch.inf).amax(1)


def block_values(block_X: Tensor, log_probs_BT: Tensor, rows: Rows, mask_BT: Tensor, stats: TokenStats) -> Tensor:
    """(X, BLOCK) c of the tokens in some blocks, the same bits as in any other pass; -inf where none counts."""
    T = log_probs_BT.shape[1]
    per_row = -(-T // BLOCK)
    row_X1 = (block_X // per_row)[:, None]
    column_XK = (block_X % per_row)[:, None] * BLOCK + torch.arange(BLOCK, device=block_X.device)
    place_XK = row_X1 * T + column_XK.clamp(max=T - 1)
    one_BX = unexpanded(rows.advantages_BT)
    advantage_XK = one_BX[row_X1, 0] if one_BX.shape[1] == 1 else one_BX.reshape(-1)[place_XK]
    cov_XK = raw_covariance(log_probs_BT.reshape(-1)[place_XK], advantage_XK, stats)
    return torch.where(mask_BT.reshape(-1)[place_XK] & (column_XK < T), cov_XK, -torch.inf)


@torch.no_grad()
def top_tokens(
    top_N: Tensor, row_id_B: Tensor, size: int, values_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The `size` largest counted float32 values of a window and their ids, in order; equal values by smallest id.

    top_N: the largest value of each block, row by row; values_of: blocks -> their (X, BLOCK) values, -inf where a
    token does not count.

    Exact without sorting all: let tokens go by (value, earlier id first) and blocks by their first such token. A token
    among the `size` first has fewer than `size` blocks ahead of its own, because each of those holds a token ahead of
    it, so only the `size` first blocks are looked into, and in these the `size` first of eight smaller ones each.
    Positions past the tokens come back as (-inf, LAST_ID).
    """
    per_row = len(top_N) // len(row_id_B) * BLOCK
    row_id_B, by_id_B = row_id_B.to(torch.int64).sort()
    # The place of a block's first token when rows are laid out by id.
    start_B1 = (by_id_B.argsort() * per_row)[:, None]
    place_N = (start_B1 + torch.arange(0, per_row, BLOCK, device=top_N.device)).flatten()
    if size * 2 < len(top_N):  # otherwise most blocks would be looked into anyway
        first_X = _first(top_N, place_N, size)
        value_XK, place_X = values_of(first_X), place_N.index_select(0, first_X)
    else:
        value_XK, place_X = values_of(torch.arange(len(top_N), device=top_N.device)), place_N
    small = BLOCK // 8
    value_XK = value_XK.reshape(-1, small)
    place_X = (place_X[:, None] + torch.arange(0, BLOCK, small, device=place_X.device)).flatten()
    if size * 2 < len(value_XK):
        first_X = _first(value_XK.amax(1), place_X, size)
        value_XK, place_X = value_XK.index_select(0, first_X), place_X.index_select(0, first_X)
    key_M = _keys(value_XK, place_X[:, None] + torch.arange(small, device=place_X.device)).flatten()
    key_K = key_M.topk(min(size, len(key_M))).values
    order_K = -((-key_K) >> 32)  # a place is below 2**32, so rounding up undoes its subtraction
    place_K = (order_K << 32) - key_K
    value_K = _values_of(order_K)
    id_K = row_id_B.index_select(0, place_K // per_row) * COLUMN_SPAN + place_K % per_row
    id_K = torch.where(value_K == -torch.inf, LAST_ID, id_K)
    return padded(value_K, size, -torch.inf), padded(id_K, size, LAST_ID)


def _keys(value_N: Tensor, place_N: Tensor) -> Tensor:
    """int64 that sort by value, then by earlier place."""
    return (_order_bits(value_N) << 32) - place_N


def _first(value_N: Tensor, place_N: Tensor, size: int) -> Tensor:
    return _keys(value_N, place_N).topk(size, sorted=False).indices


@torch.no_grad()
def smallest(key_BT: Tensor, size: int) -> Tensor:
    """The `size` smallest of the (B, T) int64 keys, in order; LAST_ID past the end."""
    key_NK = blocks_of(key_BT, LAST_ID)
    if size * 2 < len(key_NK):  # the rule of `top_tokens`; equal keys need no second order
        key_NK = key_NK[key_NK.amin(1).topk(size, largest=False).indices]
    key_M = key_NK.flatten()
    return padded(key_M.topk(min(size, len(key_M)), largest=False).values, size, LAST_ID)


@torch.no_grad()
def share_means(
    cov_BT: Tensor, mask_BT: Tensor, ranks: Ranks, *, negative_BT: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean c of the top shares over all ranks, from one all-reduce of a histogram whose size is fixed.

    negative_BT: bool, tokens with negative advantage; adds the share of them in each top share.

    Returns float64 scalars: `cov_top_0.2%` and so on, and `cov_top_0.2%_negative`; 0 where no token counts. A share
    holds max(1, int(share n)) tokens. Bins carry their own sums, so only the bin that the last token falls into is
    approximated, by its mean: the error is at most 1/64 of |c| there (2**-19 for |c| < 2**-20; above 2**16 all
    values share a bin). Nothing depends on how rows fall on ranks but the order in which sums are added.
    """
    local_HP = sum(
        _histogram(cov_BT[run], mask_BT[run], None if negative_BT is None else negative_BT[run]) for run in runs(cov_BT)
    )
    assert isinstance(local_HP, Tensor)
    total_HP = ranks.sum(local_HP).flip(1)  # largest c first
    count_P = total_HP[0]
    mean_HP = total_HP[1:] / count_P.clamp(min=1)
    before_P = count_P.cumsum(0) - count_P
    n = count_P.sum()
    out: dict[str, Tensor] = {}
    for name, share in TOP_SHARES.items():
        k = (n * share).floor().clamp(min=1)
        taken_P = torch.minimum((k - before_P).clamp(min=0), count_P)
        means = (taken_P * mean_HP).sum(1) / k
        out[f"cov_top_{name}"] = means[0]
        if negative_BT is not None:
            out[f"cov_top_{name}_negative"] = means[1]
    return out


def _histogram(cov_BT: Tensor, mask_BT: Tensor, negative_BT: Tensor | None) -> Tensor:
    """(2 or 3, bins) float64: tokens, sum of c, tokens of negative advantage, lowest c first."""
    cov_BT = zeroed_(_own(cov_BT), bits_of(mask_BT))
    bin_N = _bins(cov_BT).flatten()
    one = torch.ones((), dtype=torch.float64, device=cov_BT.device)
    parts = [one.expand(bin_N.shape), cov_BT.double().flatten()]
    if negative_BT is not None:
        parts.append(both(negative_BT, mask_BT).flatten().view(torch.uint8).double())
    out_HP = torch.stack([one.new_zeros(2 * HALF_BINS + 1).scatter_add_(0, bin_N, x) for x in parts])
    out_HP[0, HALF_BINS] -= mask_BT.numel() - count(mask_BT)  # tokens that do not count were binned as zeros
    return out_HP


def _bins(cov_BT: Tensor) -> Tensor:
    """int64 bin of every float32 value: 0 for the lowest, HALF_BINS around zero, 2 HALF_BINS for the highest."""
    bits_BT = cov_BT.view(torch.int32)
    half_BT = (bits_BT & 0x7FFFFFFF).bitwise_right_shift_(23 - BIN_BITS)  # exponent and the first bits behind it
    half_BT.sub_(((127 + LOWEST) << BIN_BITS) - 1).clamp_(0, HALF_BINS)
    sign_BT = (bits_BT >> 31).bitwise_or_(1)
    return half_BT.mul_(sign_BT).add_(HALF_BINS).long()


@torch.no_grad()
def ppo_clipped(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    eps_low: float,
    eps_high: float,
) -> Tensor:
    """Bool: tokens the ratio clip already silences, strictly (A > 0 and r > 1 + high, or A < 0 and r < 1 - low)."""
    advantages_BT = unexpanded(advantages_BT)
    silenced_BT = torch.zeros_like(mask_BT)
    if eps_low >= 1 and eps_high == torch.inf:  # no ratio of two probabilities lies outside
        return silenced_BT
    ratio_BT = torch.exp(log_probs_BT.detach() - old_log_probs_BT)
    if eps_high < torch.inf:
        silenced_BT |= both(ratio_BT > 1 + eps_high, advantages_BT > 0)
    if eps_low < 1:
        silenced_BT |= both(ratio_BT < 1 - eps_low, advantages_BT < 0)
    return silenced_BT & mask_BT


def padded(x_N: Tensor, width: int, value: float) -> Tensor:
    return torch.cat([x_N, x_N.new_full((width - len(x_N),), value)])


@dataclass(kw_only=True)
class CovarianceController(Controller):
    """Options and metrics of a controller that picks tokens by covariance."""

    fraction: float = 2e-4  # share of the counted tokens, never percent: 0.2 % is 0.002
    allow_large_fraction: bool = False
    scope: Scope = "step"
    skip_zero_std_groups: bool = True  # leave rows whose group had rewards without spread out of everything
    log_shares: bool = True  # mean c of the top shares, from a histogram: 72 KB reduced a step

    def __post_init__(self) -> None:
        limit = 1.0 if self.allow_large_fraction else LARGEST_FRACTION
        if not 0 < self.fraction <= limit:
            raise ValueError(
                f"{self.name}: fraction must be in (0, {limit:g}], got {self.fraction}; it is a fraction, not a "
                "percentage (0.2 % is 0.002). Set allow_large_fraction=True if you mean it"
            )
        if self.scope not in ("step", "exact", "micro_batch"):
            raise ValueError(f"scope must be 'step', 'exact' or 'micro_batch', got {self.scope!r}")
        self._warned_single_row = False

    def counted(self, rows: Rows) -> Tensor:
        """(B, T) bool: the tokens that enter n, the means and the selection."""
        return both(rows.mask_BT, rows.informative_B[:, None]) if self.skip_zero_std_groups else rows.mask_BT

    def warn_single_row(self, rows: Rows) -> None:
        if len(rows.mask_BT) == 1 and not self._warned_single_row:
            self._warned_single_row = True
            warnings.warn(
                f"{self.name} with scope 'micro_batch' got one completion per micro-batch: advantages are constant "
                "there, so every covariance is 0. Raise per_device_train_batch_size or use scope 'step'",
                stacklevel=3,
            )

    def spread_metrics(self, window: Window, stats: TokenStats, spread: CovSpread) -> dict[str, Tensor | float]:
        metrics: dict[str, Tensor | float] = {"cov_mean": spread.mean, "cov_std": spread.std}
        if self.log_shares:
            counted_BT = self.counted(window.rows)
            cov_BT = token_covariance(window.log_probs_BT, window.rows, counted_BT, stats)
            metrics |= share_means(cov_BT, counted_BT, window.ranks)
        return metrics

    @torch.no_grad()
    def token_sums(self, rows: Rows, chosen_BT: Tensor, view: LossView) -> dict[str, Tensor]:
        """Counts and totals of one micro-batch; `summarise` divides them."""
        mask_BT, counted_BT = rows.mask_BT, self.counted(rows)
        log_probs_BT, old_log_probs_BT = view.log_probs_BT.detach(), view.old_log_probs_BT
        clipped_BT = ppo_clipped(
            log_probs_BT, old_log_probs_BT, rows.advantages_BT, mask_BT, eps_low=view.eps_low, eps_high=view.eps_high
        )
        # Outside the graph, so NaN of padding may be computed before it is dropped.
        x_BT = zeroed_((log_probs_BT - old_log_probs_BT).float().abs_(), bits_of(mask_BT))
        probability_BT = zeroed_(log_probs_BT.float().exp(), bits_of(chosen_BT))
        return {
            "loss_tokens": count(mask_BT),
            "tokens": count(counted_BT),
            "selected": count(chosen_BT),
            "selected_negative": count(both(chosen_BT, unexpanded(rows.advantages_BT) < 0)),
            "selected_probability": total(probability_BT),
            "ppo_clipped": count(clipped_BT),
            "abs_log_ratio": total(x_BT),
        }

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Shares of the loss's tokens (`ppo_clipped`, `abs_log_ratio`), of the counted ones, and of the selected."""
        loss_tokens, selected = max(sums["loss_tokens"], 1), sums["selected"]
        metrics = {
            "tokens": sums["tokens"],
            "selected": selected,
            "selected_fraction": selected / max(sums["tokens"], 1),
            "ppo_clipped": sums["ppo_clipped"] / loss_tokens,
            "abs_log_ratio": sums["abs_log_ratio"] / loss_tokens,  # nats; the published `ppo_kl`
        }
        if selected:
            metrics["selected_negative_advantage"] = sums["selected_negative"] / selected
            metrics["selected_probability"] = sums["selected_probability"] / selected
        return metrics
