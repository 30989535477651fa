"""entrl.teach.cold_start: what its file may say, what is kept, where answers come from, and small starts made for
real."""

import io
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_model import saved_model, tiny_model

from entrl.cli.main import main
from entrl.models.load import find_adapter, load_policy, load_weights
from entrl.runs.recipe import load_recipe
from entrl.settings.yaml import parse_yaml
from entrl.tasks.rechecks import recheck_count
from entrl.teach.cold_start import cold_start, is_made, load_cold_start
from entrl.teach.cold_start.answers import (
    lesson_problems,
    lesson_rows,
    measured_rates,
    sample_problems,
    sample_rows,
    taught_traces,
    trace_summary,
)
from entrl.teach.cold_start.spec import ColdStart, LessonsSpec, SampleSpec, SamplingSpec
from entrl.teach.curation import pass_rates
from entrl.traces import DropSpec, TraceSpec
from entrl_lab.nursery.tokenizer import character_tokenizer

RECIPES = Path(__file__).parents[1] / "recipes" / "ares"
QUIET = Console(quiet=True)
START = """
model: {{path: {model}}}
answers: {{lessons: {{terms: [2, 3], problems: 12, think: 1.0, slip: 0.0}}}}
sft: {{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.01, bf16: false, use_cpu: true,
  gradient_checkpointing: false}}
threads: 1
out: {out}
"""


@pytest.fixture
def file(tmp_path):
    saved_model(tmp_path / "base")
    (tmp_path / "start.yaml").write_text(START.format(model=tmp_path / "base", out=tmp_path / "start"))
    return tmp_path / "start.yaml"


def load(file, *words):
    return load_cold_start(file, words)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cold-start-vanilla", "cold-start"])
def test_shipped_files_are_read_and_read_back(name):
    start = load(RECIPES / f"{name}.yaml")
    again = ColdStart.make(parse_yaml(start.to_yaml()), name=name, base=RECIPES)
    assert again == start
    assert again.config_hash() == start.config_hash()


def test_the_shipped_starts_differ_in_answers_and_their_choice_alone():
    """Whatever a comparison of the two finds must come from the answers."""
    vanilla, adaptive = (load(RECIPES / f"{name}.yaml") for name in ("cold-start-vanilla", "cold-start"))
    assert vanilla.model == adaptive.model
    order = "train_sampling_strategy"  # the adaptive one repeats its answers, so it draws their order anew
    assert {k: v for k, v in vanilla.sft.items() if k != order} == dict(adaptive.sft)
    assert adaptive.answers.pass_rate is not None
    assert adaptive.answers.pass_rate.policy == str(vanilla.model_dir)


