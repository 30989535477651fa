"""The code in rewards/README.md runs as written."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "rewards" / "README.md"


def test_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(block, names)  # the last block holds asserts on the first two
    found = names["short_if_right"](
        completions=["</think>7", "</think>8"],
        completion_ids=[[0] * 1024, [0]],
        answer=["7", "7"],
        verifier=[{"kind": "exact"}] * 2,
    )
    assert found == [0.75, 0.0]
