"""Tasks: disjoint splits, reproducible rows, column mapping of the hub's benchmarks, errors that name the cure."""

import json
import os
import re
import subprocess
import sys

import pytest
import reasoning_gym
from entrl_rewards.accuracy import reward

from entrl.tasks import load_task
from entrl.tasks.hub import BENCHMARKS, map_rows

COLUMNS = {"prompt", "answer", "verifier", "problem_id", "level"}


def test_sums_are_compact_right_and_verified():
    rows = load_task("sums", split="train", size=300, seed=0)
    assert set(rows.column_names) == COLUMNS
    for row in rows:
        assert re.fullmatch(r"\d\d([+-]\d\d){2,3}=", row["prompt"])
        assert eval(row["prompt"].rstrip("=")) == int(row["answer"])
        assert row["level"] == str(len(re.findall(r"\d+", row["prompt"])))
    assert set(rows["level"]) == {"3", "4"}
    assert reward.score(rows["answer"], rows["answer"], rows["verifier"]) == [1.0] * 300


def test_sums_deal_out_tiers_evenly():
    """Every prefix holds each tier as often as the others up to one, and tiers begin with different numbers."""
    rows = load_task({"task": "sums", "terms": [2, 4, 6]}, size=100, seed=3)
    assert rows["level"] == [str((2, 4, 6)[i % 3]) for i in range(100)]
    assert all(len(re.findall(r"\d+", p)) == int(n) for p, n in zip(rows["prompt"], rows["level"], strict=True))
    assert len(set(rows["problem_id"])) == 100
    assert load_task({"task": "sums", "terms": [2, 4, 6]}, size=40, seed=3)["prompt"] == rows["prompt"][:40]
    firsts = [[p[:2] for p, n in zip(rows["prompt"], rows["level"], strict=True) if n == tier] for tier in "246"]
    shared = sum(a == b == c for a, b, c in zip(*firsts, strict=False))
    assert shared <= 2  # 33 problems a tier, one in 8100 would agree by chance


def test_sums_without_tiers_are_as_before():
    """The shipped model and every study are built on these."""
    plain = load_task("sums", size=20, seed=0)
    assert load_task({"task": "sums", "min_terms": 3, "max_terms": 4}, size=20, seed=0)["prompt"] == plain["prompt"]
    assert set(plain["level"]) == {"3", "4"}


def test_sums_take_config():
    rows = load_task({"task": "sums", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, size=20)
    assert all(re.fullmatch(r"\d[+-]\d=", prompt) for prompt in rows["prompt"])


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (1, 0)])
def test_train_and_test_share_no_problem(seeds):
    """For every pair of seeds; reasoning-gym itself would give the same items to neighbouring seeds."""
    train = load_task("sums", split="train", size=2000, seed=seeds[0])
    test = load_task("sums", split="test", size=300, seed=seeds[1])
    assert len(set(train["prompt"])) == 2000
    assert len(set(test["prompt"])) == 300
    assert not set(train["prompt"]) & set(test["prompt"])


def test_a_space_split_whole_is_disjoint_and_complete():
    """All 200 sums of two digits: both sides together hold each once, and asking for more says so."""
    spec = {"task": "sums", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    sides = {}
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=f"no more {split} problems after (\\d+) of the 500 asked for") as info:
            load_task(spec, split=split, size=500)
        left = int(re.search(r"ask for at most (\d+)", str(info.value)).group(1))
        sides[split] = set(load_task(spec, split=split, size=left)["prompt"])
    assert len(sides["train"]) + len(sides["test"]) == 200
    assert not sides["train"] & sides["test"]


def test_seeds_reproduce_prefixes_and_differ():
    first = load_task("sums", split="train", size=50, seed=3)
    assert load_task("sums", split="train", size=20, seed=3)["prompt"] == first["prompt"][:20]
    other = load_task("sums", split="train", size=50, seed=4)
    assert len(set(first["prompt"]) & set(other["prompt"])) < 5


