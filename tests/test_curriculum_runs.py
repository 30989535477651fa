"""A curriculum in GRPO: TRL's repeats, one process as two, resumed as uninterrupted, and what `plan` says of one."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from kills import copied, differences
from short_run import quietly, same_weights, short_recipe, start, words
from small_recipe import recipe as small
from test_resume import as_killed
from tiny_model import digits, parameters, same, saved_model, trainer
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from entrl.curriculum.band import Band
from entrl.curriculum.birdie import Birdie
from entrl.curriculum.course import Course, CourseOptions
from entrl.curriculum.dart import Dart
from entrl.curriculum.pass_rates import Group, PassRateFile, problem_key
from entrl.curriculum.uniform import Uniform
from entrl.runs.plan import plan, prepare
from entrl.runs.recipe import load_recipe
from entrl.tasks import load_task
from entrl.trainers.grpo.curriculum import CurriculumSampler

TESTS = Path(__file__).parent
ROWS = Dataset.from_dict(
    {
        "prompt": [f"{i}+{i}=" for i in range(12)],
        "problem_id": [f"p{i}" for i in range(12)],
        "task": ["even", "odd"] * 6,
    }
)
DIGITS = CourseOptions(reward="digits", pass_above=1.0)  # of 12 characters of a random model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def trained(folder: Path, course: Course | None, *, resume: int | None = None, cls: Any = None, **options: Any) -> Any:
    extra = {} if course is None else {"curriculum": course}
    extra |= {} if cls is None else {"cls": cls, "plain": True}
    made = trainer(folder, digits, train_dataset=ROWS, per_device_train_batch_size=8, **extra, **options)
    made.train(resume_from_checkpoint=None if resume is None else str(folder / "out" / f"checkpoint-{resume}"))
    return made


# --- TRL's order and repeats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_sampler_repeats_as_trl_s(repeats: int):
    make = lambda: RepeatSampler(ROWS, 3, batch_size=5, repeat_count=repeats, seed=1)  # noqa: E731
    plain, passes = make(), [list(make())]
    passes = [list(plain), list(plain)]
    for rule in (Uniform(), Band()):
        sampler = CurriculumSampler(make(), Course(rule).bind(ROWS, seed=1))
        for number, order in enumerate(passes):
            sampler.number = number
            got = list(sampler)
            assert len(got) == len(order) == len(sampler)
            blocks = [got[i : i + 15] for i in range(0, len(got), 15)]  # 5 prompts of 3
            for i, block in enumerate(blocks):
                assert block == blocks[i - i % repeats]
                assert block == [row for row in dict.fromkeys(block) for _ in range(3)]
                assert len(set(block)) == 5
            assert (got == order) == isinstance(rule, Uniform)


def test_uniform_and_none_equal_stock_trl_bit_for_bit(tmp_path: Path):
    stock = trained(tmp_path / "a", None, cls=GRPOTrainer, max_steps=8)
    for course in (None, Course(Uniform(), DIGITS)):
        ours = trained(tmp_path / str(course is None), course, max_steps=8)
        assert same(parameters(stock), parameters(ours))


def test_a_rule_changes_what_is_trained_on(tmp_path: Path):
    """So the test above can tell."""
    runs = [trained(tmp_path / rule.name, Course(rule, DIGITS), max_steps=8) for rule in (Uniform(), Band())]
    assert not same(*map(parameters, runs))


def always(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def never(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(("counted", "rate"), [("always", 1.0), ("never", 0.0)])
def test_passes_are_those_of_the_reward_that_is_named(counted: str, rate: float, tmp_path: Path):
    course = Course(Uniform(), CourseOptions(reward=counted))
    made = trainer(tmp_path, [never, always], train_dataset=ROWS, curriculum=course, max_steps=1)
    made.train()
    assert course.metrics()["curriculum/pass_rate"] == rate


# --- resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "stop", "options"),
    [
        (lambda: Birdie(every=2), 7, {"num_iterations": 2}),  # between two updates of one rollout, in its first pass
        pytest.param(Dart, 4, {}, marks=pytest.mark.slow),  # within the first pass of six rollouts
        pytest.param(Band, 6, {}, marks=pytest.mark.slow),  # at its end
        pytest.param(Band, 10, {"filter_on": "reward", "filter_max_tries": 2}, marks=pytest.mark.slow),
        pytest.param(Uniform, 9, {"steps_per_generation": 2, "gradient_accumulation_steps": 1}, marks=pytest.mark.slow),
    ],
    ids=["within_a_rollout", "first_pass", "end_of_pass", "filter", "uniform"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(rule: Any, stop: int, options: dict[str, Any], tmp_path: Path):
    options |= {"max_steps": 13, "save_strategy": "steps", "save_steps": stop}
    whole, again = (Course(rule(), DIGITS) for _ in range(2))
    first = trained(tmp_path, whole, **options)
    second = trained(tmp_path, again, resume=stop, **options)
    assert same(parameters(first), parameters(second))
    assert again.state_dict() == whole.state_dict()
    assert whole.rollouts > 3


CURRICULUM = "curriculum={use: dart, args: {give_up: 8}, reward: restless, pass_above: 5}"


def run(folder: Path, model: str, *more: str) -> Any:
    rewards = f"rewards=[{{use: '{TESTS / 'kill_reward.py'}:Restless'}}]"
    evaluated = "eval={task: sums, size: 3, samples: 2, max_new_tokens: 6}"
    options = ["max_steps=6", "save_steps=2", "per_device_train_batch_size=8", "steps_per_generation=1"]
    options = [f"trainer.{option}" for option in options]
    return short_recipe(model, folder, rewards, "controllers=[]", evaluated, *options, *more)


def rates(file: Path) -> list[tuple[int, Any]]:
    """Rollout -> groups, the later of two lines."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted({row["rollout"]: row["groups"] for row in lines if "rollout" in row}.items())


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_file_holds_each_rollout_once(model: str, tmp_path: Path):
    quietly(run(tmp_path / "run", model, CURRICULUM))
    whole = copied(tmp_path / "run", tmp_path / "whole")
    as_killed(tmp_path / "run", after_step=2)
    quietly(run(tmp_path / "run", model, CURRICULUM), resume=True)
    assert differences(whole, tmp_path / "run") == []
    files = [folder / "pass_rates.jsonl" for folder in (whole, tmp_path / "run")]
    assert rates(files[0]) == rates(files[1])
    assert [rollout for rollout, _ in rates(files[0])] == [0, 1, 2, 3, 4, 5]
    assert [len(file.read_text().splitlines()) for file in files] == [7, 11]  # with the line that says start