def test_the_shipped_run_starts_where_the_cold_starts_end():
    recipe, adaptive = load_recipe(RECIPES / "aepo.yaml"), load(RECIPES / "cold-start.yaml")
    assert recipe.model.path == str(adaptive.model_dir)
    assert adaptive.answers.lessons is not None
    assert recipe.data.args["terms"] == adaptive.answers.lessons.terms
    words = (Path(__file__).parents[1] / "launch" / "ares.sh").read_text()
    order = [words.index(f"recipes/ares/{name}.yaml") for name in ("cold-start-vanilla", "cold-start", "aepo")]
    assert order == sorted(order)  # the vanilla policy measures the adaptive one's pass rates


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("modle.path=x", "unknown key 'modle' in cold start. Did you mean 'model'"),
        ("sft.lerning_rate=1", "unknown key 'lerning_rate' in sft. Did you mean 'learning_rate'"),
        ("sft.output_dir=x", "sft.output_dir is set elsewhere: set `out`"),
        ("sft.max_steps=many", "sft.max_steps must be int"),
        ("answers.lessons.thnk=1", "unknown key 'thnk' in answers.lessons. Did you mean 'think'"),
        ("answers.lessons.think=2", "think is a probability"),
        ("answers.lessons.checks=[]", "checks is empty"),
        ("answers.lessons.checks=[0.1, 1.2]", "check is a probability"),
        ('answers.lessons={"trace": {"form": "search"}}', "trace is for the tasks countdown, sudoku, .*, got none"),
        ('answers.lessons={"task": "sudoku"}', "answers.lessons of sudoku are search traces; say which"),
        ("answers.lessons.trace.frm=search", "unknown key 'frm' in answers.lessons.trace. Did you mean 'form'"),
        ("answers.lessons.trace.k=1", "answers.lessons.trace needs a 'form'"),
        ('answers.lessons.trace={"form": "dfs"}', "trace.form must be one of search, detours, solution"),
        ('answers.lessons.trace={"form": "search", "drop": {"level": 1}}', "unknown key 'level' in .*trace.drop"),
        ('answers.lessons.trace={"form": "search", "noise": {}}', "answers.lessons.trace.noise needs a 'kind'"),
        ("answers.lessons.problems=0", "answers.lessons.problems must be at least 1"),
        ("answers.file=x.jsonl", r"exactly one of file, sample and lessons, got \['file', 'lessons'\]"),
        ("answers={}", "exactly one of file, sample and lessons, got none"),
        ('answers={"file": "x", "pass_rate": {}}', "write a pass_rate into each row of the file"),
        ("answers.pass_rate.samples=0", "SamplingSpec.samples must be at least 1"),
        ("answers.pass_rate.temperature=0", "greedy answers have no pass rate"),
        ("answers.pass_rate.top_p=0", r"top_p must be in \(0, 1\]"),
        ('answers={"sample": {"size": 3}}', "answers.sample needs a 'task'"),
        ("curation.fallback=guess", "curation.fallback must be one of error, nearest"),
        ("threads=0", "threads must be at least 1"),
        ("out=3", "out must be str"),
        ("out=", "has no 'out'"),
    ],
)
def test_files_are_strict(tmp_path, word, message):
    (tmp_path / "start.yaml").write_text(START.format(model="tiny-reasoner", out=tmp_path / "start"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "start.yaml", word)


def test_the_hash_is_of_what_decides_the_weights(file, tmp_path):
    plain = load(file).config_hash()
    assert load(file, f"out={tmp_path / 'elsewhere'}").config_hash() == plain
    assert load(file, "curation=null").config_hash() == plain  # what was not there is as good as null
    others = ("sft.learning_rate=0.02", "answers.lessons.seed=1", "threads=2", "curation={}")
    assert len({plain, *(load(file, word).config_hash() for word in others)}) == len(others) + 1


def test_the_hash_sees_the_content_of_a_file_of_answers(file, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    before = load(file, 'answers={"file": "answers.jsonl"}').config_hash()
    answers.write_text("[]\n")
    assert load(file, 'answers={"file": "answers.jsonl"}').config_hash() != before


# --- where answers come from --------------------------------------------------------------------------------------


def test_lessons_are_checked_by_the_task_and_counted_in_tokens():
    spec = LessonsSpec(terms=[2, 4], problems=60, per_problem=2, think=1.0, slip=0.3, checks=[0.0, 1.0])
    tokenizer = character_tokenizer()
    rows = lesson_rows(spec, lesson_problems(spec), tokenizer)
    assert [row["level"] for row in rows[:4]] == ["2", "2", "4", "4"]
    assert [row["problem_id"] for row in rows[::2]] == [row["problem_id"] for row in rows[1::2]]
    for row in rows:
        right = eval(row["prompt"].rstrip("="))
        assert row["correct"] == int(row["completion"].rpartition("</think>")[2] == str(right))
        assert row["length"] == len(tokenizer(row["completion"])["input_ids"]) + 1
    unchecked, checked = rows[::2], rows[1::2]
    assert all(row["correct"] for row in checked)  # a step done twice repairs its slip
    assert not all(row["correct"] for row in unchecked)
    assert not any("?" in row["completion"] for row in unchecked)


CHAIN_SUM = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "instruction": "", "system": "Think, then answer."}


def test_lessons_for_a_sum_asked_in_a_sentence():
    spec = LessonsSpec(task="reasoning_gym:chain_sum", args=CHAIN_SUM, problems=20, think=1.0, slip=0.0, check=0.0)
    rows = lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    assert {row["source"] for row in rows} == {"reasoning_gym:chain_sum"}
    for row in rows:
        system, question = row["prompt"]
        assert system == {"role": "system", "content": "Think, then answer."}
        a, b, c = (int(n) for n in re.findall(r"[+-]?\d+", question["content"].rpartition(":")[2].replace(" ", "")))
        assert row["completion"] == f"<think>{a}{b:+d}={a + b}, {a + b}{c:+d}={a + b + c}</think>{a + b + c}"
        assert row["correct"] == 1


def test_lessons_that_overthink():
    asked = {"terms": 3, "system": "Think, then answer."}
    spec = LessonsSpec(task="additions", args=asked, problems=20, per_problem=5, rechecks=True)
    rows = lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    assert {row["correct"] for row in rows} == {1}
    assert {len(row["prompt"]) for row in rows} == {2}  # system and question
    assert {recheck_count(row["completion"]) for row in rows} == {0, 1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match=r"rechecks replaces the mixture"):
        LessonsSpec(task="additions", rechecks=True, slip=0.1)


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("countdown", {}),
        ("countdown", {"system": "Think, then answer."}),
        ("sudoku", {}),
        ("reasoning_gym:countdown", {"min_numbers": 3, "max_numbers": 3, "min_target": 5, "max_value": 9}),
        ("reasoning_gym:mini_sudoku", {"instruction": ""}),
    ],
)
def test_lessons_that_search(task, args):
    spec = LessonsSpec(task=task, args=args, problems=6, per_problem=2, trace=TraceSpec(form="detours", k=3))
    rows = lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    assert {row["correct"] for row in rows} == {1}
    assert [row["problem_id"] for row in rows[::2]] == [row["problem_id"] for row in rows[1::2]]
    twice = [(one["completion"], other["completion"]) for one, other in zip(rows[::2], rows[1::2], strict=True)]
    assert any(one != other for one, other in twice)  # each lesson of a problem is drawn anew
    assert any(row["trace"]["backtracks"] for row in rows)
    for row in rows:
        trace = row["completion"].removeprefix("<think>").partition("</think>")[0]
        assert row["trace"]["backtracks"] == trace.count("<")
        assert row["trace"]["wrong_branches"] <= 3
        in_tags = task == "reasoning_gym:countdown"  # the instruction asks for them
        assert row["completion"].endswith("</answer>") == in_tags
        assert "<|unk|>" not in character_tokenizer().decode(character_tokenizer()(row["completion"])["input_ids"])


