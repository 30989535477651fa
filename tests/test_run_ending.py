"""How a run ends when it is asked to (SIGTERM, Ctrl-C), when its disk takes no more, and when one rank of it fails."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from short_run import RECIPE, ROOT, command, manifest, quietly, rows, same_weights, short_recipe, start, words
from tiny_model import saved_model

import entrl.runs.evaluate
import entrl.runs.train
from entrl.cli.main import main
from entrl.errors import CannotWrite, RunStopped
from entrl.runs import ending

OWN = "rewards=[{use: 'signalling.py:reward'}]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The recipe, with the reward that signals beside it, which is not to be tried before."""
    shutil.copy(Path(__file__).with_name("signalling.py"), tmp_path)
    (tmp_path / "own.yaml").write_text(f"{RECIPE.read_text()}\nreward_trial_s: 0\n")
    return tmp_path / "own.yaml"


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(Path(__file__).with_name("signalling.py"), folder)
    quietly(short_recipe(model, folder / "run", OWN, file=Path(shutil.copy(RECIPE, folder / "own.yaml"))))
    return folder / "run"


def do(monkeypatch: pytest.MonkeyPatch, file: Path, what: str, call: int, **more: str) -> None:
    """In the run that follows, in that call of the reward; one that ran here before has made calls already."""
    made = [m for m in sys.modules.values() if getattr(m, "__file__", None) == str(file.with_name("signalling.py"))]
    for key, value in {"DO": what, "CALL": str(call + sum(m._calls for m in made)), **more}.items():
        monkeypatch.setenv(key, value)


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").glob("checkpoint-*"))


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_ends_a_run_at_the_next_step_and_it_goes_on_as_if_nothing_had_been(
    name: str, code: int, model: str, file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    out, no_habit = tmp_path / "run", ("trainer.save_steps=100", OWN)  # the checkpoint is the signal's
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    do(monkeypatch, file, f"{name}+{name}", 2)  # a launcher hands on what the terminal sent as well
    line = ["train", str(file), *words(model, out, *no_habit)]
    assert main(line) == code
    said = capfd.readouterr().err
    assert f"{name}: the step under way is finished and saved, for 60 s at most; again: at once" in said
    assert f"stopped by {name} after step 3, saved in checkpoint-3; the same command with resume=true" in said
    assert (manifest(out)["status"], checkpoints(out)) == ("interrupted", ["checkpoint-3"])
    assert not (out / "model").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    monkeypatch.delenv("DO")
    assert main([*line, "resume=true"]) == 0
    assert same_weights(out, whole)
    assert rows(out) == rows(whole)


def test_a_signal_between_the_last_step_and_the_saved_model_waits_for_it(
    model: str, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """With save_strategy "no" the model is all that the run leaves."""
    out = tmp_path / "run"
    line = ["train", str(RECIPE), *words(model, out, "trainer.save_strategy=no")]
    with monkeypatch.context() as here:
        here.setattr(entrl.runs.train, "unmark", lambda folder: os.kill(os.getpid(), signal.SIGTERM))
        assert main(line) == 143
    assert "stopped by SIGTERM after the last step, model saved" in capfd.readouterr().err
    trained = (out / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(entrl.runs.train, "train_model", lambda *_: pytest.fail("trained twice"))
    assert main([*line, "resume=true"]) == 0
    assert ((out / "metrics.jsonl").read_bytes(), manifest(out)["status"]) == (trained, "finished")


def test_a_second_signal_ends_at_once(
    model: str, file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ending, "ECHO_S", 0.05)
    do(monkeypatch, file, "SIGINT+0.2+SIGINT+60", 2)
    out, began = tmp_path / "run", time.monotonic()
    made = short_recipe(model, out, OWN, file=file)
    with pytest.raises(RunStopped, match=r"in the middle of a step, which is lost; .*resume=true"):
        quietly(made)
    assert time.monotonic() - began < 30
    assert checkpoints(out)[-1] == "checkpoint-2"
    monkeypatch.delenv("DO")
    quietly(made, resume=True)
    assert same_weights(out, whole)


def test_the_wait_for_a_step_is_bounded(model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ending, "LEAST_WAIT_S", 0.3)
    monkeypatch.setattr(ending, "ECHO_S", 0.05)
    do(monkeypatch, file, "SIGTERM+60", 1)
    began = time.monotonic()
    with pytest.raises(RunStopped, match="in the middle of a step"):
        quietly(short_recipe(model, tmp_path / "run", OWN, file=file))
    assert time.monotonic() - began < 30


def test_a_signal_in_an_evaluation_ends_after_it(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluation = ("eval={task: sums, size: 4, samples: 1, at: [2, 3], before: false}", "trainer.save_steps=100", OWN)
    more = ("trainer.per_device_eval_batch_size=4", "trainer.num_generations_eval=1")
    whole, out = tmp_path / "whole", tmp_path / "run"
    quietly(short_recipe(model, whole, *evaluation, *more, file=file))
    do(monkeypatch, file, "SIGTERM", 2, WHEN="evaluation")  # the call after the first rollout's: after step 2
    with pytest.raises(RunStopped, match="after step 2, saved in checkpoint-2"):
        quietly(short_recipe(model, out, *evaluation, *more, file=file))
    assert [row["kind"] for row in rows(out)] == ["train", "train", "eval"]
    monkeypatch.delenv("DO")
    quietly(short_recipe(model, out, *evaluation, *more, file=file), resume=True)
    assert same_weights(out, whole)
    assert rows(out) == rows(whole)


def test_a_signal_outside_training_ends_at_once(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = entrl.runs.evaluate.evaluate_run

    def signalled(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    made = short_recipe(model, tmp_path / "run", "eval={task: sums, size: 4, samples: 1}")
    with monkeypatch.context() as patch:
        patch.setattr(entrl.runs.evaluate, "evaluate_run", signalled)
        with pytest.raises(RunStopped, match=r"stopped by SIGTERM outside of training; .*resume=true"):
            quietly(made)
    assert manifest(tmp_path / "run")["status"] == "interrupted"
    quietly(made, resume=True)
    assert manifest(tmp_path / "run")["status"] == "finished"


def test_what_is_saved_for_a_signal_is_enough_to_go_on_from(
    model: str, file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, weights_only = tmp_path / "run", ("trainer.save_strategy=no", "trainer.save_only_model=true", OWN)
    do(monkeypatch, file, "SIGTERM", 1)
    with pytest.raises(RunStopped, match="after step 1"):
        quietly(short_recipe(model, out, *weights_only, file=file))
    monkeypatch.delenv("DO")
    quietly(short_recipe(model, out, *weights_only, file=file), resume=True)
    assert same_weights(out, whole)


def test_a_signal_that_is_ignored_stays_ignored(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """nohup, and a shell's `&`, ignore Ctrl-C for what they start."""
    do(monkeypatch, file, "SIGINT", 1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        quietly(short_recipe(model, tmp_path / "run", "trainer.max_steps=2", OWN, file=file))
    finally:
        signal.signal(signal.SIGINT, before)
    assert manifest(tmp_path / "run")["status"] == "finished"


def test_a_forked_worker_ends_as_if_nobody_listened():
    with ending.Ending().listening():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_ctrl_c_before_a_run_begins_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("entrl.runs.recipe.load_recipe", interrupted)
    assert main(["train", str(RECIPE)]) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_real_process_ends_with_the_signals_code(number: signal.Signals, code: int, model: str, tmp_path: Path):
    out = tmp_path / "run"
    line = [str(RECIPE), *words(model, out, "trainer.max_steps=2000", "trainer.save_steps=1000")]
    process = start("train", *line)
    while not (out / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    step = rows(out)[-1]["step"]
    assert f"stopped by {number.name} after step {step}, saved in checkpoint-{step}" in error
    assert "Traceback" not in error


@pytest.mark.multiprocess
@pytest.mark.parametrize("who", ["one rank", "launcher"])
def test_two_ranks_stop_together_and_go_on(who: str, model: str, file: Path, tmp_path: Path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    line = [str(file), *words(model, out, "world_size=2", "trainer.save_steps=100", OWN)]
    run = command("train", *line, processes=2)
    asked = {"DO": "SIGTERM" if who == "one rank" else "4", "CALL": "2", "ONLY": "1"}
    process = subprocess.Popen(run, env={**os.environ, **asked}, text=True, stderr=subprocess.PIPE)
    if who == "launcher":
        while not (out / "metrics.jsonl").is_file() or len(rows(out)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # while the ranks are in the second rollout, rank 1 in its long reward
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert error.count("stopped by SIGTERM after step 3, saved in checkpoint-3") == 1, error
    assert (manifest(out)["status"], checkpoints(out)) == ("interrupted", ["checkpoint-3"])
    subprocess.run([*run, "resume=true"], check=True, timeout=300)
    other = [word.replace(str(out), str(whole)) for word in line]
    subprocess.run(command("train", *other, processes=2), check=True, timeout=300)
    assert same_weights(out, whole)
    assert rows(out) == rows(whole)


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file_limit() -> Iterator[None]:
    """Takes back what a test set as the longest file this process may write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["optimizer.pt", "model.safetensors", "metrics.jsonl"])
def test_a_file_that_cannot_be_written_is_said_in_words(
    what: str, model: str, file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_limit: None
):
    """A limit on the length of files in the place of a full disk: both are errors of the write call."""
    out = tmp_path / "run"
    do(monkeypatch, file, "SIGTERM", 1)
    made = short_recipe(model, out, OWN, file=file)
    with pytest.raises(RunStopped):
        quietly(made)
    monkeypatch.delenv("DO")
    size = (whole / "metrics.jsonl" if what == "metrics.jsonl" else whole / "checkpoints/checkpoint-4" / what).stat()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size.st_size - 1, hard))
    with pytest.raises(
        CannotWrite, match=r"^cannot write .*MiB are free there\. Make room .*resume=true goes on"
    ) as at:
        quietly(made, resume=True)
    assert str(out) in str(at.value)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    quietly(made, resume=True)
    assert same_weights(out, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(model: str, whole: Path, file: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]):
    ballast = small_disk / "ballast"
    needed = sum(p.stat().st_size for p in (whole / "checkpoints" / "checkpoint-1").rglob("*"))
    ballast.write_bytes(b"x" * (2**22 - int(1.7 * needed) - 40_000))  # room for one checkpoint and a half
    line = ["train", str(file), *words(model, small_disk / "run", OWN)]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "cannot write" in said
    assert str(small_disk / "run") in said
    assert "resume=true goes on from the newest whole checkpoint" in said
    assert "Traceback" not in said
    ballast.unlink()
    assert main([*line, "resume=true"]) == 0
    assert "from checkpoint-1" in capsys.readouterr().out
    assert same_weights(small_disk / "run", whole)


def test_a_disk_that_is_read_only(model: str, small_disk: Path, capsys: pytest.CaptureFixture[str]):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["train", str(RECIPE), *words(model, small_disk / "run")]) == 2
    assert f"cannot write {small_disk}/run: Read-only file system" in capsys.readouterr().err


# --- ranks --------------------------------------------------------------------------------------------------------

WRAPPED = """
import os, sys
from entrl.cli.main import main
rank = os.environ["RANK"]
os.environ["ROWS"] = os.environ[f"ROWS_{rank}"]
os.environ["MODEL"] = os.environ[f"MODEL_{rank}"]
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.multiprocess
def test_a_reward_that_fails_on_rank_1_says_so_with_its_rank(model: str, file: Path, tmp_path: Path):
    out = tmp_path / "run"
    run = command("train", str(file), *words(model, out, "world_size=2", OWN), processes=2)
    asked = {"DO": "raise", "CALL": "2", "ONLY": "1"}
    done = subprocess.run(run, env={**os.environ, **asked}, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode != 0
    cause = "rank 1: error: reward 'reward' raised RuntimeError: boom on purpose"
    assert done.stderr.count(cause) == 1, done.stderr
    line = done.stderr[done.stderr.index(cause) :].split("\n")[0]
    source = (tmp_path / "signalling.py").read_text().split("\n")
    number = next(n for n, text in enumerate(source, start=1) if "raise RuntimeError" in text)
    assert line.endswith(f"(at {tmp_path / 'signalling.py'}:{number})"), line
    lost = done.stderr.find("rank 0: ended with the other ranks")
    assert lost == -1 or lost > done.stderr.index(cause)  # the launcher may end rank 0 before it notices
    assert "gloo" not in done.stderr[: done.stderr.index(cause)]


@pytest.mark.multiprocess
@pytest.mark.parametrize("what", ["ROWS", "MODEL"])
def test_a_rank_that_cannot_read_its_files_stops_all(what: str, model: str, file: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(16)))
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    there = {"ROWS": str(tmp_path / "rows.jsonl"), "MODEL": model}
    ranks = {f"{name}_{rank}": value for name, value in there.items() for rank in (0, 1)}
    ranks[f"{what}_1"] = str(tmp_path / "missing")
    arguments = words("$MODEL", tmp_path / "run", "world_size=2", OWN, "data={task: 'jsonl:$ROWS'}")
    run = command("train", str(file), *arguments, processes=2)
    run[-len(arguments) - 4 : -len(arguments) - 2] = [str(tmp_path / "wrapped.py")]  # in place of -m entrl
    began = time.monotonic()
    done = subprocess.run(
        run, env={**os.environ, **ranks}, text=True, capture_output=True, timeout=300, check=False, cwd=ROOT
    )
    assert done.returncode != 0
    assert time.monotonic() - began < 120
    assert done.stderr.count("rank 1: error: ") == 1, done.stderr
    assert "missing" in done.stderr.split("rank 1: error: ")[1].split("\n")[0]
    assert "rank 0: ended with the other ranks (rank 1 failed: " in done.stderr
    assert "Traceback" not in done.stderr.split("rank 1: error: ")[0]
