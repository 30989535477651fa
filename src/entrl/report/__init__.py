"""Run folders -> one self-contained HTML page: what ran, before and after, curves, completions token by token."""

from entrl.report.page import write_report
from entrl.report.read import RunFolder, read_run, read_runs

__all__ = ["RunFolder", "read_run", "read_runs", "write_report"]