def test_the_teachers_rate_is_said():
    """A teacher who looks at one step a node misses solutions; its lessons say none and count as wrong."""
    spec = LessonsSpec(task="countdown", problems=40, trace=TraceSpec(form="search", width=2))
    rows = lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    right = sum(row["correct"] for row in rows)
    assert 0 < right < 40
    assert all(row["correct"] == (not row["completion"].endswith("</think>none")) for row in rows)
    assert trace_summary(rows, spec.trace) == f"teacher: {right} of 40 lessons end in a right answer"
    assert taught_traces(rows, spec.trace) == rows
    kept = taught_traces(rows, TraceSpec(form="search", width=2, keep_unsolved=False))
    assert kept == [row for row in rows if row["correct"]]
    unsolved = [row for row in rows if not row["correct"]][:2]
    with pytest.raises(ValueError, match=r"solved none of 2 lessons, and trace\.keep_unsolved is false; raise"):
        taught_traces(unsolved, TraceSpec(form="search", width=2, keep_unsolved=False))
    many = LessonsSpec(task="sudoku", problems=10, trace=TraceSpec(form="detours", k=8))
    rows = lesson_rows(many, lesson_problems(many), character_tokenizer())
    fewer = sum(row["trace"]["wrong_branches"] < 8 for row in rows)
    assert fewer
    told = f"10 of 10 lessons end in a right answer; {fewer} have fewer than k=8 wrong branches"
    assert told in trace_summary(rows, many.trace)


