"""`entrl doctor`: a few prompts of a recipe answered for real, before anything is trained."""

from entrl.runs.doctor.examination import Examination, examine
from entrl.runs.doctor.first import Stopped, consult

__all__ = ["Examination", "Stopped", "consult", "examine"]
