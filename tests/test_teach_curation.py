"""entrl.teach.curation: targets, brackets by integers, what is taken, what the report says, and `entrl curate`."""

import json
import random
import re
from collections import Counter
from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrl.cli.main import main
from entrl.teach.curation import CurationSpec, bracket_of, curate, pass_rates, source_lengths, target_length

# p, L(0), L(1), target: the paper's equation by hand, tokens
BY_HAND = [(0.0, 100, 20, 100.0), (0.5, 100, 20, 60.0), (0.75, 100, 20, 40.0), (1.0, 100, 20, 20.0), (0.25, 8, 8, 8.0)]


def pool(seed: int, *, problems: int = 40, answers: int = 8, sources: tuple[str, ...] = ("a", "b")) -> list[dict]:
    """Answers of problems with every pass rate, lengths that know nothing about it, in a random order."""
    rng = random.Random(seed)
    rows = []
    for n in range(problems):
        right = (0, answers, *range(1, answers))[n // len(sources) % (answers + 1)]
        verdicts = [1] * right + [0] * (answers - right)
        rng.shuffle(verdicts)
        for j, verdict in enumerate(verdicts):
            row = {"problem_id": f"p{n}", "source": sources[n % len(sources)], "length": rng.randint(5, 200)}
            rows.append({**row, "prompt": f"{n}?", "completion": f"{j}.", "correct": verdict})
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize(("p", "length_0", "length_1", "expected"), BY_HAND)
def test_target_by_hand(p, length_0, length_1, expected):
    assert target_length(p, length_0, length_1) == expected


@pytest.mark.parametrize("p", [-0.1, 1.01])
def test_a_pass_rate_is_a_share(p):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        target_length(p, 10, 5)


@given(st.integers(1, 64), st.integers(1, 16), st.data())
def test_brackets_are_the_nearest_step_and_exact(samples, brackets, data):
    right = data.draw(st.integers(0, samples))
    found = bracket_of(Fraction(right, samples), brackets)
    distances = [abs(Fraction(right, samples) - Fraction(b, brackets)) for b in range(brackets + 1)]
    assert distances[found] == min(distances)
    assert distances[found + 1 :] == [] or min(distances[found + 1 :]) > distances[found]  # a tie goes up
    if samples == brackets:
        assert found == right


def test_a_tie_between_brackets_goes_up():
    assert bracket_of(Fraction(1, 16), 8) == 1
    assert bracket_of(Fraction(3, 16), 8) == 2


def test_pass_rates_are_counted_over_verified_answers():
    rows = [
        {"problem_id": "a", "correct": 1},
        {"problem_id": "b", "correct": 0},
        {"problem_id": "a", "correct": 0},
        {"problem_id": "a", "correct": None},
        {"problem_id": "c", "correct": None},
        {"problem_id": "a", "source": "other", "correct": True},  # another source, another problem
        {"problem_id": "d", "pass_rate": 0.25},
    ]
    half = Fraction(1, 2)
    assert pass_rates(rows) == [half, Fraction(0), half, half, None, Fraction(1), Fraction(1, 4)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem_id": "a", "correct": 0.5}], "row 0 has correct 0.5; write 1, 0, or null"),
        ([{"problem_id": "a", "pass_rate": 1.5}], r"row 0 has pass_rate 1.5; it must be in \[0, 1\]"),
        ([{"problem_id": "a", "pass_rate": p} for p in (0.5, 0.75)], "'a' have different pass rates"),
        ([{"problem_id": "a", "pass_rate": 1}, {"problem_id": "a", "correct": 1}], "'a' has rows with and without"),
    ],
)
def test_rows_that_contradict_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        pass_rates(rows)


