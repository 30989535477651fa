"""The report page in a real chromium: curves drawn, nothing injected, readable tokens, bad data survived.

The folders are SYNTHETIC (synthetic_runs.py). Marked browser: run by `launch/test.sh --full`.
"""

import html
import json
import re
import runpy
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from short_run import ROOT, quietly

from entrl.report import write_report
from entrl.runs.recipe import load_recipe

synthetic = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))
make_run, write_lines, PAYLOAD = synthetic["make_run"], synthetic["write_lines"], synthetic["PAYLOAD"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, so the page is not seen by a browser"),
]


def browse(page, profile, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=90, check=True)


def dom(page, tmp_path, script=""):
    """The page's DOM after its script ran, and after `script` ran behind it; JavaScript errors fail the test."""
    watched = page.with_name("watched.html")
    spy = "<script>addEventListener('error', (e) => document.documentElement.dataset.broke = e.message)</script>"
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{spy}", 1)
    later = f"<script>setTimeout(() => {{ {script} }}, 500)</script></body>"
    watched.write_text(later.join(text.rsplit("</body>", 1)), encoding="utf-8")
    text = browse(watched, tmp_path / "profile", "--dump-dom").stdout.decode()
    assert "data-broke" not in text, re.search(r'data-broke="[^"]*"', text)
    return text


def shown(text):
    """The DOM without its scripts, so that data does not count as drawn."""
    return re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)


def test_curves_legend_and_tokens_are_drawn(tmp_path):
    runs = [make_run(tmp_path / "grpo", controller=None), make_run(tmp_path / "kl", seed=1)]
    text = shown(dom(write_report(runs, tmp_path / "page.html"), tmp_path))
    reward = re.search(r'aria-label="Reward over step".*?</svg>', text, flags=re.DOTALL)
    assert reward
    assert reward.group().count('class="line"') == 2
    assert reward.group().count('class="raw"') == 2
    assert "grpo: not logged" in text  # the chart of selected tokens
    assert "NaN" not in text
    assert "Infinity" not in text
    assert 'class="phase"' in text
    assert "closing tag" in text


def test_axis_switch_and_smoothing(tmp_path):
    page = write_report([make_run(tmp_path / "kl")], tmp_path / "page.html")
    script = "document.querySelector('#axis input[value=tokens]').click(); document.getElementById('smooth').click();"
    text = shown(dom(page, tmp_path, script))
    assert 'aria-label="Reward over tokens generated"' in text
    assert re.search(r">\d00k</text>", text)
    charts = re.findall(r'aria-label="[^"]* over tokens generated".*?</svg>', text, flags=re.DOTALL)
    assert len(charts) > 3
    assert not any('class="raw"' in chart for chart in charts)  # the first screen's small curves keep theirs


def test_hostile_text_stays_text(tmp_path):
    run = make_run(tmp_path / "a", steps=8)
    rows = [json.loads(line) for line in (run / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    hostile = {"prompt": PAYLOAD, "rewards": {PAYLOAD: 1.0}, "group": PAYLOAD}
    write_lines(run / "completions.jsonl", [row | hostile | {"tokens": [PAYLOAD] * len(row["tokens"])} for row in rows])
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row | {f"rewards/{PAYLOAD}/mean": 1.0} for row in metrics])
    (run / "recipe.yaml").write_text(PAYLOAD)
    hover = (
        "const s = document.querySelector('.tokens span');"
        "s.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: 5, clientY: 5}));"
    )
    text = dom(write_report([run], tmp_path / "page.html"), tmp_path, hover)
    assert "<title>owned" not in text
    assert not re.search(r"<img\b", shown(text))
    assert "&lt;/script&gt;&lt;img src=x" in shown(text)
    assert re.search(r'<div id="tip"[^>]*>[^<]*&lt;/script&gt;', text)  # the tooltip shows it too


def test_newlines_tabs_and_empty_tokens_are_visible(tmp_path):
    run = make_run(tmp_path / "a", steps=4)
    tokens = ["a\n\n", "\tb", "", "\r\n", "日本🙂"]
    write_lines(run / "completions.jsonl", [{"step": 1, "tokens": tokens, "entropies": [0.1] * 4, "phases": []}])
    text = shown(dom(write_report([run], tmp_path / "page.html"), tmp_path))
    tokens_shown = re.search(r'<div class="tokens">(.*?)</div>', text, flags=re.DOTALL)
    assert tokens_shown
    plain = re.sub(r"<[^>]+>", "", tokens_shown.group(1)).replace("\r", "")
    assert plain == "a↵\n↵\n⇥\tb∅↵\n日本🙂"
    assert "no phase recorded" in text
    assert 'class="none"' in text  # the token without an entropy