def test_lessons_without_the_trace():
    spec = LessonsSpec(task="countdown", problems=4, trace=TraceSpec(form="search", drop=DropSpec(mode="fast")))
    rows = lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    assert all(row["completion"].startswith("<think></think>") and row["correct"] for row in rows)
    assert {row["trace"]["level"] for row in rows} == {4}


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("blocks", {"n": [2, 3], "form": "line"}),
        ("graph_path", {"lookahead": 2}),
        ("countdown", {}),
        ("reasoning_gym:countdown", {"min_numbers": 3, "max_numbers": 3}),
    ],
)
def test_lessons_of_the_answer_alone(task, args):
    spec = LessonsSpec(task=task, args=args, problems=6, per_problem=2, gold=True)
    problems = lesson_problems(spec)
    rows = lesson_rows(spec, problems, character_tokenizer())
    assert {row["correct"] for row in rows} == {1}
    golds = [row["completion"].removeprefix("<think></think>") for row in rows]
    tagged = task.startswith("reasoning_gym")
    assert golds[::2] == golds[1::2] == [f"<answer>{a}</answer>" if tagged else a for a in problems["answer"]]
    assert [row["problem_id"] for row in rows[::2]] == problems["problem_id"]


@pytest.mark.parametrize("form", ["line", "chat"])
def test_right_answers_with_slips_in_them(form):
    fields = {"task": "blocks", "args": {"n": [2, 4], "form": form}, "problems": 300, "gold": True}
    clean, slipped, other = (
        lesson_rows(spec, lesson_problems(spec), character_tokenizer())
        for spec in (LessonsSpec(**fields, **more) for more in ({}, {"slips": 0.2}, {"slips": 0.2, "per_problem": 2}))
    )
    assert [row["problem_id"] for row in clean] == [row["problem_id"] for row in slipped]
    assert all(s["correct"] for c, s in zip(clean, slipped, strict=True) if c["completion"] == s["completion"])
    assert not any(s["correct"] for c, s in zip(clean, slipped, strict=True) if c["completion"] != s["completion"])
    for level, moves in (("2", 2), ("4", 4)):
        right = [row["correct"] for row in slipped if row["level"] == level]
        assert sum(right) / len(right) == pytest.approx(0.8**moves, abs=0.12)
    assert other[::2] == slipped  # a second lesson of a problem has slips of its own
    assert [row["completion"] for row in other[1::2]] != [row["completion"] for row in slipped]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slips": 1.0}, r"answers\.lessons\.slips is a share of the moves and must be in \[0, 1\), got 1\.0"),
        ({"slips": -0.1}, r"must be in \[0, 1\), got -0\.1"),
        (
            {"slips": 0.1, "gold": False},
            r"slips is for gold: true and the tasks hanoi, .*, got task blocks, gold False",
        ),
        ({"slips": 0.1, "task": "graph_path"}, r"got task graph_path, gold True; leave it out"),
    ],
)
def test_slips_are_of_plans(fields, message):
    with pytest.raises(ValueError, match=message):
        LessonsSpec(**{"task": "blocks", "gold": True, **fields})


def test_problems_without_an_answer_are_no_lessons():
    spec = LessonsSpec(task="hanoi", args={"n": 11}, problems=2, gold=True)
    with pytest.raises(
        ValueError, match=r"gold teaches the answers that the task hanoi brings, and hanoi/\w+ brings none"
    ):
        lesson_rows(spec, lesson_problems(spec), character_tokenizer())
    with pytest.raises(ValueError, match=r"answers\.lessons has trace and gold, two kinds of lessons"):
        LessonsSpec(task="countdown", gold=True, trace=TraceSpec(form="search"))
    with pytest.raises(ValueError, match=r"answers\.lessons\.gold replaces the mixture"):
        LessonsSpec(task="blocks", gold=True, slip=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rechecks": True}, r"rechecks and trace, two kinds of lessons"),
        ({"think": 0.5}, r"answers\.lessons\.trace replaces the mixture"),
        ({"args": {"mode": "slow"}}, r"args\.mode ends the prompt with tags"),
        ({"trace": TraceSpec(form="search", order="fewest")}, r"trace\.order of countdown must be of distance"),
    ],
)
def test_search_lessons_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LessonsSpec(**{"task": "countdown", "trace": TraceSpec(form="search"), **fields})