@pytest.mark.slow
def test_a_second_run_starts_with_what_the_first_found(model: str, tmp_path: Path):
    shared = CURRICULUM[:-1] + f", file: {tmp_path / 'shared.jsonl'}}}"
    more = (shared, "eval=null", "trainer.save_strategy=no", "trainer.max_steps=2")
    for name in ("a", "b", "a"):
        quietly(run(tmp_path / name, model, *more), overwrite=True)
    known = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["curriculum/known"]
        for name in ("a", "b")
    ]
    assert known[0] > 2 / 32  # overwritten, after b
    lines = [json.loads(line) for line in (tmp_path / "shared.jsonl").read_text().splitlines()]
    assert [("start" in row, Path(row["run"]).name) for row in lines if row.get("start")] == [
        (True, "a"), (True, "b"), (True, "a"),
    ]  # fmt: skip


# --- several ranks ------------------------------------------------------------------------------------------------

RULES = ("band", "dart", "{use: birdie, args: {column: half, every: 2}}")


def graded(folder: Path, model: str, rule: str, *more: str) -> list[str]:
    """16 problems whose verdicts hang on the problem alone; two prompts of four completions in a rollout."""
    problems = folder.parent / "problems.jsonl"
    rows = [{"id": f"n{i}", "prompt": f"{i}+1=", "answer": str(i + 1), "half": "ab"[i % 2]} for i in range(16)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    use = rule if rule.startswith("{") else f"{{use: {rule}}}"
    return words(
        model,
        folder,
        f"data={{task: 'jsonl:{problems}'}}",
        f"rewards=[{{use: '{TESTS / 'graded_reward.py'}:grade'}}]",
        "controllers=[]",
        f"curriculum={use[:-1]}, reward: grade}}",
        "trainer.max_steps=10",
        "trainer.save_steps=4",
        "trainer.steps_per_generation=1",
        *more,
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize("rule", RULES, ids=["band", "dart", "birdie"])
def test_two_processes_draw_what_one_does_and_resume_exactly(rule: str, model: str, tmp_path: Path):
    recipe = str(TESTS.parent / "recipes" / "tiny-reasoner" / "grpo.yaml")
    one, two = tmp_path / "one", tmp_path / "two"
    quietly(load_recipe(recipe, graded(one, model, rule, "trainer.per_device_train_batch_size=8")))
    arguments = ["train", recipe, *graded(two, model, rule, "launch.world_size=2", "trainer.use_cpu=true")]
    ended = start(*arguments, processes=2)
    text = "".join(ended.communicate(timeout=400))
    assert ended.returncode == 0, text[-3000:]
    found = rates(one / "pass_rates.jsonl")
    assert found == rates(two / "pass_rates.jsonl")
    assert len(found) == 10
    first_pass = [problem for _, groups in found[:8] for problem, *_ in groups]
    assert len(set(first_pass)) < 16  # a rule was at work: TRL's order meets each once
    whole = copied(two, tmp_path / "whole")
    as_killed_without_evaluation(two, after_step=4)
    ended = start(*arguments, "resume=true", processes=2)
    text = "".join(ended.communicate(timeout=400))
    assert ended.returncode == 0, text[-3000:]
    assert same_weights(whole, two)
    assert rates(two / "pass_rates.jsonl") == found


def as_killed_without_evaluation(run_dir: Path, *, after_step: int) -> None:
    (run_dir / "eval_after.json").write_text("{}")
    as_killed(run_dir, after_step=after_step)


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("curriculum={use: bend}", "no entrl.curriculum.bend. Did you mean 'band'?"),
        ("curriculum={use: band, args: {lo: 0.1}}", "takes no argument 'lo'. Did you mean 'low'?"),
        ("curriculum={use: band, args: {low: 0.9}}", "0 <= low < high <= 1 is needed, got low 0.9"),
        ("curriculum={use: band, reward: acuracy}", "counts passes by the reward 'acuracy', which is not among"),
        ("curriculum={use: skills}", "the rows have no column 'skills' (skills reads it)"),
        ("curriculum={use: birdie}", "the rows have no column 'task'"),
        ("curriculum={use: 'pear'}", "no entrl.curriculum.pear"),
        ("curriculum={use: 'entrl_rewards.pear:reward'}", "subclass entrl.curriculum.rules.Rule"),
        (f"curriculum={{use: band, file: {TESTS / 'conftest.py'}}}", "conftest.py:1 is no line of pass rates"),
        (f"curriculum={{use: band, file: {TESTS / 'conftest.py' / 'x'}}}", "conftest.py is not a folder; name a file"),
        ("curriculum={use: band, file: .}", "curriculum.file . is a folder; name a file in it"),
    ],
)
def test_plan_names_what_does_not_fit(word: str, message: str, model: str):
    assert any(message in problem for problem in plan(small(model, word)).problems), plan(small(model, word)).problems


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("curriculum={use: band, floor: 2}", "curriculum.floor is a share in [0, 1], got 2"),
        ("curriculum={use: band, floor: '0.1'}", "curriculum.floor must be float, got '0.1'"),
        ("curriculum={args: {}}", "curriculum needs a 'use'"),
        ("curriculum={use: band, flor: 0.1}", "unknown key 'flor' in curriculum. Did you mean 'floor'?"),
    ],
)
def test_a_recipe_refuses_what_it_cannot_read(word: str, message: str, model: str):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        small(model, word)


