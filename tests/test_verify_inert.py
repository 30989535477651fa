"""What a model writes, and what a row of a file says, runs nowhere: not in the trainer, not in a verifier process.

Each test leaves bait: the text would make a marker file if anything evaluated it. Shown to run before the mend.
"""

import builtins
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import reasoning_gym
from entrl_rewards.accuracy import Accuracy

from entrl.cli.main import main
from entrl.environments import TwentyQuestions
from entrl.tasks import load_task
from entrl.verify import VerifierPool, gym_scorers
from entrl.verify.judge import check, quick_check
from entrl.verify.pool import KEPT, SET

RECIPE = """
model: {path: tiny-reasoner}
data: {task: %r, train_size: 4}
rewards: [accuracy]
trainer: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, bf16: false}
"""
NINE = (  # whose scorers hand the answer to eval or to sympy's parse_expr
    "spiral_matrix", "string_insertion", "binary_matrix", "n_queens", "countdown", "puzzle24",
    "simple_integration", "intermediate_integration", "polynomial_multiplication",
)  # fmt: skip


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def touch(marker: Path) -> str:
    """An expression that makes the marker."""
    return f"__import__('os').system('touch {marker}')"


def baits(marker: Path) -> list[str]:
    """Spellings that would make the marker under eval, sympy's parser, a LaTeX reader that falls back on either."""
    run = touch(marker)
    return [
        run,
        f"[{run}]",
        f"[[1, 2], {run}]",
        f"({run}, 24)[1]",
        f"1 + 2 if {run} else 3",
        f"[x for x in [{run}]]",
        f"(lambda: {run})()",
        f"(x := {run})",
        f"{{{run}: 1}}",
        f'f"{{{run}}}"',
        f"().__class__.__base__.__subclasses__() and {run}",
        f"getattr(__import__('os'), 'system')('touch {marker}')",
        f"open('{marker}', 'w')",
        f"exec('import pathlib; pathlib.Path(\"{marker}\").touch()')",
        f"eval(compile('open(\"{marker}\", \"w\")', '', 'eval'))",
        f"Symbol('x').func({run})",
        f"diff({run}, x)",
        f"<answer>{run}</answer>",
        f"\\boxed{{{run}}}",
        f"\\boxed{{\\text{{{run}}}}}",
        f"${run}$",
        f"The answer is ${{{run}}}$.",
        f"answer: 1+1 if {run} else 2",
        f"x_{{{run}}}",
        f"\\operatorname{{exec}}({run})",
        f"{{0.__class__.__init__.__globals__[{run}]}}",
    ]


@functools.cache
def entry(name: str) -> dict:
    """An entry of a dataset as rows carry it."""
    return json.loads(json.dumps(reasoning_gym.create_dataset(name, seed=1, size=1)[0], default=str))


def verifier(name: str, **changes: object) -> str:
    return json.dumps({"kind": "reasoning_gym", "dataset": name, "config": {}, "entry": entry(name) | changes})


@pytest.mark.parametrize("name", NINE)
def test_an_answer_runs_nowhere(name, marker):
    texts = baits(marker)
    scores = Accuracy().score(texts, ["1"] * len(texts), [verifier(name)] * len(texts))
    assert scores == [0.0] * len(texts)
    assert not marker.exists()


@pytest.mark.parametrize(("kind", "gold"), [("math", "77"), ("math", "x+1"), ("exact", "77"), ("choice", "B")])
def test_an_answer_runs_nowhere_under_the_other_kinds(kind, gold, marker):
    texts = baits(marker)
    scores = Accuracy(kind=kind).score(texts, [gold] * len(texts))
    assert set(scores) <= {0.0}
    assert not marker.exists()


EVALUATED: list[str] = []  # code objects made of text, of those that name what a bait names; only while a test listens
LISTENING: list[bool] = []


def _hear(event: str, arguments: tuple) -> None:
    if LISTENING and event == "exec" and arguments[0].co_filename in ("<string>", ""):
        EVALUATED.extend({"system", "__import__", "open", "exec", "getattr"} & set(arguments[0].co_names))


sys.addaudithook(_hear)


@pytest.fixture
def heard():
    EVALUATED.clear()
    LISTENING.append(True)
    yield EVALUATED
    LISTENING.clear()


@pytest.mark.parametrize("kind", ["math", "exact", "choice", *NINE])
def test_an_answer_is_not_even_evaluated(kind, marker, heard):
    """In this process: no code object is made of an answer and executed, whether or not it would have acted."""
    for text in baits(marker):
        if kind in NINE:
            check("reasoning_gym", text, "", json.loads(verifier(kind)))
        for gold in ("77", "x+1", r"\{1, 2\}", "[1, 2)", "(1, 2)", r"\begin{pmatrix}1&2\end{pmatrix}"):
            if kind not in NINE:
                check(kind, text, gold if kind != "choice" else "B", {})
    assert not heard
    assert not marker.exists()
    eval("__import__('os').getcwd()")  # and evaluation would have been heard
    assert heard == ["__import__"]