def test_lessons_say_which_task_they_are_for():
    with pytest.raises(ValueError, match=r"terms are tiers of the task sums"):
        LessonsSpec(task="reasoning_gym:chain_sum", terms=[2])
    with pytest.raises(ValueError, match=r"args are options of answers\.lessons\.task, which is missing"):
        LessonsSpec(args={"min_terms": 2})
    asked = LessonsSpec(task="reasoning_gym:chain_sum", args={"min_terms": 2}, problems=1)  # with <answer> tags
    with pytest.raises(ValueError, match=r"with `instruction: \"\"`"):
        lesson_rows(asked, lesson_problems(asked), character_tokenizer())


def test_pass_rates_are_those_of_the_policy_that_is_named(tmp_path):
    """The shipped base against its own evaluation; a random model solves nothing."""
    problems = lesson_problems(LessonsSpec(terms=[2], problems=12, seed=5))
    random_model = tiny_model(), character_tokenizer()
    spec = SamplingSpec(samples=4, max_new_tokens=32, policy="tiny-reasoner", seed=3)
    rates = measured_rates(spec, problems, random_model)
    assert set(rates) == set(problems["problem_id"])
    assert {Fraction(rate).denominator for rate in rates.values() if rate is not None} <= {1, 2, 4}
    assert sum(rates.values()) > 0
    assert rates == measured_rates(spec, problems, random_model)
    own = measured_rates(SamplingSpec(samples=2, max_new_tokens=4), problems, random_model)
    assert set(own.values()) == {0.0}


def test_a_policys_answers_are_scored_and_truncated_ones_left_out():
    spec = SampleSpec(task="sums", args={"terms": [2, 6]}, size=10, samples=4, max_new_tokens=32, seed=2)
    rows = sample_rows(spec, sample_problems(spec, None), load_policy("tiny-reasoner", device="cpu"))
    assert 0 < len(rows) < 40, "six terms do not fit into 32 tokens when the model thinks"
    by_problem: dict[str, list[dict]] = {}
    for row in rows:
        by_problem.setdefault(row["problem_id"], []).append(row)
        assert row["length"] <= 32
        assert row["source"] == "sums"
    for mine in by_problem.values():
        counted = Fraction(sum(row["correct"] for row in mine), 4)  # truncated answers are wrong ones
        assert {Fraction(row["pass_rate"]) for row in mine} == {counted}
    assert len(pass_rates(rows)) == len(rows)


# --- made for real ------------------------------------------------------------------------------------------------


def test_a_start_from_search_traces_is_made(file, tmp_path):
    """Two steps, every key written: the file is read back as it was, and the rows say what each lesson is."""
    trace = {
        "form": "search",
        "order": ["distance", "factors"],
        "width": 4,
        "skip": 0.2,
        "costs": True,
        "drop": {"levels": [0.1, 0.1, 0.1, 0.1]},
        "noise": {"kind": "dynamic", "contamination": 0.5, "intensity": 0.3},
    }
    start = load(file, f"answers.lessons={json.dumps({'task': 'countdown', 'problems': 8, 'trace': trace})}")
    again = ColdStart.make(parse_yaml(start.to_yaml()), name="start", base=start.base)
    assert again.config_hash() == start.config_hash()
    said = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    manifest = cold_start(start, console=said)
    assert (manifest["status"], manifest["rows"], manifest["steps"]) == ("finished", 8, 2)
    assert re.search(r"teacher: \d of 8 lessons end in a right answer", said.export_text())
    rows = [json.loads(line) for line in (tmp_path / "start" / "train.jsonl").read_text().splitlines()]
    assert {row["trace"]["noise"] for row in rows} == {None, "dynamic"}
    assert {row["trace"]["order"] for row in rows} == {"distance", "factors"}
    report = json.loads((tmp_path / "start" / "report.json").read_text())
    assert report["levels"]["3"]["accuracy"] == sum(row["correct"] for row in rows) / 8


