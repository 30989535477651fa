"""The head of an evaluation's JSON: what was asked, of whom, by which version. The one place that knows its keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from entrl.evaluation.writing import Sampling
from entrl.settings.provenance import entrl_commit
from entrl.version import __version__


def head(sampling: Sampling, *, problems: int, **asked: Any) -> dict[str, Any]:
    """Who and what; `labels` (model, task, split, ...) come over the None of these. asked: tags, template arguments."""
    return {
        "entrl": __version__,
        "commit": entrl_commit(),
        "model": None,
        "task": None,
        "split": None,
        "seed": sampling.seed,
        "n_problems": problems,
        "samples": sampling.samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        **asked,
    }


def check_k(k: Sequence[int], samples: int) -> None:
    for j in k:
        if not 1 <= j <= samples:
            raise ValueError(f"pass@{j} needs at least {j} samples a problem and k >= 1, got samples={samples}")


def of_tasks(results: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation of several tasks, each result under its name; `entrl.report.metrics.by_task` reads it."""
    return {
        "entrl": __version__,
        "commit": entrl_commit(),
        **labels,
        "seconds": sum(result["seconds"] for result in results.values()),
        "tasks": dict(results),
    }
