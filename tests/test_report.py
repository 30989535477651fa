"""The report page from run folders, whole and damaged. The folders are SYNTHETIC (synthetic_runs.py)."""

import json
import random
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from entrl.report import read_run, read_runs, write_report
from entrl.report.charts import lay_out
from entrl.report.health import warnings_of
from entrl.report.page import MAX_POINTS, payload, script_json
from entrl.report.read import series
from entrl.report.summary import before_after, duration, run_facts

synthetic = runpy.run_path(str(Path(__file__).with_name("synthetic_runs.py")))
make_run, write_lines, PAYLOAD = synthetic["make_run"], synthetic["write_lines"], synthetic["PAYLOAD"]


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the data script's text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.data, self._in = [], "", "", None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "data":
            self.data += data
        elif self._in not in {"script", "style"}:
            self.text += data


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(path, [row | change(row) for row in rows])


def test_page_is_one_file_and_light(tmp_path):
    runs = [make_run(tmp_path / "grpo", controller=None), make_run(tmp_path / "kl", seed=1)]
    out = write_report(runs, tmp_path / "new" / "page.html")
    page = Page(out)
    assert out.stat().st_size < 400_000
    assert [tag for tag, a in page.tags if tag in {"img", "iframe", "object"} or a.get("src")] == []
    assert [a["href"] for _, a in page.tags if "href" in a] == ["data:,"]  # no favicon request either
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|innerHTML", out.read_text(encoding="utf-8"))
    for text in ("grpo", "kl", "tiny-reasoner", "0123456789", "3 min 41 s", "Greedy accuracy, %"):
        assert text in page.text
    assert [r["name"] for r in json.loads(page.data)["runs"]] == ["grpo", "kl"]


def test_default_place_is_the_first_run(tmp_path):
    assert write_report([make_run(tmp_path / "a", steps=2)]) == tmp_path / "a" / "report.html"


def test_model_output_and_recipe_cannot_become_markup(tmp_path):
    run = make_run(tmp_path / "a", steps=8)
    edit(run / "completions.jsonl", lambda row: {"tokens": [PAYLOAD] * len(row["tokens"]), "prompt": PAYLOAD})
    (run / "recipe.yaml").write_text(f"model: {{path: {json.dumps(PAYLOAD)}}}\n")
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": PAYLOAD, "seed": PAYLOAD}
    (run / "manifest.json").write_text(json.dumps(manifest))
    edit(run / "metrics.jsonl", lambda row: {PAYLOAD: 1.0})
    page = Page(write_report([run], tmp_path / "page.html"))
    assert "img" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("script") == 2
    data = json.loads(page.data)
    assert data["runs"][0]["completions"][0]["tokens"][0] == PAYLOAD  # and nothing is lost on the way
    assert data["words"][PAYLOAD] == [PAYLOAD, ""]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "&lt;", "\u2028", "\ud83d", "↵\n\t\0", "日本 🙂"])
def test_script_json_keeps_every_string(text):
    written = script_json([text])
    assert json.loads(written) == [text]
    assert not set("<>&\u2028") & set(written)


def test_half_written_last_line_and_broken_line(tmp_path):
    run = make_run(tmp_path / "a", steps=5)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = "not json"
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "kind": "tra')
    found = read_run(run)
    assert [row["step"] for row in found.train] == [1, 3, 4, 5]
    assert found.notes == [
        "metrics.jsonl: left out line 2, which is not a JSON object",
        "metrics.jsonl: left out the half-written last line",
    ]


def test_nan_infinity_and_null_are_points_left_out(tmp_path):
    run = make_run(tmp_path / "a", steps=4)
    values = iter([float("nan"), None, float("-inf"), 0.5])
    edit(run / "metrics.jsonl", lambda row: {"reward": next(values)})
    assert "NaN" in (run / "metrics.jsonl").read_text()
    assert series(read_run(run).train, "reward") == ([4], [0.5])
    data = json.loads(Page(write_report([run])).data)
    assert data["runs"][0]["train"]["reward"] == [None, None, None, 0.5]


def test_resumed_run_keeps_the_later_row_and_the_summary_row(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "kind": "train", "reward": 9.0}\n{"step": 3, "kind": "train", "train_loss": 0.25}\n')
    found = read_run(run)
    assert [row["step"] for row in found.train] == [1, 2, 3]
    assert found.train[1]["reward"] == 9.0
    assert found.train[2]["train_loss"] == 0.25
    assert "reward" in found.train[2]
    assert found.notes == ["metrics.jsonl: 1 train rows repeat a step (resumed run); the later row counts"]


