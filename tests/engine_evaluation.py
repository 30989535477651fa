"""An evaluation through an engine of our own, as a script that a test can kill: OUT FOLDER SIZE."""

import json
import sys
from pathlib import Path
from typing import Any

from entrl.evaluation import records
from entrl.evaluation.answers import Answers
from entrl.evaluation.engine import open_engine
from entrl.evaluation.writing import Sampling
from entrl.models.load import load_tokenizer
from entrl.tasks import load_task

MODEL = "tiny-reasoner"
SAMPLING = Sampling(samples=4, temperature=0.8, top_p=0.95, max_new_tokens=64, seed=5)


def work(size: int, **how: Any) -> Answers:
    """On sums; how: a writer."""
    rows = load_task("sums", split="test", size=size, seed=0)
    return Answers(tokenizer=load_tokenizer(MODEL), dataset=rows, sampling=SAMPLING, k=(1, 4), **how)


if __name__ == "__main__":
    out, folder, size = sys.argv[1:]
    with open_engine(MODEL, sampling=SAMPLING, tokenizer=load_tokenizer(MODEL)) as writer:
        result = records.run(work(int(size), writer=writer), partial=Path(folder), progress=False)
    Path(out).write_text(json.dumps(result), encoding="utf-8")
