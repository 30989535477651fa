"""A cold start: answers -> a curated choice of them -> TRL SFT -> a model RL can start from.

    entrl cold-start RECIPE.yaml

`spec` reads the file, `answers` collects the answers, `entrl.teach.curation` chooses, `run` teaches and writes the
folder.
"""

from entrl.teach.cold_start.run import cold_start
from entrl.teach.cold_start.spec import ColdStart, load_cold_start
from entrl.teach.made_model import is_made

__all__ = ["ColdStart", "cold_start", "is_made", "load_cold_start"]
