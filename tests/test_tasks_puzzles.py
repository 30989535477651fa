"""The puzzles as tasks: rows, sides, instances that run out, and verdicts through the accuracy reward."""

import json
import re

import pytest
from entrl_rewards.accuracy import Accuracy, reward
from puzzle_twins import path_verdict, replayed

from entrl.puzzles import PUZZLES, first_solution_position, graph_of, judge
from entrl.puzzles.lists import last_moves
from entrl.tasks import load_task, task_names
from entrl.tasks.graph_paths import shape_of
from entrl.verify.golds import check_golds
from entrl.verify.judge import KINDS, check, quick_check, read_verifier

SPECS = [
    {"task": "hanoi", "n": [1, 2, 3]},
    {"task": "checkers", "n": [1, 2, 3]},
    {"task": "river", "n": [2, 3], "boat": 2},
    {"task": "river", "n": 6, "boat": 4},
    {"task": "blocks", "n": [2, 3, 5]},
    {"task": "blocks", "n": 4, "goal": "first"},
    *({"task": "graph_path", "lookahead": [2, 4], "mode": mode} for mode in ("symbolic", "worded", "proof")),
    {"task": "graph_path", "lookahead": 5, "branching": 1},
    {"task": "graph_path", "lookahead": 3, "branching": 4},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_are_distinct_split_verified_and_reproduced(spec):
    train, test = (load_task(spec, split=side, size=36, seed=seed) for side, seed in (("train", 0), ("test", 1)))
    assert set(train.column_names) == {"prompt", "answer", "verifier", "problem_id", "level"}
    texts = [row["prompt"][-1]["content"] for rows in (train, test) for row in rows]
    assert len(set(texts)) == 72
    levels = spec.get("n", spec.get("lookahead"))
    levels = levels if isinstance(levels, list) else [levels]
    assert train["level"] == [str(levels[i % len(levels)]) for i in range(36)]
    assert load_task(spec, size=12)["problem_id"] == train["problem_id"][:12]
    assert load_task(spec, size=12, seed=5)["problem_id"] != train["problem_id"][:12]
    assert check_golds(train).bad == []
    assert reward.score(train["answer"], train["answer"], train["verifier"]) == [1.0] * 36
    k = len(levels)
    shifted = [*train["answer"][k:], *train["answer"][:k]]  # plans of the same size in other names
    assert set(reward.score(shifted, train["answer"], train["verifier"])) <= {0.0, 1.0}
    assert sum(reward.score(shifted, train["answer"], train["verifier"])) <= 4


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_answer_is_right_by_the_prompt_alone(spec):
    """The twins read the prompt, and find the gold right."""
    for row in load_task(spec, size=12):
        text, verifier = row["prompt"][-1]["content"], json.loads(row["verifier"])
        if verifier["kind"] == "puzzle":
            assert replayed(verifier["puzzle"], text, last_moves(row["answer"])) == (True, None, None)
        elif verifier["mode"] == "symbolic":
            start, goal = re.search(r"a path from (\d+) to (\d+)", text).groups()
            edges = re.findall(r"\((\d+), (\d+)\)", text)
            assert path_verdict(edges, start, goal, row["answer"]) == (True, 2)
        else:
            start, goal = re.search(r"Given that \w+ is (\w+), we want to prove that \w+ is (\w+)\.", text).groups()
            words = {word for pair in verifier["edges"] for word in pair}
            facts = [[w for w in re.findall(r"\w+", line) if w in words] for line in text.split("\n\n")[0].splitlines()]
            answer = row["answer"]
            if verifier["mode"] == "worded":
                path = judge_by_search(facts, start, goal)
                assert answer == f"Answer: {path[1]}"
            else:
                assert path_verdict(facts, start, goal, answer) == (True, 2)


LINES = [spec for spec in SPECS if spec.get("mode", "symbolic") == "symbolic"]


@pytest.mark.parametrize("spec", LINES, ids=str)
def test_a_line_asks_for_the_same_problem(spec):
    chats, lines = (load_task({**spec, "form": form}, size=24, seed=3) for form in ("chat", "line"))
    assert lines["problem_id"] == chats["problem_id"]
    assert lines["verifier"] == chats["verifier"]
    assert len(set(lines["prompt"])) == 24
    for row, other in zip(lines, chats, strict=True):
        assert re.fullmatch(r"\S+:", row["prompt"])
        assert _asked(json.loads(row["verifier"]).get("puzzle"), row["prompt"]) == json.loads(row["verifier"])
        assert " " not in row["answer"]
        assert row["answer"] == other["answer"].rpartition("= ")[2].replace(" ", "")
    assert reward.score(lines["answer"], lines["answer"], lines["verifier"]) == [1.0] * 24
    cut = [answer[:-1] for answer in lines["answer"]]  # the last bracket is missing
    assert reward.score(cut, lines["answer"], lines["verifier"]) == [0.0] * 24


def _asked(name, line):
    """The verifier, read from the line alone."""
    line = line.removesuffix(":")
    if name == "hanoi":
        n, start, goal, spare = re.fullmatch(r"(\d+),(\w)>(\w),(\w)", line).groups()
        return {"kind": "puzzle", "puzzle": name, "n": int(n), "pegs": [start, spare, goal]}
    if name == "checkers":
        n, left, right, first = re.fullmatch(r"(\d+),(\w+)>(\w+),(\d+)", line).groups()
        return {"kind": "puzzle", "puzzle": name, "n": int(n), "colours": [left, right], "first": int(first)}
    if name == "river":
        boat, *pairs = line.split(",")
        people = [one for pair in pairs for one in pair.split("/")]
        return {"kind": "puzzle", "puzzle": name, "n": len(pairs), "boat": int(boat), "people": people}
    if name == "blocks":
        stacks, goal = line.split(">")
        names, blocks = zip(*(stack.split(":") for stack in stacks.split(",")), strict=True)
        place = ("first", "second", "empty")[names.index(goal)]
        labels = [*blocks[0], *blocks[1], *blocks[2]]
        found = {"kind": "puzzle", "puzzle": name, "n": len(labels), "goal": place}
        return {**found, "labels": labels, "stacks": list(names)}
    edges, asked = line.split("|")
    start, goal = asked.split(">")
    edges = [edge.split(">") for edge in edges.split(",")]
    return {"kind": "graph_path", "mode": "symbolic", "edges": edges, "start": start, "goal": goal}


def test_blocks_with_long_names_fit_in_a_line():
    (row,) = load_task({"task": "blocks", "n": 30, "form": "line"}, size=1)
    stacks = row["prompt"].split(">")[0].split(",")
    assert [len(stack.partition(":")[2]) for stack in stacks] == [30, 30, 0]  # 15 pairs of letters on each


def judge_by_search(facts, start, goal):
    paths = [[start]]
    for path in paths:
        if path[-1] == goal:
            return path
        paths += [[*path, b] for a, b in facts if a == path[-1]]
    raise AssertionError("no proof")


def test_graphs_of_the_same_shape_lie_on_one_side():
    def shapes(side, seed, **options):
        rows = load_task({"task": "graph_path", "lookahead": 2, **options}, split=side, size=150, seed=seed)
        specs = [json.loads(v) for v in rows["verifier"]]
        return [shape_of(graph_of(spec)) for spec in specs]

    assert not set(shapes("train", 0)) & set(shapes("test", 1))
    assert len(set(shapes("train", 0))) < 150 == len(set(shapes("train", 0, distinct_shapes=True)))


def test_a_row_without_a_plan_is_judged_all_the_same():
    """Hanoi of 12 disks is beyond the search; its 4,095 moves are not beyond the verifier."""
    (row,) = load_task({"task": "hanoi", "n": 12}, size=1)
    assert row["answer"] == ""
    assert check_golds(load_task({"task": "hanoi", "n": 12}, size=2)).bad == []
    pegs = json.loads(row["verifier"])["pegs"]

    def moves(n, source, spare, goal):
        if not n:
            return []
        return [*moves(n - 1, source, goal, spare), [n, source, goal], *moves(n - 1, spare, source, goal)]

    plan = str(moves(12, *pegs))
    broken = plan[: plan.rindex("[12, ")] + plan[plan.rindex("[12, ") :].replace("[12, ", "[11, ", 1)
    assert len(plan) > 50_000
    texts = [f"<think>[[1, A</think>Here: {plan}", f"Here: {broken}", ""]
    assert reward.score(texts, [""] * 3, [row["verifier"]] * 3) == [1.0, 0.0, 0.0]
    assert judge(broken, row["verifier"]).index == 2**11 - 1
    assert first_solution_position(texts[0], row["verifier"]) == 1.0


def test_the_answer_part_is_judged_and_not_the_thinking():
    (row,) = load_task({"task": "hanoi", "n": 2}, size=1)
    right, wrong = row["answer"], "moves = [[1, A, B]]"
    texts = [f"<think>{wrong}</think>{right}", f"<think>{right}</think>{wrong}", f"<think>{right}", f"{wrong} {right}"]
    assert reward.score(texts, [""] * 4, [row["verifier"]] * 4) == [1.0, 0.0, 0.0, 1.0]
    answered = reward(completions=texts, answer=[""] * 4, verifier=[row["verifier"]] * 4)
    assert answered == [1.0, 0.0, 0.0, 1.0]


def test_verdicts_need_no_child_process():
    for spec in ({"task": "river"}, {"task": "graph_path"}):
        (row,) = load_task(spec, size=1)
        kind, fields = read_verifier(row["verifier"], 0)
        assert quick_check(kind, row["answer"], row["answer"], fields) == 1.0 == check(kind, row["answer"], "", fields)
        assert kind in KINDS


def test_golds_that_solve_nothing_are_found():
    rows = load_task({"task": "hanoi", "n": 2}, size=3)
    swapped = rows.map(lambda row, i: {"answer": rows[(i + 1) % 3]["answer"]}, with_indices=True)
    found = check_golds(swapped)
    assert len(found.bad) == 3
    assert "the plan in it does not solve the puzzle: " in found.bad[0].why


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        ({"task": "river", "n": 6}, {}, "n = 6 pairs cannot cross in a boat of 3: .* a boat of 3 at most 5"),
        ({"task": "river", "n": [2, 4], "boat": 2}, {}, "n = 4 pairs cannot cross in a boat of 2"),
        (
            {"task": "checkers", "n": 2},
            {"size": 5_000},
            r"'checkers' with n = 2 has 4\d\d\d train instances, asked for",
        ),
        ({"task": "river", "n": 1}, {"size": 900, "split": "test"}, r"ask for at most \d\d\d, or for several sizes"),
        ({"task": "hanoi", "n": 0}, {}, "hanoi: n must be a whole number from 1 to 16, got 0"),
        ({"task": "hanoi", "n": "3"}, {}, "n must be int or a list of int, got '3'"),
        ({"task": "hanoi", "n": []}, {}, r"n must be a number, or different numbers such as \[2, 3, 4\], got \[\]"),
        ({"task": "hanoi", "n": [2, 2]}, {}, "different numbers"),
        ({"task": "hanoi", "size": 3}, {}, "'size' is an argument of load_task"),
        ({"task": "hanoi", "disks": 3}, {}, "task 'hanoi' has no option 'disks'. It takes: n, form, system"),
        ({"task": "blocks", "goal": "third"}, {}, "goal must be one of empty, first, second, got 'third'"),
        ({"task": "graph_path", "mode": "logic"}, {}, "mode must be one of symbolic, worded, proof, got 'logic'"),
        ({"task": "hanoi", "form": "row"}, {}, "form must be one of chat, line, got 'row'"),
        ({"task": "graph_path", "mode": "proof", "form": "line"}, {}, "form line is for mode symbolic, got proof"),
        ({"task": "graph_path", "lookahead": 0}, {}, "lookahead must be a whole number from 1 on, got 0"),
        (
            {"task": "graph_path", "lookahead": 1, "branching": 1},
            {"size": 9},
            "no more train graphs after [012] of the 9",
        ),
        ("hanoi", {"size": None}, "without end; say how many with `size`"),
    ],
)
def test_named_errors(spec, options, match):
    with pytest.raises(ValueError, match=match):
        load_task(spec, **{"size": 4, **options})


@pytest.mark.parametrize(
    ("verifier", "match"),
    [
        ({"kind": "puzzle"}, "row 0: .*puzzle must be one of hanoi, .*load_task writes it"),
        ({"kind": "puzzle", "puzzle": "river", "n": 9}, "row 0: .*river: n = 9 pairs cannot cross"),
        ({"kind": "graph_path", "edges": [[1, 2]]}, "row 0: .*needs edges"),
    ],
)
def test_verifiers_that_are_none(verifier, match):
    with pytest.raises(ValueError, match=match):
        Accuracy().score(["[[1]]"], [""], [json.dumps(verifier)])


def test_a_file_may_not_bring_its_own_puzzle(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        json.dumps({"prompt": "p", "answer": "a", "verifier": {"kind": "puzzle", "puzzle": "hanoi", "n": 1}})
    )
    with pytest.raises(ValueError, match=r"says 'puzzle'; name the task \(hanoi, graph_path, \.\.\.\) instead"):
        load_task(f"jsonl:{file}")


def test_the_tasks_are_listed():
    assert set(PUZZLES) | {"graph_path"} < set(task_names())