def chosen_slowly(rows: list[dict], spec: CurationSpec) -> tuple[Counter, dict]:
    """Plain loops from the equation: bracket -> how often each distance is taken. Ties may differ, these may not."""
    groups: dict = {}
    for row in rows:
        groups.setdefault((row["source"], row["problem_id"]), []).append(row)
    rates = {key: Fraction(sum(r["correct"] for r in mine), len(mine)) for key, mine in groups.items()}
    ends = {}
    for source in {r["source"] for r in rows}:
        for end in (0, 1):
            ends[source, end] = median(
                r["length"] for k, m in groups.items() if k[0] == source and rates[k] == end for r in m
            )
    offers: dict = {}
    for key, mine in groups.items():
        target = (1 - rates[key]) * ends[key[0], 0] + rates[key] * ends[key[0], 1]
        distances = sorted(float(abs(r["length"] - float(target)) / float(target)) for r in mine)
        best = min(range(spec.brackets + 1), key=lambda b: (abs(rates[key] - Fraction(b, spec.brackets)), -b))
        offers.setdefault(best, []).extend(distances[: spec.per_problem])
    asked = spec.per_bracket or min(len(o) for o in offers.values())
    return Counter({b: len(sorted(o)[:asked]) for b, o in offers.items()}), {
        b: sorted(o)[:asked] for b, o in offers.items()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("per_bracket", "per_problem", "brackets"), [(None, 1, 8), (5, 2, 8), (9, None, 4), (1000, 1, 2)]
)
def test_the_nearest_are_taken_as_a_slow_twin_takes_them(seed, per_bracket, per_problem, brackets):
    rows = pool(seed)
    spec = CurationSpec(per_bracket=per_bracket, per_problem=per_problem, brackets=brackets, seed=seed)
    found = curate(rows, spec)
    rates, ends = pass_rates(rows), source_lengths(rows, pass_rates(rows))
    mine: dict = {}
    for i in found.indices:
        end = ends[rows[i]["source"]]
        target = target_length(rates[i], end.length_0, end.length_1)
        mine.setdefault(bracket_of(rates[i], brackets), []).append(abs(rows[i]["length"] - target) / target)
    counts, distances = chosen_slowly(rows, spec)
    assert {b: len(d) for b, d in mine.items()} == dict(counts)
    for bracket, expected in distances.items():
        assert sorted(mine[bracket]) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 1, 3]), st.sampled_from([None, 4]))
def test_what_holds_for_every_choice(seed, length_target, per_problem, per_bracket):
    rows = pool(seed % 50, problems=20)
    spec = CurationSpec(seed=seed, length_target=length_target, per_problem=per_problem, per_bracket=per_bracket)
    found = curate(rows, spec)
    assert found == curate(rows, spec)  # the seed decides
    assert found.indices == sorted(set(found.indices))
    rates = pass_rates(rows)
    taken = Counter(bracket_of(rates[i], 8) for i in found.indices)
    lacking = {int(b): n for b, n in found.report["lacking"].items()}
    assert all(taken[b] + lacking.get(b, 0) == found.report["asked"] for b in range(9))
    if per_problem:
        assert max(Counter(rows[i]["problem_id"] for i in found.indices).values()) <= per_problem
    cells = found.report["brackets"]
    assert sum(c["available"] for c in cells) == len(rows)
    assert sum(c["taken"] for c in cells) == found.report["taken"] == len(found.indices)
    assert all(c["taken"] <= c["eligible"] <= c["available"] for c in cells)


def test_solved_problems_are_taken_like_all_others():
    report = curate(pool(0), CurationSpec()).report
    assert {c["bracket"] for c in report["brackets"] if c["taken"]} == set(range(9))
    assert report["lacking"] == {}


def test_the_target_pulls_lengths_and_the_control_leaves_them():
    """Between the ends, lengths know nothing about difficulty in this pool: only the choice can line them up."""
    rows = pool(3, problems=400, sources=("a",))
    ends = {Fraction(0): 150, Fraction(1): 50}
    rows = [{**r, "length": ends.get(p, r["length"])} for r, p in zip(rows, pass_rates(rows), strict=True)]
    gaps = {}
    for name, use in (("adaptive", True), ("control", False)):
        cells = curate(rows, CurationSpec(length_target=use, per_bracket=20)).report["brackets"]
        gaps[name] = [c["median_length_taken"] for c in cells if 0 < c["bracket"] < 8]
    assert gaps["adaptive"] == pytest.approx([150 - 12.5 * eighths for eighths in range(1, 8)], abs=4)
    assert abs(gaps["control"][0] - gaps["control"][-1]) < 60


def test_relative_distance_lets_sources_of_other_lengths_compete():
    """Absolute tokens would take the short source alone: 3 of 30 tokens off is nearer than 10 of 1000 off."""
    ends = [(s, p, n) for s, scale in (("short", 30), ("long", 1000)) for p, n in ((0.0, scale), (1.0, scale))]
    rows = [{"problem_id": f"{s}{p}", "source": s, "pass_rate": p, "length": n} for s, p, n in ends]
    rows += [{"problem_id": "x", "source": "short", "pass_rate": 0.5, "length": 33}]  # a tenth off
    rows += [{"problem_id": "y", "source": "long", "pass_rate": 0.5, "length": 1010}]  # a hundredth off
    assert 5 in curate(rows, CurationSpec(per_bracket=1)).indices


