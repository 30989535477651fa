"""Run folders -> one self-contained HTML page: what ran, before and after, curves, completions token by token."""

from entrl.report.page import write_report
from entrl.report.read import RunRecord, read_run, read_runs

__all__ = ["RunRecord", "read_run", "read_runs", "write_report"]