def test_a_start_is_made_once_and_is_the_same_each_time(file, tmp_path):
    manifest = cold_start(load(file), console=QUIET)
    folder = tmp_path / "start"
    assert (manifest["status"], manifest["rows"], manifest["steps"]) == ("finished", 12, 2)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    report = json.loads((folder / "report.json").read_text())
    assert [row["level"] for row in rows] == ["2", "3"] * 6
    assert report["levels"]["2"]["answers"] == 6
    assert report["levels"]["2"]["accuracy"] == 1.0
    stamp = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert cold_start(load(file), console=QUIET) == manifest
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == stamp, "it was made again"
    again = cold_start(load(file, f"out={tmp_path / 'again'}"), console=QUIET)
    assert again["weights_sha256"] == manifest["weights_sha256"]
    card = (folder / "model" / "README.md").read_text()
    assert all(said in card for said in ("| Answers | 12 |", "| Base model | base |", "learning_rate: 0.01", "- sft"))
    assert str(tmp_path) not in card
    base = load_policy(str(tmp_path / "base"))[0].state_dict()
    taught = load_policy(str(folder / "model"))[0].state_dict()
    assert any((base[k] != taught[k]).any() for k in base)


def test_an_adapter_is_taught_and_trained_on(file, tmp_path):
    """`lora` draws one, its base named; the same shape on top of it goes on with it."""
    words = ("lora={r: 4, lora_alpha: 8, target_modules: all-linear}", f"out={tmp_path / 'first'}")
    cold_start(load(file, *words), console=QUIET)
    first = find_adapter(str(tmp_path / "first" / "model"))
    assert first is not None
    assert (first.settings["r"], first.base) == (4, str(tmp_path / "base"))
    base, taught = (load_weights(str(tmp_path / n), adapter="apart", dtype="float32") for n in ("base", "first/model"))
    ids_BT = torch.arange(12)[None]
    assert not torch.equal(taught(input_ids=ids_BT).logits, base(input_ids=ids_BT).logits)
    again = load(file, *words[:1], f"model.path={tmp_path / 'first' / 'model'}", f"out={tmp_path / 'second'}")
    cold_start(again, console=QUIET)
    second = find_adapter(str(tmp_path / "second" / "model"))
    assert second is not None
    assert second.base == str(tmp_path / "base")
    with pytest.raises(ValueError, match="r 4, not 2"):
        cold_start(load(file, "lora={r: 2, lora_alpha: 8, target_modules: all-linear}", *again_words(tmp_path)))


def again_words(folder: Path) -> tuple[str, str]:
    return f"model.path={folder / 'first' / 'model'}", f"out={folder / 'third'}"


def test_other_settings_are_refused_and_overwritten_on_request(file, tmp_path):
    first = cold_start(load(file), console=QUIET)
    other = load(file, "sft.learning_rate=0.02", "answers.lessons.seed=4")
    with pytest.raises(ValueError, match=r"other settings \(answers.lessons.seed, sft.learning_rate\); overwrite=true"):
        cold_start(other, console=QUIET)
    second = cold_start(other, overwrite=True, console=QUIET)
    assert second["weights_sha256"] != first["weights_sha256"]
    assert len((tmp_path / "start" / "train.jsonl").read_text().splitlines()) == 12


def test_an_interrupted_start_begins_again(file, tmp_path):
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "manifest.json").write_text('{"entrl": "0", "status": "running", "config_hash": "x"}')
    (tmp_path / "start" / "train.jsonl").write_text("half a li")
    assert not is_made(load(file))
    cold_start(load(file), console=QUIET)
    assert len((tmp_path / "start" / "train.jsonl").read_text().splitlines()) == 12