def test_reasoning_gym_by_name():
    rows = load_task({"task": "reasoning_gym:countdown", "max_numbers": 4}, split="test", size=5, seed=0)
    assert rows[0]["prompt"][0]["role"] == "user"
    assert "<answer>" in rows[0]["prompt"][0]["content"]
    assert len(set(rows["problem_id"])) == 5
    assert json.loads(rows[0]["verifier"])["config"] == {"max_numbers": 4}


def test_an_item_json_cannot_hold_is_generated_again():
    """knights_knaves keeps its statements as tuples: the verifier stores where it was generated."""
    rows = load_task("reasoning_gym:knights_knaves", split="train", size=3, seed=1)
    for row in rows:
        spec = json.loads(row["verifier"])
        assert "index" in spec
        again = reasoning_gym.create_dataset(spec["dataset"], **spec["config"])[spec["index"]]
        assert again["answer"] == row["answer"]
        assert again["question"] in row["prompt"][0]["content"]


HUB = {
    "gsm8k": {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,234"},
    "dapo-math": {
        "prompt": [{"role": "user", "content": "Solve. Answer: $Answer"}],
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": {"index": "x"},
    },
    "math-500": {"problem": "Find x", "solution": "..", "answer": r"\frac{1}{2}", "level": 3, "subject": "Algebra"},
    "aime24": {"id": 60, "problem": "Find m+n", "answer": "025", "year": "2024"},
    "aime25": {"id": "0", "problem": "Find m+n", "answer": "70"},
    "gpqa-diamond": {
        "Question": "Which? ",
        "Correct Answer": "right\n",
        "Incorrect Answer 1": "w1",
        "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w3",
        "High-level domain": "Physics",
    },
}
GOLD = {"gsm8k": "1234", "dapo-math": "34", "math-500": r"\frac{1}{2}", "aime24": "25", "aime25": "70"}


def test_every_benchmark_has_a_row_here():
    assert set(HUB) == set(BENCHMARKS)


@pytest.mark.parametrize("name", list(HUB))
def test_benchmark_columns(name):
    (row,) = map_rows(name, [HUB[name], HUB[name]], size=None, seed=0)  # repeats are dropped
    assert set(row) == COLUMNS
    assert row["prompt"][-1]["role"] == "user"
    gold = row["answer"]
    assert gold == GOLD.get(name, gold)
    assert reward.score([f"<think>so</think>\\boxed{{{gold}}}"], [gold], [row["verifier"]]) == [1.0]
    assert reward.score([r"\boxed{Z}"], [gold], [row["verifier"]]) == [0.0]


def test_gpqa_options_are_shuffled_by_the_seed_and_the_letter_follows():
    letters = set()
    for seed in range(20):
        (row,) = map_rows("gpqa-diamond", [HUB["gpqa-diamond"]], size=None, seed=seed)
        assert f"{row['answer']}) right" in row["prompt"][0]["content"]
        letters.add(row["answer"])
    assert letters == set("ABCD")
    again = [map_rows("gpqa-diamond", [HUB["gpqa-diamond"]], size=None, seed=1)[0] for _ in range(2)]
    assert again[0] == again[1]


def test_a_sample_of_a_benchmark_is_seeded():
    records = [{**HUB["aime25"], "problem": f"Find {i}"} for i in range(30)]
    one, two, three = (map_rows("aime25", records, size=5, seed=s) for s in (0, 0, 1))
    assert one == two
    assert one != three
    assert len(one) == 5


def test_gsm8k_without_the_mark():
    with pytest.raises(ValueError, match="no '####'"):
        map_rows("gsm8k", [{"question": "q", "answer": "no mark"}], size=None, seed=0)


def test_an_unreachable_hub_is_named():
    code = "from entrl.tasks import load_task; load_task('gsm8k', split='test', size=2)"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1
    assert "ConnectionError: task 'gsm8k' needs openai/gsm8k of the Hugging Face hub" in done.stderr
    assert "jsonl:PATH" in done.stderr


@pytest.fixture
def jsonl(tmp_path):
    def write(*records):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        return f"jsonl:{path}"

    return write


def test_jsonl(jsonl):
    rows = load_task(
        jsonl(
            {"prompt": "2+2=", "answer": 4},
            "",
            {"prompt": "say a", "answer": "a", "verifier": {"kind": "exact"}, "problem_id": "b", "level": 2},
        )
    )
    assert rows["answer"] == ["4", "a"]
    assert [json.loads(v)["kind"] for v in rows["verifier"]] == ["math", "exact"]
    assert rows["problem_id"] == ["line-1", "b"]
    assert rows["level"] == ["", "2"]


def test_jsonl_renames_samples_and_holds_out(jsonl):
    name = jsonl(*({"q": f"{i}+1=", "gold": i + 1} for i in range(100)))
    spec = {"task": name, "prompt_column": "q", "answer_column": "gold"}
    assert load_task(spec)["prompt"] == [f"{i}+1=" for i in range(100)]
    assert load_task(spec, size=7, seed=1)["prompt"] == load_task(spec, size=7, seed=1)["prompt"]
    train, test = (set(load_task({**spec, "test_every": 5}, split=s)["prompt"]) for s in ("train", "test"))
    assert len(train) + len(test) == 100
    assert not train & test
    assert 5 < len(test) < 40


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([{"prompt": "p"}], r"mine.jsonl:1 has no column 'answer'; it has \['prompt'\]"),
        ([{"prompt": "p", "answer": "1"}, "{oops"], r"mine.jsonl:2 is not JSON"),
        (["[1]"], "must be a JSON object, got list"),
        ([""], "yields no rows"),
        ([{"prompt": "p", "answer": "1", "problem_id": "x"}] * 2, "problem_id 'x' occurs more than once"),
    ],
)
def test_jsonl_errors(jsonl, records, match):
    with pytest.raises(ValueError, match=match):
        load_task(jsonl(*records))


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        ("sumz", {}, "unknown task 'sumz'. Did you mean 'sums'"),
        (
            "what",
            {},
            "unknown task 'what'. Known: sums, additions, functions, hanoi, .*, graph_path, countdown, sudoku",
        ),
        ("reasoning_gym:", {}, "unknown task 'reasoning_gym:'"),
        ("reasoning_gym:chain_sun", {}, "no dataset 'chain_sun'. Did you mean 'chain_sum'"),
        ({"task": "reasoning_gym:chain_sum", "min_term": 2}, {}, "no option 'min_term'. Did you mean 'min_terms'"),
        ({"task": "reasoning_gym:chain_sum", "min_terms": 9}, {}, "refuses .*max_terms must be >= min_terms"),
        ({"task": "sums", "term": 3}, {}, "task 'sums' has no option 'term'. Did you mean 'terms'"),
        ({"task": "sums", "terms": [2, 4], "max_terms": 4}, {}, "exclude each other; name the tiers or a range"),
        ({"task": "sums", "terms": 3}, {}, "terms must be a list of int or null, got 3"),
        ({"task": "sums", "terms": []}, {}, "must be a list of numbers of terms"),
        ({"task": "sums", "terms": [1, 2]}, {}, "different integers from 2 on"),
        ({"task": "sums", "terms": [2, 2]}, {}, "different integers from 2 on"),
        ({"task": "sums", "seed": 3}, {}, "'seed' is an argument of load_task"),
        ({"name": "sums"}, {}, "needs the key `task`"),
        ("sums", {"size": None}, "without end; say how many with `size`"),
        ("sums", {"size": 0}, "size must be >= 1"),
        ("sums", {"split": "dev"}, "split must be 'train' or 'test'"),
        ("aime24", {"split": "train"}, "aime24 has no train split"),
    ],
)
def test_named_errors(spec, options, match):
    with pytest.raises(ValueError, match=match):
        load_task(spec, **{"size": 2, **options})


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"task file 'nowhere.jsonl' does not exist"):
        load_task("jsonl:nowhere.jsonl")
