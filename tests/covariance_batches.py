"""Windows for the tests of covariance controllers, cut over simulated ranks and micro-batches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from entrl.controllers.hooks import LossView, OneRank, Rows, Window


class Meeting:
    """Where the threads of a simulated process group exchange what they hold."""

    def __init__(self, size):
        self.barrier, self.box = threading.Barrier(size, timeout=20), [None] * size

    def exchange(self, rank, x):
        self.box[rank] = x
        self.barrier.wait()
        everybody = list(self.box)
        self.barrier.wait()
        return everybody


class ThreadRank:
    """`Ranks` of one thread, as strict about shapes as a process group."""

    def __init__(self, rank, meeting):
        self.rank, self.meeting = rank, meeting

    def sum(self, x):
        return torch.stack(self.meeting.exchange(self.rank, x)).sum(0)

    def gather(self, x):
        parts = self.meeting.exchange(self.rank, x)
        assert len({(p.shape, p.dtype) for p in parts}) == 1
        return torch.cat(parts)

    def max(self, x):
        assert isinstance(x, int)
        return max(self.meeting.exchange(self.rank, x))


def on_ranks(parts, work):
    """work(part, ranks) for every part at once; the answers in order."""
    meeting = Meeting(len(parts))
    with ThreadPoolExecutor(len(parts)) as pool:
        jobs = [pool.submit(work, part, ThreadRank(i, meeting)) for i, part in enumerate(parts)]
        return [job.result() for job in jobs]


class Batch:
    """Rows of a window with everything both passes need; indexable by row numbers."""

    def __init__(self, rows, log_probs, old):
        self.rows, self.log_probs, self.old = rows, log_probs, old

    def __getitem__(self, index):
        r = self.rows
        rows = Rows(
            advantages_BT=r.advantages_BT[index],
            mask_BT=r.mask_BT[index],
            row_id_B=r.row_id_B[index],
            informative_B=r.informative_B[index],
        )
        return Batch(rows, self.log_probs[index], self.old[index])

    def narrow(self, columns):
        r = self.rows
        assert not r.mask_BT[:, columns:].any()
        rows = Rows(
            advantages_BT=r.advantages_BT[:, :columns],
            mask_BT=r.mask_BT[:, :columns],
            row_id_B=r.row_id_B,
            informative_B=r.informative_B,
        )
        return Batch(rows, self.log_probs[:, :columns], self.old[:, :columns])

    def window(self, *, ranks=None, step=0, log_probs=None):
        return Window(
            rows=self.rows,
            log_probs_BT=self.log_probs if log_probs is None else log_probs,
            old_log_probs_BT=self.old,
            step=step,
            ranks=ranks or OneRank(),
        )


def batch(seed, *, B=6, T=14, drift=0.1):
    g = torch.Generator().manual_seed(seed)
    old = -torch.empty(B, T).exponential_(1.0, generator=g)
    advantage = torch.randn(B, generator=g)
    length = torch.randint(3, T + 1, (B,), generator=g)
    length[0] = T
    rows = Rows(
        advantages_BT=advantage[:, None].expand(B, T),
        mask_BT=torch.arange(T) < length[:, None],
        row_id_B=torch.arange(B) * 3 + 1,
        informative_B=torch.ones(B, dtype=torch.bool),
    )
    return Batch(rows, old + drift * torch.randn(B, T, generator=g), old)


def loss_pass(controller, b, selection=None, *, log_probs=None, eps=None):
    low, high = eps or controller.clip_range
    return controller.on_loss(
        b.rows,
        selection,
        LossView(
            log_probs_BT=b.log_probs if log_probs is None else log_probs,
            old_log_probs_BT=b.old,
            entropies_BT=torch.zeros_like(b.old),
            eps_low=low,
            eps_high=high,
        ),
    )


def chosen(controller, b, selection=None, *, log_probs=None):
    """{(row_id, column)} of the tokens the loss pass takes; KL-Cov by its penalty, which 0 drift would hide."""
    terms = loss_pass(controller, b, selection, log_probs=log_probs)
    hit = terms.weight_BT == 0 if terms.weight_BT is not None else terms.penalty_BT != 0
    assert int(hit.sum()) == int(terms.sums["selected"])
    return {(int(b.rows.row_id_B[i]), j) for i, j in hit.nonzero().tolist()}


def window_metrics(controller, selection):
    return {name: float(value) for name, value in controller.window_metrics(selection).items()}
