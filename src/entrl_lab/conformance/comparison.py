"""What one case computed, where it disagrees with its vector, and the answer that is reported of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Status = Literal["passed", "failed", "not_covered", "excluded"]
Case = dict[str, Any]  # one entry of a vector file


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
            self.wrong.append(f"{name} is {short(got)}, expected {short(want)}")

    def result(self, case_id: str, note: str = "") -> CaseResult:
        return CaseResult(
            id=case_id,
            status="failed" if self.wrong else "passed",
            max_error=self.error,
            note="; ".join(self.wrong) or note,
            computed=self.computed,
        )


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


Runner = Callable[[Case, Comparison], str]  # runs one case, notes disagreements, returns a note for the table