def test_workers_are_refused(model: str):
    problems = prepare(small(model, "curriculum=band", "trainer.dataloader_num_workers=2"), world_size=1).problems
    assert any("dataloader_num_workers is 2: workers ask for prompts long before" in p for p in problems)


def test_a_good_curriculum_is_shown_and_keeps_the_hash_of_recipes_without_one(model: str):
    found = plan(small(model, "curriculum=band", "rewards=[{use: accuracy, weight: 0}, pear]"))
    assert found.problems == []
    assert not any("is 0: it is logged" in warning for warning in found.warnings)
    other = plan(small(model, "curriculum=band", "rewards=[{use: pear, weight: 0}, accuracy]")).warnings
    assert any("rewards.0.weight of pear is 0: it is logged" in warning for warning in other)
    assert dict(found.rows)["curriculum"].startswith("entrl.curriculum.band:rule")
    plain = small(model)
    assert "curriculum" in plain.resolved()
    assert plain.config_hash() != small(model, "curriculum=band").config_hash()


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        (["curriculum=band"], "0.094"),  # 6 steps of one prompt, of 64
        (["curriculum=dart", "data.train_size=4"], "1.5"),
        (["curriculum=dart", "data.train_size=3"], None),
        (["curriculum=dart", "data.train_size=3", "trainer.num_iterations=2"], "1"),
        (["curriculum=band", "trainer.max_steps=-1", "trainer.num_train_epochs=1"], "1"),
        (["curriculum=band", "trainer.max_steps=-1", "trainer.num_train_epochs=2"], None),
        (["curriculum=uniform"], None),
        ([], None),
    ],
)
def test_a_run_too_short_for_its_curriculum_is_warned_of(words: list[str], passes: str | None, model: str):
    found = [warning for warning in plan(small(model, *words)).warnings if "draws almost evenly" in warning]
    assert len(found) == (passes is not None)
    assert all(f"and {passes} passes over" in warning for warning in found)


