"""A finished run as a line of a study's rows, for tests of what is made of lines alone."""

import json
from collections.abc import Mapping

from entrl_lab.replicate.rows import hashes
from entrl_lab.replicate.study import Run, Study


def put_line(study: Study, run: Run, numbers: Mapping[str, float]) -> None:
    assert study.rows is not None
    line = {"run": run.name, "commit": "0123456789abcdef", "dirty": False, "numbers": dict(numbers)}
    with study.rows.open("a") as out:
        out.write(json.dumps({**line, "settings": hashes(study, run)}) + "\n")