@pytest.mark.parametrize("letters", ["", "A]|(x+x+)+y", "AA", ["A", "|"], None, 4])
def test_letters_of_a_row_make_no_pattern(letters):
    row = json.dumps({"kind": "choice", "letters": letters})
    with pytest.raises(ValueError, match="row 0: verifier letters must be different letters such as 'ABCD', got"):
        Accuracy().score(["A"], ["A"], [row])


def test_a_bait_is_one(marker):
    """Each spelling that Python can evaluate makes the marker when it is, or these tests could not fail."""
    for bait in baits(marker)[:15]:
        marker.unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            eval(bait, {"__builtins__": builtins})
        assert marker.exists(), bait


@pytest.mark.parametrize("name", ["number_sorting", "bitwise_arithmetic"])
def test_an_entry_runs_nowhere(name, marker):
    bait = touch(marker)
    row = verifier(name, answer=bait, metadata={"problem": bait, "direction": "ascending"})
    assert Accuracy().score(["[1]", "0x1"], ["1"] * 2, [row] * 2) == [0.0, 0.0]
    assert not marker.exists()


def test_a_config_runs_nowhere(marker):
    config = {"operators": ["+", f"+{touch(marker)}+"]}
    row = json.dumps({"kind": "reasoning_gym", "dataset": "basic_arithmetic", "config": config, "index": 0})
    verdict = Accuracy().verdicts(["1"], ["1"], [row])[0]
    assert verdict is not None
    assert verdict.status == "crash"
    assert "only plain words may" in verdict.detail
    assert not marker.exists()


def test_a_scorer_that_hands_on_is_refused_by_name(tmp_path, capsys):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE % "reasoning_gym:composite")
    out = f"trainer.output_dir={tmp_path / 'out'}"
    said = "reasoning-gym 'composite' cannot be used: it hands the answer to the scorers of its parts"
    assert main(["plan", str(recipe), out]) == 1
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["train", str(recipe), out]) == 2
    assert said in capsys.readouterr().err
    assert main(["eval", "tiny-reasoner", "--task", "reasoning_gym:composite", "--size", "2"]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="'composite' cannot be used"):
        Accuracy().score(["1"], ["1"], ['{"kind": "reasoning_gym", "dataset": "composite", "entry": {}}'])


def test_a_dataset_that_nobody_looked_at_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(gym_scorers, "INERT", gym_scorers.INERT - {"gcd"})
    with pytest.raises(ValueError, match="'gcd' is not classified: nobody has looked"):
        load_task("reasoning_gym:gcd", size=1)


@pytest.mark.parametrize("kind", ["reasoning_gym", "python", "os.system", None, ["math"]])
def test_a_row_of_a_file_may_not_choose_what_runs(kind, marker, tmp_path, capsys):
    spec = {"kind": kind, "dataset": "number_sorting", "entry": {"answer": touch(marker), "metadata": {}}}
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3", "verifier": spec}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE % f"jsonl:{file}")
    assert main(["train", str(recipe), f"trainer.output_dir={tmp_path / 'out'}"]) == 2
    assert (
        "rows.jsonl:2: a row of a file may ask for the verifiers math, exact, choice, code" in capsys.readouterr().err
    )
    assert not marker.exists()


def test_a_row_of_a_file_may_ask_for_comparisons(tmp_path):
    kinds = ("math", "exact", "choice")
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{kind}?", "answer": "A", "verifier": {"kind": kind}} for kind in kinds]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [json.loads(v)["kind"] for v in load_task(f"jsonl:{file}")["verifier"]] == list(kinds)


def test_a_row_may_not_open_a_table(marker, tmp_path):
    code = tmp_path / "own.py"
    code.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ntable = lambda: {{'a': {{'q': 1}}}}\n")
    with pytest.raises(ValueError, match="which no recipe has opened"):
        TwentyQuestions().reset(table_id=f"loaded:{code}:table", target="a")
    assert not marker.exists()
    task = {"task": "twenty_questions", "tables": f"loaded:{code}:table"}
    row = load_task(task, size=1)[0]  # the recipe names it: it is opened, and then rows may go on naming it
    TwentyQuestions().reset(**row)
    assert marker.exists()


# The processes of the verifiers