@pytest.mark.parametrize("left", [(), ("manifest.json",), ("metrics.jsonl",), ("manifest.json", "recipe.yaml")])
def test_missing_files_are_said(tmp_path, left):
    run = make_run(tmp_path / "a", steps=3)
    for file in list(run.iterdir()):
        if file.name not in left:
            file.unlink()
    if not left:
        with pytest.raises(
            FileNotFoundError, match=r"not a run folder: manifest.json, recipe.yaml, metrics.jsonl missing"
        ):
            read_run(run)
        return
    text = Page(write_report([run])).text
    for name in {"manifest.json", "recipe.yaml", "metrics.jsonl", "eval_before.json"} - set(left):
        assert f"{name} is missing" in text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_run(tmp_path / "nowhere")
    make_run(tmp_path / "runs" / "kl", steps=1)
    with pytest.raises(FileNotFoundError, match="did you mean one of kl inside it"):
        read_run(tmp_path / "runs")
    with pytest.raises(ValueError, match="no run folder given"):
        read_runs([])


def test_equal_names_are_told_apart(tmp_path):
    runs = read_runs([make_run(tmp_path / seed / "kl", steps=1) for seed in ("s0", "s1")])
    assert [run.name for run in runs] == ["s0/kl", "s1/kl"]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_points(tmp_path, steps):
    run = make_run(tmp_path / "a", steps=max(steps, 1), with_eval=False, completions=False)
    if not steps:
        (run / "metrics.jsonl").write_text("")
    data = json.loads(Page(write_report([run])).data)
    assert len(data["runs"][0]["train"]["step"]) == steps
    assert bool(data["words"]) == bool(steps)


def test_different_metric_sets_share_one_layout(tmp_path):
    runs = read_runs([make_run(tmp_path / "grpo", controller=None), make_run(tmp_path / "kl")])
    data = payload(runs)
    titles = {c["title"]: c["metrics"] for s in data["sections"] for c in s["charts"]}
    assert titles["Selected tokens"] == ["kl_cov/selected"]
    assert "kl_cov/selected" not in data["runs"][0]["train"]
    assert titles["Covariance, top shares"] == ["kl_cov/cov_top_0.02%", "kl_cov/cov_top_2%"]
    assert "KL to the reference" not in titles  # nobody logged it, so nobody reads of it


def test_reward_terms_are_drawn_once():
    section = lay_out(["rewards/accuracy/mean", "rewards/pear/mean", "rewards/mine/mean"])[0]
    assert [c["metrics"] for c in section["charts"]] == [
        ["rewards/accuracy/mean"],
        ["rewards/pear/mean"],
        ["rewards/mine/mean"],
    ]


def test_long_runs_are_thinned_and_keep_the_last_step(tmp_path):
    run = make_run(tmp_path / "a", steps=2 * MAX_POINTS + 7, completions=False)
    data = payload(read_runs([run]))["runs"][0]
    assert len(data["train"]["step"]) <= MAX_POINTS
    assert data["train"]["step"][-1] == 2 * MAX_POINTS + 7
    assert data["thinned"]


def test_many_completions_stay_within_the_budget(tmp_path):
    run = make_run(tmp_path / "a", steps=4)
    big = [synthetic["completion"](step, 0, random.Random(step)) for step in range(30)]
    for row in big:
        row.update(tokens=["word "] * 9000, entropies=[0.123] * 9000, phases=["think"] * 9000)
    write_lines(run / "completions.jsonl", big)
    kept = payload(read_runs([run]))["runs"][0]
    assert kept["completions_left_out"] > 0
    assert [kept["completions"][0]["step"], kept["completions"][-1]["step"]] == [0, 29]
    assert write_report([run]).stat().st_size < 6_000_000


def test_completion_with_short_or_unknown_fields(tmp_path):
    run = make_run(tmp_path / "a", steps=4)
    write_lines(
        run / "completions.jsonl",
        [
            {"step": 1, "tokens": ["a", "\n", "b"], "entropies": [0.5, None], "phases": ["think", "odd"]},
            {"step": 1, "tokens": []},
            {"step": 2, "tokens": ["x"], "prompt": [{"role": "user", "content": "hi"}]},
        ],
    )
    first, second = payload(read_runs([run]))["runs"][0]["completions"]
    assert first["entropies"] == [0.5, None, None]
    assert first["phases"] == [[0, 1], [-1, 2]]
    assert second["prompt"] == "user: hi"


def test_before_after_table(tmp_path):
    rows = {
        r.label: r.cells for r in before_after(read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=3)]))
    }
    greedy = rows["Greedy accuracy, %"]
    assert len(greedy) == 2
    assert greedy[0].better is True
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\]", greedy[0].change)
    assert greedy[0].note == "paired over 200 problems"
    assert rows["Length, greedy, tokens"][0].better is None  # longer is neither
    assert rows["pass@8, %"][0].note.startswith("no interval")