def test_a_tolerance_is_kept_and_the_shortage_told():
    rows = pool(1)
    found = curate(rows, CurationSpec(per_bracket=30, per_problem=None, tolerance=0.2))
    rates, ends = pass_rates(rows), source_lengths(rows, pass_rates(rows))
    for i in found.indices:
        target = target_length(rates[i], *ends[rows[i]["source"]][:2])
        assert abs(rows[i]["length"] - target) <= 0.2 * target + 1e-9
    assert found.report["lacking"]


def test_only_right_answers_on_request():
    """Bracket 0 then has none: its problems have no right answer among these; the others keep their pass rates."""
    rows = pool(1)
    found = curate(rows, CurationSpec(only_correct=True, per_problem=None))
    assert all(rows[i]["correct"] == 1 for i in found.indices)
    assert found.report["lacking"] == {"0": found.report["asked"]}


def test_a_source_without_an_end_stops_or_takes_the_nearest():
    rows = [r for r in pool(2) if r["source"] == "a"]
    rates = pass_rates(rows)
    without = [r for r, p in zip(rows, rates, strict=True) if p != 1]
    with pytest.raises(ValueError, match=r"source 'a' has no problem with pass rate 1 \(it has 0 to 0\.875\)"):
        curate(without, CurationSpec())
    report = curate(without, CurationSpec(fallback="nearest")).report
    best = median(r["length"] for r, p in zip(rows, rates, strict=True) if p == Fraction(7, 8))
    assert report["sources"]["a"]["length_1"] == best
    assert report["sources"]["a"]["substituted"] == ["length_1"]
    curate(without, CurationSpec(length_target=False))  # the control needs no target


def test_answers_nobody_verified_are_left_out_and_counted():
    rows = [*pool(1), {"problem_id": "dark", "source": "a", "length": 9, "correct": None}]
    found = curate(rows, CurationSpec(per_bracket=1000))
    assert found.report["unrated"] == 1
    assert len(rows) - 1 not in found.indices


def test_nothing_to_take_is_said():
    rows = [{"problem_id": "a", "length": 3, "correct": None}]
    with pytest.raises(ValueError, match="none of the 1 answers can be taken"):
        curate(rows, CurationSpec())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brackets": 0}, "brackets must be >= 1"),
        ({"per_bracket": 0}, "per_bracket must be >= 1"),
        ({"per_problem": 0}, "per_problem must be >= 1"),
        ({"tolerance": -0.1}, "tolerance is a share of the target"),
        ({"tolerance": 0.1, "length_target": False}, "no meaning without a length target"),
        ({"fallback": "guess"}, "fallback must be one of error, nearest"),
    ],
)
def test_specs_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CurationSpec(**options)


# --- entrl curate ---------------------------------------------------------------------------------------------------


def written(tmp_path, rows):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_command_writes_the_rows_it_was_given(tmp_path, capsys):
    rows = pool(5)
    file = written(tmp_path, rows)
    assert main(["curate", str(file), "--out", str(tmp_path / "out"), "--per-bracket", "2", "--seed", "7"]) == 0
    taken = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert taken == [rows[i] for i in curate(rows, CurationSpec(per_bracket=2, seed=7)).indices]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["taken"], report["asked"], report["unit"]) == (18, 2, "as in the file")
    shown = capsys.readouterr().out
    assert "18 of 320 answers taken" in shown
    assert "0.125" in shown
    assert main(["curate", str(file), "--out", str(tmp_path / "out"), "--per-bracket", "1", "--vanilla"]) == 0
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 9, "the old choice was kept"


def test_command_counts_lengths_it_is_not_given(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "length"} | {"completion": "1" * row["length"]} for row in pool(5)]
    file = written(tmp_path, rows)
    units = {}
    for words in ([], ["--tokenizer", "tiny-reasoner"]):
        assert main(["curate", str(file), "--out", str(tmp_path / "out"), *words]) == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        units[report["unit"]] = report["sources"]["a"]["length_0"]
    assert units["tokens"] == units["characters"] + 1  # a character is a token there, and the end token counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no answers"),
        ("{", r"answers.jsonl:1 is not JSON"),
        ('{"problem_id": 1, "prompt": ""}', r"answers.jsonl:1 lacks completion"),
        ("[]", r"answers.jsonl:1 lacks problem_id, prompt, completion"),
        (
            '{"problem_id": 1, "prompt": "", "completion": "", "length": 3}\n'
            '{"problem_id": 1, "prompt": "", "completion": ""}',
            "1 of 2 answers have a length",
        ),
    ],
)
def test_command_refuses_a_file_that_is_none(tmp_path, capsys, text, message):
    (tmp_path / "answers.jsonl").write_text(text)
    assert main(["curate", str(tmp_path / "answers.jsonl"), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
