"""Studies: tasks x arms x paired seeds on one schedule, with intervals, analyses, one JSON and one page."""

from entrl_lab.replicate.conduct import replicate
from entrl_lab.replicate.runner import RunsFailed, finished
from entrl_lab.replicate.study import check_same_schedule, load_study

__all__ = ["RunsFailed", "check_same_schedule", "finished", "load_study", "replicate"]