def test_a_change_is_of_the_numbers_beside_it(tmp_path):
    """Entropy is a mean over tokens: short completions with little of it pull the mean over problems elsewhere."""
    run = make_run(tmp_path / "a")
    for when, entropy in (("before", 0.125), ("after", 0.25)):
        file = run / f"eval_{when}.json"
        found = json.loads(file.read_text())
        problems = [p | {"think_entropy": 0.3 if when == "before" else 0.2} for p in found["problems"]]
        file.write_text(json.dumps(found | {"entropy": {"think": entropy}, "problems": problems}))
    cell = next(r for r in before_after(read_runs([run])) if r.label == "Entropy, thinking, nats").cells[0]
    assert cell[:4] == ("0.1250", "0.2500", "+0.1250", None)
    assert cell.note == "a mean over tokens; by problem −0.1000 [−0.1000, −0.1000]"


def test_before_after_of_different_problems_is_not_paired(tmp_path):
    run = make_run(tmp_path / "a")
    after = json.loads((run / "eval_after.json").read_text()) | {"seed": 8}
    (run / "eval_after.json").write_text(json.dumps(after))
    cell = next(r for r in before_after(read_runs([run])) if r.label == "Greedy accuracy, %").cells[0]
    assert "[" not in cell.change
    assert cell.better is None
    assert "different seed cannot be paired: 7 and 8" in cell.note
    assert Page(write_report([run])).text.count("* a: not paired: evaluations with different seed") == 1


def test_no_evaluation_at_all(tmp_path):
    run = make_run(tmp_path / "a", steps=3, with_eval=False)
    assert before_after(read_runs([run])) == []
    assert "No evaluation was recorded" in Page(write_report([run])).text


def test_ages_of_tokens_are_a_table_where_a_run_has_them(tmp_path):
    plain = make_run(tmp_path / "plain", steps=3)
    asynchronous = make_run(tmp_path / "asynchronous", steps=3)
    rows = [json.loads(line) for line in (asynchronous / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for age, tokens, entropy in ((0, 100.0, 0.5), (2, 300.0, 0.25)):
            row[f"staleness/{age}/tokens_total"] = tokens
            row[f"staleness/{age}/sampler_entropy"] = entropy
    (asynchronous / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = Page(write_report([plain, asynchronous], tmp_path / "both.html")).text
    after = text[text.index("Entropy and gap by age of the tokens") :]
    assert after.index("asynchronous") < after.index("75%")
    assert "0.25" in after
    assert "by age of the tokens" not in Page(write_report([plain])).text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"completions/clipped_ratio": 0.11}, "11% of completions truncated in the last rollouts (over 10%)"),
        ({"accuracy/verify_timeout": 2.0}, "verifier: timeouts in 40 of 40 logged steps"),
        ({"kl_cov/selected": 0}, "kl_cov selected 0 tokens in 40 of 40 logged steps"),
        ({"kl_cov/selected": None}, "the recipe asks for kl_cov, but no selected tokens were ever logged"),
        ({"groups/without_spread": 0.9}, "90% of groups have equal rewards"),
        ({"groups/without_spread": 1.0}, "in 100% of the last 10 rollouts every group had equal rewards"),
        ({"pear/missing_close": 0.2}, "20% of completions never close their thinking in the last rollouts (over 10%)"),
        ({"loss": None}, "not a number: loss in 3 of the last 3 logged steps"),
    ],
)
def test_warnings(tmp_path, change, expected):
    run = make_run(tmp_path / "a", steps=40)
    assert warnings_of(read_run(run)) == []
    edit(run / "metrics.jsonl", lambda row: change)
    assert len(found := warnings_of(read_run(run))) == 1
    assert expected in found[0]


@pytest.mark.parametrize(("share", "warned"), [(0.29, True), (0.31, False)])
def test_entropy_collapse_is_below_thirty_percent_of_the_start(tmp_path, share, warned):
    run = make_run(tmp_path / "a", steps=40)
    edit(run / "metrics.jsonl", lambda row: {"policy_entropy/token_mean": 1.0 if row["step"] <= 5 else share})
    assert any("entropy fell to 29% of its start" in w for w in warnings_of(read_run(run))) == warned


def test_unfinished_run_is_said(tmp_path):
    run = read_run(make_run(tmp_path / "a", steps=5, status="running"))
    assert warnings_of(run) == ["status is running: the run did not finish"]
    assert run_facts(run)["Wall time"] == "9 s (training, so far)"


def test_failed_run_says_why(tmp_path):
    run = make_run(tmp_path / "a", steps=5, status="failed")
    manifest = json.loads((run / "manifest.json").read_text()) | {"error": "ValueError: rewards of length 3"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "it stopped with ValueError: rewards of length 3" in warnings_of(read_run(run))


def test_unverified_answers_are_said(tmp_path):
    run = make_run(tmp_path / "a", steps=5)
    after = json.loads((run / "eval_after.json").read_text()) | {"unverified": 3}
    (run / "eval_after.json").write_text(json.dumps(after))
    assert warnings_of(read_run(run)) == ["verifier: 3 answers unverified in the evaluation after training"]


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (221, "3 min 41 s"), (7265, "2 h 01 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
