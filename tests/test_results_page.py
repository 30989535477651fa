"""docs/results.md and the README say what the files they link to say: each number is a link to a JSON, its title the
way to the value.

Docs pages that hold code are run here, too.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from entrl.controllers.hooks import LossView, Rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r'\[([^\[\]]+(?:\[[^\[\]]*\])?)\]\((?:\.\./)?([^ )]+\.json) "([^"]+)"\)')
NUMBER = re.compile(r"[+-]?\d+(?:\.(\d+))?")
PAGES = (DOCS / "results.md", ROOT / "README.md")
FOUND = [link for page in PAGES for link in LINK.findall(page.read_text(encoding="utf-8"))]


def value(file: str, path: str) -> list[float]:
    """The number at `path`, with the ends of its interval where it has one."""
    found: Any = json.loads((ROOT / file).read_text(encoding="utf-8"))
    for key in path.split(" > "):
        found = found[int(key)] if isinstance(found, list) else found[key]
    if not isinstance(found, dict):
        return [found]
    middle = next(
        found[k] for k in ("diff", "mean", "value", "ratio") if k in found and (k != "value" or "diff" not in found)
    )
    return [middle, *(found.get("ratio_ci") or found.get("ci95") or (found["lo"], found["hi"]))]


def agrees(text: str, numbers: list[float]) -> bool:
    """Printed as it is or in per cent, to the decimals that are printed; -0.0 and 0.0 are one."""
    printed = list(NUMBER.finditer(text))
    return len(printed) == len(numbers) and any(
        all(
            abs(float(p[0]) - scale * n) <= 0.5 * 10 ** -len(p[1] or "") + 1e-9
            for p, n in zip(printed, numbers, strict=True)
        )
        for scale in (1, 100)
    )


def test_numbers_are_there():
    assert len(FOUND) > 100
    assert any("overthinker" in file for _, file, _ in LINK.findall(PAGES[1].read_text()))
    assert {Path(file).parts[0] for _, file, _ in FOUND} >= {"recipes", "benchmarks"}
    assert any("smollm2" in file and "lora-pear-kl-cov" in path for _, file, path in FOUND)


@pytest.mark.parametrize("file", sorted({file for _, file, _ in FOUND}))
def test_each_number_is_that_of_its_file(file: str):
    wrong = [(text, path) for text, f, path in FOUND if f == file and not agrees(text, value(file, path))]
    assert not wrong


def test_a_wrong_number_is_seen():
    text, file, path = FOUND[0]
    assert agrees(text, value(file, path))
    assert not agrees(text.replace(text[1], str((int(text[1]) + 1) % 10), 1), value(file, path))


def test_tests_that_the_cases_name_exist():
    named = re.findall(r"`(test_\w+\.py)`", (DOCS / "cases.md").read_text(encoding="utf-8"))
    assert len(named) > 12
    assert not [name for name in named if not (ROOT / "tests" / name).exists()]


def test_the_controller_of_the_page_runs():
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "own_controller.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(block, names)
    controller = names["controller"](below=0.1)
    entropies_BT = torch.tensor([[0.05, 0.5, float("nan")]])
    rows = Rows(
        advantages_BT=torch.ones(1, 3),
        mask_BT=torch.tensor([[True, True, False]]),
        row_id_B=torch.zeros(1, dtype=torch.int64),
        informative_B=torch.ones(1, dtype=torch.bool),
    )
    log_probs_BT = torch.zeros(1, 3)
    view = LossView(
        log_probs_BT=log_probs_BT, old_log_probs_BT=log_probs_BT, entropies_BT=entropies_BT, eps_low=0.2, eps_high=0.2
    )
    terms = controller.on_loss(rows, None, view)
    assert terms.weight_BT.tolist() == [[0.5, 1.0, 1.0]]
    assert controller.summarise({k: float(v) for k, v in terms.sums.items()}) == {"share": 0.5}
