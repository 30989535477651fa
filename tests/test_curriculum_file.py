"""The file of pass rates: what is not its own stays as it is, and what a kill cut off is passed over."""

import json
import os
import subprocess
import sys
import threading

import pytest

from entrl.curriculum import pass_rates
from entrl.curriculum.band import Band
from entrl.curriculum.course import Course
from entrl.curriculum.pass_rates import Group, PassRateFile, problem_key
from entrl.errors import CannotWrite
from entrl.tasks import load_task

P, Q = "p#0123456789abcdef", "q#0123456789abcdef"  # problem_id and the digest of its prompt
START = '{"run": "a", "start": true}\n'
LINE = json.dumps({"run": "a", "rollout": 0, "groups": [[P, 8, 1]]})
FOREIGN = {
    "no_line_feed": b"my only copy of these notes",
    "a_foreign_tail": (START + LINE + "\nand my notes").encode(),
    "foreign_above": b'my notes\n{"run": "a"',
    "pretty_json": b'[\n{"a": 1},\n{"a": 2}\n]',
    "other_json": b'{"a": 1}',
    "no_text": b"\xff\xfe\x00\x01\n",
    "not_a_number": b'{"run": "x", "rollout": 1, "groups": [["p#0123456789abcdef", 8, NaN]]}\n',
    "passes_above_trials": b'{"run": "a", "rollout": 0, "groups": [["p#0123456789abcdef", 2, 3]]}\n',
    "no_digest_of_the_prompt": b'{"run": "a", "rollout": 0, "groups": [["p", 2, 1]]}\n',
    "a_list": b"[1]\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_its_own_is_refused_and_stays(content, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    mine = PassRateFile(file, run="b")
    words = r"notes\.txt:\d+ is no line of pass rates .* name another curriculum\.file"
    for use in (mine.others, lambda: mine.append(0, [Group(P, 8, 1)], start=True)):
        with pytest.raises(ValueError, match=words):
            use()
        assert file.read_bytes() == content


def test_every_cut_is_read_past_and_mended_by_the_next_writer_alone(tmp_path):
    file = tmp_path / "rates.jsonl"
    whole = (START + LINE.replace(P, "ä" + P) + "\n").encode()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        reader, writer = (PassRateFile(file, run=run) for run in "bc")
        seen = [[Group("ä" + P, 8, 1)]] if length >= len(whole) - 1 else []  # whole, but for its line feed
        assert reader.others() == seen
        assert file.read_bytes() == whole[:length]
        writer.append(0, [Group(P, 8, 2)], start=True)
        assert reader.others() == [*seen, [Group(P, 8, 2)]]
        for line in file.read_text().splitlines():
            json.loads(line)


def test_a_later_rollout_mends_what_another_run_left_cut(tmp_path):
    file = tmp_path / "rates.jsonl"
    mine = PassRateFile(file, run="b")
    mine.append(0, [Group(P, 8, 1)], start=True)
    long = '{"run": "a", "rollout": 0, "groups": [["' + 300_000 * "x"  # several blocks
    file.write_text(file.read_text() + long)
    mine.append(1, [Group(P, 8, 2)], start=False)
    assert PassRateFile(file, run="c").others() == [[Group(P, 8, 1)], [Group(P, 8, 2)]]
    file.write_text(file.read_text() + "somebody's notes")
    with pytest.raises(ValueError, match=r"rates\.jsonl:4 is no line of pass rates"):
        mine.append(2, [Group(P, 8, 2)], start=False)
    assert file.read_text().endswith("somebody's notes")


def test_reading_needs_no_right_to_write(tmp_path):
    file = tmp_path / "rates.jsonl"
    file.write_text(START + LINE + "\n")
    file.chmod(0o444)
    before = os.stat(file)
    assert PassRateFile(file, run="b").others() == [[Group(P, 8, 1)]]
    assert os.stat(file) == before


def test_the_file_gives_what_other_runs_found(tmp_path):
    file = tmp_path / "rates.jsonl"
    a, b = PassRateFile(file, run="a"), PassRateFile(file, run="b")
    assert a.others() == []
    a.append(0, [Group(P, 8, 1)], start=True)
    b.append(0, [Group(P, 8, 2)], start=True)
    a.append(1, [Group(Q, 8, 3)], start=False)
    assert b.others() == [[Group(P, 8, 1)], [Group(Q, 8, 3)]]
    assert a.others() == [[Group(P, 8, 2)]]
    assert len(file.read_text().splitlines()) == 5


def test_a_rollout_that_is_made_again_counts_once_and_a_new_start_forgets(tmp_path):
    a, other = (PassRateFile(tmp_path / "rates.jsonl", run=name) for name in ("a", "other"))
    a.append(0, [Group(P, 8, 1)], start=True)
    a.append(1, [Group(P, 8, 2)], start=False)
    a.append(1, [Group(P, 8, 3)], start=False)  # resumed before it
    assert other.others() == [[Group(P, 8, 1)], [Group(P, 8, 3)]]
    a.append(0, [Group(P, 8, 4)], start=True)  # started over
    assert other.others() == [[Group(P, 8, 4)]]


def test_problems_of_two_files_with_the_same_line_numbers_do_not_inherit_from_each_other(tmp_path):
    sums = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)]
    inserted = [sums[0], {"prompt": "9+9=", "answer": "18"}, *sums[1:]]
    courses = []
    for name, problems in (("a", sums), ("b", inserted), ("c", sums)):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        rows = load_task(f"jsonl:{data}", split="train")
        assert rows["problem_id"][0] == "line-1"
        courses.append(Course(Band(), file=PassRateFile(tmp_path / "shared", run=name)).bind(rows, seed=0))
    for row in range(4):
        courses[0].record([courses[0].code(f"line-{row + 1}")] * 2, [1.0, 0.0], group_size=2, write=True)
    for course, known in zip(courses[1:], ([2, 0, 0, 0, 0], [2, 2, 2, 2]), strict=True):
        course.begin(course.file.others())
        assert course.prompts().trials_P.tolist() == known


