"""The file of pass rates: what is not its own stays as it is, and what a kill cut off is passed over."""

import json
import os

import pytest

from entrl.curriculum.pass_rates import Group, PassRateFile

P = "p#0123456789abcdef"  # problem_id and the digest of its prompt
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