@pytest.mark.parametrize("case", ["empty", "one point", "nan", "constant", "no axis", "huge and tiny"])
def test_odd_data_draws_no_broken_path(tmp_path, case):
    run = make_run(tmp_path / "a", steps=1 if case == "one point" else 12, with_eval=False, completions=False)
    change = {
        "nan": {"reward": float("nan"), "entropy": None},
        "constant": {"reward": 0.0, "grad_norm": -3.0, "entropy": 1e-12},
        "no axis": {"seconds": None, "tokens": None},
        "huge and tiny": {"reward": 3e12, "entropy": 2e-9, "grad_norm": -4e-5},
    }.get(case, {})
    rows = [json.loads(line) | change for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [] if case == "empty" else rows)
    text = shown(dom(write_report([run], tmp_path / "page.html"), tmp_path))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert "No completions were recorded" in text
    if case == "empty":
        assert "No training metrics were logged yet" in text
    if case == "one point":
        assert "<circle" in text
    if case == "nan":
        assert 'aria-label="Reward over step"' not in text
        assert "not a number: reward in 3 of the last 3 logged steps" in text  # said, not drawn
    if case == "no axis":
        assert len(re.findall(r'<input type="radio" name="axis" value="(?:tokens|seconds)" disabled', text)) == 2


def measured(page, tmp_path, width, script, height=900):
    """A number the page computes about its own layout at a given width, read from its title."""
    frame = tmp_path / "frame.html"
    report = f"<iframe id=f src='{page.name}' style='border:0;width:{width}px;height:{height}px'></iframe>"
    read = f"const d = f.contentDocument; document.title = String({script});"
    frame.write_text(
        f"<body style='margin:0'>{report}<script>f.onload = () => setTimeout(() => {{ {read} }}, 900)</script>"
    )
    text = browse(frame, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom").stdout.decode()
    return re.search(r"<title>(.*?)</title>", text).group(1)


@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_sticks_out_and_tick_labels_do_not_overlap(tmp_path, width):
    runs = [make_run(tmp_path / "grpo-baseline", controller=None), make_run(tmp_path / "a-run-with-a-rather-long-name")]
    page = write_report(runs, tmp_path / "page.html")
    assert measured(page, tmp_path, width, "d.documentElement.scrollWidth") == str(width)
    overlaps = (
        "[...d.querySelectorAll('#sections figure .plot svg')].reduce((n, s) => {"
        "const r = [...s.querySelectorAll('text')].map((t) => t.getBoundingClientRect());"
        "return n + r.filter((a, i) => r.some((b, j) => j > i && a.left < b.right && b.left < a.right"
        " && a.top < b.bottom - 3 && b.top < a.bottom - 3)).length; }, 0)"
    )
    assert measured(page, tmp_path, width, overlaps) == "0"


@pytest.fixture(scope="module")
def real_page(tmp_path_factory):
    """The page of a real run of a few steps, evaluated before and after, as `entrl train` leaves it."""
    folder = tmp_path_factory.mktemp("real")
    options = ("max_steps=4", "per_device_train_batch_size=16", "steps_per_generation=1")
    words = [*(f"trainer.{option}" for option in options), f"trainer.output_dir={folder / 'run'}"]
    recipe = load_recipe(
        ROOT / "recipes" / "tiny-reasoner" / "pear.yaml", [*words, "eval.size=8", "eval.samples=2", "eval.k=[1]"]
    )
    return quietly(recipe).report


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_of_a_real_run_answers_the_three_questions(real_page, tmp_path, width, height):
    page = tmp_path / "report.html"
    shutil.copyfile(real_page, page)
    seen = """JSON.stringify({
      wide: d.documentElement.scrollWidth,
      bottom: Math.max(...[...d.querySelectorAll('#verdict svg')].map((s) => s.getBoundingClientRect().bottom)),
      sparks: d.querySelectorAll('#verdict svg path.line').length,
      titles: [...d.querySelectorAll('#verdict figcaption > b')].map((b) => b.textContent.split(',')[0]),
      asked: [...d.querySelectorAll('#verdict .three h3')].map((h) => h.textContent),
      short: [...d.querySelectorAll('#verdict .three > div')].filter((e) => e.textContent.length < 40).length,
      examples: d.querySelectorAll('.examples .said').length,
    })"""
    found = json.loads(html.unescape(measured(page, tmp_path, width, seen, height)))
    assert found["wide"] == width
    assert found["bottom"] <= height
    assert found["sparks"] == 5  # accuracy; length and entropy of thinking and of answers
    assert found["titles"] == ["Accuracy", "Length", "Entropy"]
    assert found["asked"] == ["Did it work?", "At what cost?", "Is it healthy?"]
    assert found["short"] == 0
    assert found["examples"] == 6  # three problems, before and after


def test_screenshot_is_not_blank(tmp_path):
    page, png = write_report([make_run(tmp_path / "kl")], tmp_path / "page.html"), tmp_path / "page.png"
    browse(page, tmp_path / "profile", "--window-size=1400,900", f"--screenshot={png}")
    assert struct.unpack(">II", png.read_bytes()[16:24]) == (1400, 900)
    assert png.stat().st_size > 50_000  # a blank page packs into a few thousand bytes