def test_what_earlier_runs_found_lets_a_short_run_s_curriculum_act(model: str, tmp_path: Path):
    shared = tmp_path / "shared.jsonl"
    word = f"curriculum={{use: band, file: {shared}}}"
    warned = lambda: any("draws almost evenly" in warning for warning in plan(small(model, word)).warnings)  # noqa: E731
    assert warned()
    PassRateFile(shared, run="a").append(0, [Group(problem_key("p", ["?"]), 8, 1)], start=True)
    assert not warned()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", "curriculum rule raised RuntimeError: no luck; mend it"),
        ("raise SystemExit(3)", "curriculum rule raised SystemExit: 3; mend it"),
        ("return [float('nan')] * len(prompts)", "the rule gave prompt 0 the weight nan"),
    ],
)
def test_plan_tries_a_rule_of_one_s_own(body: str, message: str, model: str, tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(
        "from entrl.curriculum.rules import Rule\n\n\nclass Own(Rule):\n"
        f"    def weights(self, prompts):\n        {body}\n"
    )
    (problem,) = plan(small(model, f"curriculum={{use: '{file}:Own'}}")).problems
    assert message in problem


def test_a_rule_of_one_s_own(model: str, tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(
        "import numpy as np\nfrom dataclasses import dataclass\nfrom entrl.curriculum.rules import Rule\n\n\n"
        "@dataclass(kw_only=True)\nclass First(Rule):\n    count: int = 2\n\n"
        "    def weights(self, prompts):\n        return (np.arange(len(prompts)) < self.count).astype(float)\n"
    )
    own = f"curriculum={{use: '{file}:First', args: {{count: 1}}, reward: restless, floor: 0}}"
    options = [f"trainer.{word}" for word in ("save_strategy=no", "max_steps=3", "per_device_train_batch_size=4")]
    quietly(run(tmp_path / "run", model, own, "eval=null", *options))
    drawn = [
        group[0].partition("#")[0] for _, groups in rates(tmp_path / "run" / "pass_rates.jsonl") for group in groups
    ]
    assert drawn == [load_task("sums", split="train", size=32, seed=0)[0]["problem_id"]] * len(drawn)


class Told(Course):
    """Remembers, of each draw, how many rollouts were known."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.known: list[int] = []

    def _draw(self, rollout: int, usual: Any) -> list[int]:
        self.known.append(self.rollouts)
        return super()._draw(rollout, usual)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, [0, 0, 1, 2, 3, 4, 6, 6, 7, 8]),  # six rollouts a pass, one optimiser step each
        ({"num_iterations": 2}, [0, 1, 2, 3, 4]),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2}, [0, 0, 1, 3, 3, 4, 6, 6, 7]),
    ],
    ids=["one_step", "two_updates", "two_micro_steps"],
)
def test_what_is_known_when_a_rollout_is_drawn(options: dict[str, Any], known: list[int], tmp_path: Path):
    course = Told(Band(), DIGITS)
    trained(tmp_path, course, max_steps=9, **options)
    assert course.known == known