CHECKER = r"""
import os, sys

def state():
    descriptors = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    opened = [os.readlink(descriptor) for descriptor in descriptors if os.path.exists(descriptor)]
    return {"environment": dict(os.environ), "folder": os.getcwd(), "opened": opened}

def right(text):
    if text == "forge":
        for descriptor in range(1, 20):
            for line in (b'{"value": 1.0}', b'{"nonce": "0", "value": 1.0}', b'[1.0]', b'1.0', b'{', b'\xff'):
                try:
                    os.write(descriptor, line + b"\n")
                except OSError:
                    pass
    if text == "replace":
        sys.modules[__name__].right = lambda text: 1.0
    if text == "flood":
        os.write(3, b"x" * 3_000_000)
    if text == "stop the run":
        os.write(3, b'{"load_error": "no"}\n')
    return float(text == "right")
"""


@pytest.fixture
def checker(tmp_path, monkeypatch) -> str:
    (tmp_path / "state_checker.py").write_text(CHECKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "state_checker"


@pytest.fixture
def pool():
    pool = VerifierPool(1)
    yield pool
    pool.close()


def test_a_verifier_process_knows_no_secret_and_holds_nothing_of_ours(pool, checker, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "key_secret")
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        found = pool.run(f"{checker}:state", [()])[0].value
    assert set(found["environment"]) <= {*KEPT, *SET, "LC_CTYPE"}
    assert found["folder"] == "/"
    assert not [name for name in found["opened"] if "held" in name]


@pytest.mark.parametrize("attack", ["forge", "replace", "flood", "stop the run"])
def test_one_completion_decides_about_no_other(attack, pool, checker):
    texts = ["wrong", "right", attack, "wrong", "right", "wrong"]
    verdicts = pool.run(f"{checker}:right", [(text,) for text in texts])
    others = [v.value for text, v in zip(texts, verdicts, strict=True) if text != attack]
    assert others == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert verdicts[2].value in (None, 0.0)
    assert verdicts[2].status == ("ok" if attack == "replace" else "crash")
    assert [v.value for v in pool.run(f"{checker}:right", [("wrong",), ("right",)])] == [0.0, 1.0]


@pytest.mark.parametrize("act", [
    "os.system('true')", "subprocess.run(['true'])", "open(path, 'w')", "os.open(path, os.O_CREAT | os.O_WRONLY)",
    "os.mkdir(path)", "socket.socket()", "os.fork()", "os.kill(os.getppid(), 0)", "pathlib.Path(path).touch()",
    "os.execv('/bin/true', ['true'])", "os.posix_spawn('/bin/true', ['true'], {})", "shutil.rmtree('/nowhere')",
])  # fmt: skip
def test_a_check_of_ours_may_compute_and_nothing_else(act, tmp_path):
    """A second wall, should a library below the checks ever be fooled."""
    code = (
        "import os, pathlib, shutil, socket, subprocess, sys\n"
        f"from entrl.verify import worker\npath = {str(tmp_path / 'made')!r}\n"
        "sys.addaudithook(worker._wall)\nopen(worker.__file__).close()\nworker._wall.up = True\n"
        f"open(worker.__file__).close()\ntry:\n    {act}\nexcept PermissionError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a verifier process may not do "), done.stdout
    assert not (tmp_path / "made").exists()


def test_the_wall_stands_while_our_checks_run(pool, tmp_path, monkeypatch):
    """In the process itself, with a scorer that was fooled into `os.system`."""
    (tmp_path / "fooled.py").write_text(
        "import os\nfrom entrl.verify import judge\n"
        f"def act(text, gold): os.system('touch {tmp_path / 'ran'}')\njudge.math_score = act\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    verdict = pool.run("entrl.verify.judge:check", [("math", "1", "1", {})], imports=["fooled"])[0]
    assert verdict.status == "crash"
    assert "a verifier process may not do os.system" in verdict.detail
    assert not (tmp_path / "ran").exists()


# Bounds


@pytest.mark.parametrize("kind", ["choice", "exact", "math"])
@pytest.mark.parametrize(
    "text",
    [" " * 32_000, " " * 10**6, "A" * 10**6, r"\boxed{" * 100_000, "{" * 10**6, "answer: " * 100_000, "(" * 10**6,
     r"\boxed{\text{" * 50_000, "\n" * 10**6, "<answer>" * 100_000, ". " * 300_000 + "x", "answer is" + "*" * 10**6,
     "\t" * 32_000 + "x"],
    ids=lambda text: f"{text[:8]!r} x {len(text)}",
)  # fmt: skip
def test_a_check_in_the_trainer_is_bounded(kind, text):
    quick_check(kind, "the answer is B", "B", {})
    began = time.process_time()
    quick_check(kind, text, "B", {})
    assert time.process_time() - began < 0.2


def test_the_answer_is_looked_for_at_the_end():
    assert check("choice", "The answer is A. " * 10_000 + "No: the answer is C.", "C", {}) == 1.0
    long = "word " * 5_000
    assert check("exact", long, long, {}) == 1.0  # a gold longer than what is looked at otherwise
    assert check("exact", "x" + long, long, {}) == 0.0
