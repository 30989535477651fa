"""The run folder: where it lies, who may write in it, and what an overwrite deletes."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from short_run import RECIPE, manifest, quietly, rows, short_recipe, start, words
from tiny_model import saved_model

from entrl.cli.main import main
from entrl.evaluation.records import OURS, Partial
from entrl.runs.folder import RunFolder, write_json, write_text
from entrl.runs.lock import LOCK, FolderLock
from entrl.runs.ours import clear, read_manifest
from entrl.runs.recipe import load_recipe
from entrl.runs.under_way import Run
from entrl.settings.paths import expand_path, expand_paths
from entrl.teach.cold_start.spec import load_cold_start
from entrl.teach.offline.spec import load_offline
from entrl.trainers.shared.completeness import Marker, fingerprints, mark
from entrl_lab.replicate.study import load_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


# --- paths --------------------------------------------------------------------------------------------------------


def test_every_path_of_a_recipe_is_expanded(home: Path):
    overrides = [
        "trainer.output_dir=~/runs/a/x",
        "model={path: '~/m', tokenizer: '${SCRATCH}/t'}",
        "data={task: 'jsonl:$SCRATCH/rows.jsonl', args: {tables: 'loaded:~/t.json'}}",
        "eval={task: 'jsonl:~/held.jsonl'}",
        "rewards=[{use: '$SCRATCH/mine.py:short', args: {word_file: '~/words', stop: '$5'}}]",
        "controllers=[{use: guard, args: {controller: {use: '~/c.py:mine'}}}]",
        "trainer.vllm_adapter_dir=$SCRATCH/adapters",
    ]
    scratch = os.environ["SCRATCH"]
    made = load_recipe(RECIPE, overrides)
    assert made.run_dir == home / "runs" / "a" / "x"
    assert (made.model.path, made.model.tokenizer) == (f"{home}/m", f"{scratch}/t")
    assert made.data.task == f"jsonl:{scratch}/rows.jsonl"
    assert made.data.args["tables"] == f"loaded:{home}/t.json"
    assert made.eval is not None
    assert made.eval.task == f"jsonl:{home}/held.jsonl"
    assert made.rewards[0].use == f"{scratch}/mine.py:short"
    assert made.rewards[0].args == {"word_file": f"{home}/words", "stop": "$5"}  # a `$` that is no path stays
    assert made.controllers[0].args["controller"]["use"] == f"{home}/c.py:mine"
    assert made.trainer["vllm_adapter_dir"] == f"{scratch}/adapters"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("$NOWHERE/x", "the variable NOWHERE is not set"),
        ("a/${NOWHERE}", "the variable NOWHERE is not set"),
        ("~nobody-here/x", "~nobody-here is nobody's home here"),
    ],
)
def test_what_cannot_be_expanded_is_refused_by_name(home: Path, path: str, says: str):
    with pytest.raises(ValueError, match=f"trainer.output_dir is .*{says}"):
        load_recipe(RECIPE, [f"trainer.output_dir={path}"])


def test_an_empty_variable_does_not_make_a_path_of_the_root(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "")
    with pytest.raises(ValueError, match="the variable SCRATCH is empty"):
        expand_path("$SCRATCH/x", "out")


def test_names_and_hub_ids_stay_as_they_are():
    content = {"model": {"path": "Qwen/Qwen3-4B"}, "task": "reasoning_gym:chain_sum", "use": "trl.rewards:accuracy"}
    assert expand_paths(content) == content


def test_a_run_lies_in_one_place(home: Path, model: str):
    out = home / "x"
    quietly(short_recipe(model, "~/x", "trainer.max_steps=1"))
    assert {p.name for p in out.iterdir()} >= {"manifest.json", "checkpoints", "model", "metrics.jsonl", LOCK}
    quietly(short_recipe(model, "$SCRATCH/x", "trainer.max_steps=1"))
    assert (Path(os.environ["SCRATCH"]) / "x" / "checkpoints").is_dir()
    assert not [p for p in home.parent.iterdir() if p.name in ("~", "$SCRATCH")]


def test_other_task_files_expand_their_paths_too(home: Path):
    recipes = RECIPE.parents[1]
    cold = load_cold_start(recipes / "ares" / "cold-start.yaml", ["out=$SCRATCH/start", "model.path=~/m"])
    assert (cold.folder, cold.model.path) == (Path(os.environ["SCRATCH"]) / "start", f"{home}/m")
    taught = load_offline(recipes / "twenty-questions" / "dpo.yaml", ["out=~/dpo"])
    assert taught.folder == home / "dpo"
    study = (recipes / "tiny-reasoner" / "study.yaml").read_text()
    (home / "study.yaml").write_text("out: ~/study\n" + "\n".join(x for x in study.split("\n") if x[:4] != "out:"))
    assert load_study(home / "study.yaml").out == home / "study"


def test_paths_on_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / "here.yaml").write_text(RECIPE.read_text())
    assert main(["plan", "~/here.yaml", "model.path=~/nowhere"]) == 1
    assert f"'{home}/nowhere' does not exist" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["report", "$NOWHERE/run"])
    assert "the variable NOWHERE is not set" in capsys.readouterr().err


# --- the lock -----------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from entrl.runs.lock import FolderLock
try:
    FolderLock(Path(sys.argv[1])).take(print)
except ValueError as error:
    print("refused", error, flush=True)
else:
    print("holds", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_second_run_is_refused_and_named_the_owner(model: str, tmp_path: Path):
    out = tmp_path / "run"
    made = short_recipe(model, out, "trainer.max_steps=1")
    quietly(made)
    other = holder(out)
    assert said(other) == "holds\n"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != LOCK}
    for how in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(ValueError, match=rf"is being written by process {other.pid} on .* since 20.*wait until"):
            quietly(made, **how)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != LOCK}
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0  # reading asks nobody
    other.kill()  # not a word of goodbye: the lock goes with its owner
    other.wait()
    quietly(made, overwrite=True)
    quietly(made, overwrite=True)  # and is given back at a run's end


def test_exactly_one_of_several_that_start_together_wins(tmp_path: Path):
    several = [holder(tmp_path / "run") for _ in range(6)]
    words = [said(process).split()[0] for process in several]
    for process in several:
        process.kill()
        process.wait()
    assert sorted(words) == ["holds"] + ["refused"] * 5


FORKING = """
import os, sys, time
from pathlib import Path
from entrl.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take(print)
if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
os.wait()
"""


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path):
    owner = subprocess.Popen([sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(said(owner))
    try:
        with pytest.raises(ValueError, match=f"is being written by process {owner.pid} "):
            FolderLock(tmp_path).take(print)
        owner.kill()
        owner.wait()
        FolderLock(tmp_path).take(print)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link; remove it"):
        FolderLock(tmp_path / "run").take(print)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
def test_two_runs_started_together_in_one_folder(model: str, tmp_path: Path):
    out = tmp_path / "run"
    # long enough that the second arrives while the first trains, however unevenly a busy machine starts them
    given = words(model, out, "overwrite=true", "trainer.max_steps=40", "trainer.save_steps=40")
    both = [start("train", str(RECIPE), *given) for _ in range(2)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    refused = next(text for text, code in ends if code == 2)
    assert "is being written by" in refused
    assert "Traceback" not in refused
    assert manifest(out)["status"] == "finished"
    assert [row["step"] for row in rows(out)] == list(range(1, 41))


# --- what is ours -------------------------------------------------------------------------------------------------


def test_a_folder_with_somebody_elses_manifest_is_left_alone(model: str, tmp_path: Path):
    """Such as a web application's, with its own model/ and checkpoints/."""
    for name in ("model/weights.bin", "checkpoints/best.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"name": "app", "icons": [], "status": "ready"}')
    before = sorted(tmp_path.rglob("*"))
    for how in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(ValueError, match=r"is no manifest of entrl: it has no entrl, config_hash"):
            quietly(short_recipe(model, tmp_path), **how)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_evaluation_s_records_go_and_what_lies_between_them_stays(tmp_path: Path):
    partial = Partial(folder=tmp_path / "eval_after.partial" / "0", settings=dict.fromkeys(OURS, 1))
    partial.prepare(print)
    assert clear(tmp_path, ["eval_after.partial"]) == []
    assert not list(tmp_path.iterdir())
    partial.prepare(print)
    for name in ("eval_after.partial/0/notes.txt", "eval_after.partial/1/rank-0.jsonl", "eval_before.partial/0/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    left = ["eval_after.partial/0", "eval_after.partial/1", "eval_before.partial/0"]
    assert clear(tmp_path, ["eval_after.partial", "eval_before.partial"]) == left
    assert [f.read_text() for f in tmp_path.rglob("*") if f.is_file()] == ["mine"] * 3


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_manifest_that_says_nothing(model: str, tmp_path: Path, content: str):
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"manifest.json is (empty|not JSON|no manifest).*move it away"):
        quietly(short_recipe(model, tmp_path), overwrite=True)
    with pytest.raises(ValueError, match=r"manifest.json"):
        read_manifest(tmp_path)
    assert (tmp_path / "model").is_dir()


def test_overwrite_keeps_what_it_did_not_write(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    made = short_recipe(model, out, "trainer.max_steps=1")
    quietly(made)
    names = ("notes.txt", "model/why.txt", "model/my_script.py", "model/tokenizer_notes.md")
    mine = [out / name for name in (*names, "checkpoints/best/weights.pt", "checkpoints/checkpoint-1-best/weights.pt")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    RunFolder(path=out).open(made, resume=False, overwrite=True)
    assert [file.read_text() for file in mine] == ["mine"] * len(mine)
    left = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert left == {*(str(file.relative_to(out)) for file in mine), LOCK}
    said = capsys.readouterr().err
    assert "not written by a run: checkpoints/best, checkpoints/checkpoint-1-best, model/my_script.py" in said


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_of_a_link_only_the_link_is_removed(model: str, tmp_path: Path, name: str):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    made = short_recipe(model, out, "trainer.max_steps=1")
    quietly(made)
    (out / name).rename(elsewhere)
    (out / name).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    quietly(made, overwrite=True)
    assert not (out / name).is_symlink()
    assert sorted(elsewhere.rglob("*")) == before


def test_weights_are_not_written_through_a_link(model: str, tmp_path: Path):
    out = tmp_path / "run"
    quietly(short_recipe(model, out, "trainer.max_steps=1"))
    (out / "model").rename(tmp_path / "kept")
    (out / "model").symlink_to(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"is a link to .*remove the link"):
        quietly(short_recipe(model, out, "trainer.max_steps=2"), resume=True)


# --- where servers listen -----------------------------------------------------------------------------------------


def test_a_requeued_job_goes_on_with_servers_on_other_hosts(model: str, tmp_path: Path):
    """launch/slurm.sh names the hosts that Slurm gave: others at each start."""

    def asked(*addresses: str):
        hosts = f"[{', '.join(addresses)}]"
        evaluated = f"eval={{task: sums, engine: {'vllm' if addresses else 'transformers'}, servers: {hosts}}}"
        return short_recipe(model, tmp_path, f"trainer.vllm_replicas={hosts}", evaluated)

    first, other, none = asked("http://a:1"), asked("http://b:1", "http://c:1"), asked()
    folder = RunFolder(path=tmp_path)

    def left(status: str) -> None:
        manifest = {"entrl": "0", "status": status, "config_hash": first.config_hash()}
        write_json(tmp_path / "manifest.json", manifest)
        write_text(tmp_path / "recipe.yaml", first.to_yaml())

    left("interrupted")
    checkpoint = folder.checkpoints / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "entrl_log.json", {})  # no line of a log yet
    files = fingerprints(checkpoint, ["entrl_log.json"])
    mark(checkpoint, Marker(step=2, world_size=1, files=files))
    assert folder.open(other, resume=True, overwrite=False) == checkpoint
    with pytest.raises(ValueError, match=r"other settings \(eval.engine, eval.servers, trainer.vllm_replicas\)"):
        folder.open(none, resume=True, overwrite=False)
    left("finished")
    write_text(tmp_path / "report.html", "")
    assert folder.is_finished(other)
    assert not folder.is_finished(none)


# --- warnings -------------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_was_warned_of(tmp_path: Path):
    """The real run's own bookkeeping, without the training between."""
    nothing: dict[str, Any] = dict.fromkeys(("recipe", "prepared", "ending", "dataset"))
    run = Run(folder=RunFolder(path=tmp_path), console=Console(quiet=True), **nothing)

    def trained():
        with run.keeping_warnings():
            for _ in range(2):
                warnings.warn("entropy fell below the band", stacklevel=1)
            run.warn("no fit of the law")

    with pytest.warns(UserWarning, match="entropy fell"):
        trained()
    expected = ["entropy fell below the band", "no fit of the law"]
    assert manifest(tmp_path)["warnings"] == expected