def test_a_failure_is_written_down(file, tmp_path):
    start = load(file, f"model.path={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        cold_start(start, console=QUIET)
    manifest = json.loads((tmp_path / "start" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "nowhere" in manifest["error"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about a machine without a GPU")
def test_bfloat16_without_a_gpu_names_its_keys_before_anything_is_drawn(file):
    file.write_text(file.read_text().replace("bf16: false, use_cpu: true,", ""))
    for words in ((), ("sft.bf16=true",)):
        with pytest.raises(ValueError, match=r"set sft\.use_cpu: true, and sft\.bf16: false for 32 bits"):
            cold_start(load(file, *words), console=QUIET)
    assert not (file.parent / "start" / "train.jsonl").exists()
    for word in ("sft.bf16=false", "sft.use_cpu=true"):
        assert cold_start(load(file, word), overwrite=True, console=QUIET)["status"] == "finished"


@pytest.mark.parametrize("what", ["notes.txt", "metrics.jsonl"])
def test_a_foreign_folder_is_left_alone(file, tmp_path, what):
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / what).write_text("mine")
    if what == "metrics.jsonl":  # a run has a manifest too
        (tmp_path / "start" / "manifest.json").write_text('{"entrl": "0", "status": "running", "config_hash": "x"}')
    with pytest.raises(ValueError, match=r"set `out` to another place"):
        cold_start(load(file), console=QUIET)
    assert (tmp_path / "start" / what).read_text() == "mine"


def test_a_chain_notices_that_its_first_link_was_made_anew(file, tmp_path):
    """The adaptive start measures pass rates with the vanilla one, so it is stale when that one changes."""
    first = load(file)
    cold_start(first, console=QUIET)
    measured = f'answers.pass_rate={{"policy": "{first.model_dir}", "samples": 1, "max_new_tokens": 4}}'
    second = load(file, f"out={tmp_path / 'second'}", measured)
    cold_start(second, console=QUIET)
    assert is_made(second)
    cold_start(load(file, "sft.learning_rate=0.02"), overwrite=True, console=QUIET)
    with pytest.raises(ValueError, match="which has been made anew since"):
        is_made(second)


def test_answers_of_a_file_are_curated_and_taught(file, tmp_path, capsys):
    rates = (0.0, 0.5, 1.0)
    rows = [
        {"problem_id": f"{p}/{n}", "prompt": f"{n}+{n}=", "completion": "1" * (40 - int(20 * p) + n), "pass_rate": p}
        for p in rates
        for n in range(8)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ['answers={"file": "answers.jsonl"}', "curation.per_bracket=2", "curation.brackets=2", "sft.max_steps=1"]
    assert main(["cold-start", str(file), *words]) == 0
    assert "6 of 24 answers taken" in capsys.readouterr().out
    report = json.loads((tmp_path / "start" / "report.json").read_text())
    # medians of 8 answers: 40 + 3.5 and 20 + 3.5 characters, a token each, and the end token
    assert report["sources"][""] == {"length_0": 44.5, "length_1": 24.5, "substituted": []}
    lengths = {cell["pass_rate"]: cell["median_length_taken"] for cell in report["brackets"]}
    assert lengths == {0.0: 44.5, 0.5: 34.5, 1.0: 24.5}
    assert main(["cold-start", str(file), *words]) == 0
    assert "kept" in capsys.readouterr().out


def test_the_command_has_nothing_to_resume(file, capsys):
    assert main(["cold-start", str(file), "resume=true"]) == 2
    assert "drop resume" in capsys.readouterr().err


def test_messages_are_taught_as_messages(tmp_path):
    """A prompt of chat messages gets an answer of one; TRL refuses a mixture."""
    from entrl.teach.cold_start.run import _pair

    prompt = [{"role": "user", "content": "1+1?"}]
    assert _pair({"prompt": prompt, "completion": "2"})["completion"] == [{"role": "assistant", "content": "2"}]
    assert _pair({"prompt": "1+1=", "completion": "2", "length": 2}) == {"prompt": "1+1=", "completion": "2"}