def test_what_is_asked_is_the_digest_of_text_and_messages():
    messages = [{"role": "user", "content": "1+1="}]
    keys = [problem_key("p", [asked]) for asked in ("1+1=", messages, [{**messages[0], "content": "1+2="}])]
    assert len(set(keys)) == 3
    assert keys[1] == problem_key("p", [[dict(reversed(messages[0].items()))]])
    assert all(key.startswith("p#") and len(key) == 18 for key in keys)


HOLDER = """import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the lock of `rates.jsonl` until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "rates.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_lock_is_waited_for_and_said(holder, tmp_path, capsys):
    file = PassRateFile(tmp_path / "rates.jsonl", run="a")
    threading.Timer(1.5, lambda: holder.communicate("\n")).start()
    file.append(0, [Group(P, 8, 1)], start=True)
    said = f"waiting for the lock of {file.path}, held by another run\n"
    assert capsys.readouterr().err == said
    assert PassRateFile(file.path, run="b").others() == [[Group(P, 8, 1)]]


def test_a_lock_that_is_never_given_up_is_an_error(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(pass_rates, "PATIENCE_S", 0.1)
    with pytest.raises(CannotWrite, match=r"rates\.jsonl has been locked by another run for 0 s; end the process"):
        PassRateFile(tmp_path / "rates.jsonl", run="a").append(0, [Group(P, 8, 1)], start=True)
    assert (tmp_path / "rates.jsonl").read_bytes() == b""


def test_reading_waits_for_no_lock(holder, tmp_path):
    (tmp_path / "rates.jsonl").write_text(START + LINE + "\n")
    assert PassRateFile(tmp_path / "rates.jsonl", run="b").others() == [[Group(P, 8, 1)]]


def test_checking_makes_nothing_and_names_what_is_in_the_way(tmp_path):
    good = tmp_path / "new" / "folder" / "rates.jsonl"
    PassRateFile(good, run="a").check()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path, words in ((tmp_path / "file" / "rates.jsonl", "file is not a folder"), (tmp_path, "Is a directory")):
        with pytest.raises(
            ValueError, match=rf"curriculum\.file .* cannot be kept: .*{words}; name a file in a folder"
        ):
            PassRateFile(path, run="a").check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="may not be written"):
        PassRateFile(tmp_path / "rates.jsonl", run="a").check()
