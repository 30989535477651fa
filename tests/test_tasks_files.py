"""Problem files as people have them, and every reader of JSON lines: what is kept, what is refused by line."""

import csv
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from entrl.report.read import read_json_lines
from entrl.runs.folder import append_lines
from entrl.runs.log_lengths import cut_logs, note_logs
from entrl.settings.json_lines import json_lines, numbered_lines
from entrl.tasks import FILE_TASKS, INQUIRIES, PROCEDURAL, is_endless, load_task, task_names
from entrl.teach.answer_files import read_answers
from entrl.verify.judge import FILE_KINDS, KINDS
from entrl_lab.replicate.folders import rows as metric_rows
from entrl_lab.replicate.summary import training_end

ROW = {"prompt": "1+1=", "answer": "2"}
SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"  # what str.splitlines cuts at and a JSON string may hold


def write(folder: Path, records: list[Any], name: str = "mine.jsonl") -> str:
    """A task name; strings are written as they are, other records as JSON with its characters unescaped."""
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{name.rpartition('.')[2]}:{folder / name}"


def load(folder: Path, *records: Any, **options: Any) -> Any:
    return load_task({"task": write(folder, list(records)), **options})


# --- lines and encodings (F17, F20) -------------------------------------------------------------------------------


def test_lines_end_at_line_feeds_alone(tmp_path: Path):
    text = json.dumps({"t": SEPARATORS}, ensure_ascii=False).replace("\\u000b", "\x0b").replace("\\f", "\x0c")
    file = tmp_path / "a.jsonl"
    file.write_bytes(f"{text}\n\n{text}\r\n{text}".encode())
    assert list(numbered_lines(file)) == [(1, text), (3, text), (4, text)]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_every_reader_keeps_lines_whole(tmp_path: Path, character: str):
    text = f"a{character}b"
    row = {"kind": "train", "step": 1, "tokens": 1, "seconds": 1, "note": text}
    file = tmp_path / "metrics.jsonl"
    append_lines(file, [row, {**row, "step": 2}])
    assert character in file.read_text()  # written as it is, not escaped
    assert [r["note"] for _, r in json_lines(file)] == [text, text]
    assert [r["note"] for r in metric_rows(tmp_path)] == [text, text]
    assert training_end(tmp_path)["tokens"] == 1.0
    assert [r["note"] for r in read_json_lines(file, [])] == [text, text]
    append_lines(tmp_path / "answers.jsonl", [{"problem_id": "1", "prompt": text, "completion": "c"}])
    assert read_answers(tmp_path / "answers.jsonl")[0]["prompt"] == text
    assert load(tmp_path, {**ROW, "prompt": text})["prompt"] == [text]


def test_a_resumed_run_drops_only_the_half_written_line(tmp_path: Path):
    file = tmp_path / "completions.jsonl"
    append_lines(file, [{"step": 0, "text": "é\u2028"}])
    note_logs(tmp_path, tmp_path)
    with file.open("ab") as half:
        half.write('{"step": 1, "text": "é'.encode()[:-1])  # killed inside a character
    cut_logs(tmp_path, tmp_path, say=print)
    assert [row for _, row in json_lines(file)] == [{"step": 0, "text": "é\u2028"}]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf%s\n%s\n",
        b"%s\r\n%s\r\n",
        b"%s\r%s\r",
        b"%s\n\n%s",
        b"\xef\xbb\xbf%s\n\xef\xbb\xbf%s\xef\xbb\xbf\n",
    ],
    ids=["bom", "crlf", "cr", "blank lines", "several marks"],
)
def test_encodings_that_are_read(tmp_path: Path, data: bytes):
    one, two = (json.dumps({**ROW, "prompt": p}).encode() for p in ("a", "b"))
    (tmp_path / "a.jsonl").write_bytes(data % (one, two))
    assert load_task(f"jsonl:{tmp_path / 'a.jsonl'}")["prompt"] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (json.dumps(ROW).encode("utf-16"), "is UTF-16, not UTF-8 text; convert it: iconv -f UTF-16"),
        (json.dumps(ROW).encode("utf-16-le"), "is UTF-16 without a mark.* iconv -f UTF-16LE"),
        (json.dumps(ROW).encode("utf-32"), "is UTF-32.* iconv -f UTF-32"),
        (gzip.compress(json.dumps(ROW).encode(), mtime=0), "is compressed with gzip.* gunzip"),
        (b'{"prompt": "a", "answer": "1"}\n{"prompt": "\xe9"}', r"a.jsonl:2 is not UTF-8.* iconv -f LATIN1"),
        (b"[\n" + json.dumps(ROW).encode() + b"\n]", "a.jsonl:1 is not JSON.* json:PATH"),
        (f"[{json.dumps(ROW)}]".encode(), "must be a JSON object, got list; .* json:PATH"),
        (json.dumps(ROW).encode() + b",\n", "without commas between them"),
        (json.dumps(ROW, indent=1).encode(), "One whole object a line"),
        (b'{"prompt": "a", "answer": NaN}', "a.jsonl:1 is not JSON: NaN is no JSON number; write null"),
        (b'{"prompt": "a", "answer": -Infinity}', "-Infinity is no JSON number"),
        (b'{"prompt": "a", "answer": 1e999}', "1e999 is beyond the range"),
        (b'{"prompt": "a", "answer": 1e-999999999}', "1e-999999999 is beyond the range"),
        (b'{"prompt": "\\ud800", "answer": "1"}', "a.jsonl:1 is not JSON.*surrogates"),
        (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", "a.jsonl:1 is not JSON.*4300 digits"),
        (b"[" * 100_000, "a.jsonl:1 is not JSON"),
    ],
)  # fmt: skip
def test_files_that_are_refused_in_words(tmp_path: Path, data: bytes, match: str):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=match):
        load_task(f"jsonl:{tmp_path / 'a.jsonl'}")


# --- the other kinds of file (F20) --------------------------------------------------------------------------------


def written(folder: Path, kind: str, records: list[dict[str, Any]]) -> str:
    file = folder / f"a.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, list(records[0]))
            table.writeheader()
            table.writerows(records)
    elif kind == "parquet":
        write_table(pyarrow.Table.from_pylist(records), file)
    else:
        file.write_text(json.dumps(records, indent=1) if kind == "json" else "\n".join(map(json.dumps, records)))
    return f"{kind}:{file}"


@pytest.mark.parametrize("kind", FILE_TASKS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str):
    records = [
        {"prompt": 'a "b", c\nd\u2028', "answer": "2", "verifier": "exact", "n": 3, "x": 0.5, "s": "007"},
        {"prompt": "b", "answer": None, "verifier": None, "n": None, "x": 2.0, "s": "1"},
    ]
    found: Any = load_task(written(tmp_path, kind, records))
    plain = [{k: row[k] for k in records[0]} for row in found]
    kinds = [{"verifier": json.dumps({"kind": name})} for name in ("exact", "math")]
    assert plain == [record | kind for record, kind in zip(records, kinds, strict=True)]
    assert [type(v) for v in found["x"]] == [float, float]
    assert len(set(found["problem_id"])) == 2


def test_a_csv_of_pandas_loses_its_index_and_no_line_number(tmp_path: Path):
    (tmp_path / "a.csv").write_text('\ufeff,prompt,answer\r\n0,"two\r\nlines",1\r\n\r\n1,b,2\r\n')
    found = load_task(f"csv:{tmp_path / 'a.csv'}")
    assert found["prompt"] == ["two\r\nlines", "b"]
    assert found["problem_id"] == ["line-2", "line-5"]
    assert set(found.column_names) == {"prompt", "answer", "verifier", "problem_id", "level"}


@pytest.mark.parametrize(
    ("task", "text", "match"),
    [
        ("csv", "prompt,answer\na,1\nb\n", "a.csv:3 has 1 cells, the header 2; quote cells"),
        ("csv", "prompt,answer\na,1,2\n", "a.csv:2 has 3 cells"),
        ("csv", 'prompt,answer\n"a,1\n', "a.csv:2 is not CSV"),
        ("csv", "prompt,answer,answer\na,1,2\n", "has two columns 'answer'"),
        ("csv", "prompt;answer\na;1\n", "a.csv:2 has no column 'prompt' and no 'answer'"),
        ("jsonl", "prompt,answer\na,1\n", "looks like CSV: write csv:PATH"),
        ("json", '{"prompt": "a", "answer": "1"}', "must be a JSON array of objects, got dict"),
        ("json", '["a"]', "item 1, must be a JSON object, got str"),
        ("parquet", "prompt,answer\na,1\n", "is no parquet file"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, task: str, text: str, match: str):
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_task(f"{task}:{file}")


def test_a_parquet_file_as_json_lines(tmp_path: Path):
    file = written(tmp_path, "parquet", [ROW]).removeprefix("parquet:")
    with pytest.raises(ValueError, match="is a parquet file, not UTF-8 text; write parquet:PATH"):
        load_task(f"jsonl:{file}")
    with pytest.raises(ValueError, match=r"For a file of your own write parquet:"):
        load_task(file)


def test_parquet_numbers_are_text_as_answers(tmp_path: Path):
    records = [{"prompt": p, "answer": a} for p, a in (("a", Decimal("1.50")), ("b", None))]
    assert load_task(written(tmp_path, "parquet", records))["answer"] == ["1.50", None]
    with pytest.raises(ValueError, match="row 1, column 'answer' is nan; write null"):
        load_task(written(tmp_path, "parquet", [{**ROW, "answer": float("nan")}]))


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is a folder; name one file"):
        load_task(f"jsonl:{tmp_path}")


# --- golds (F13) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("null", None), ('""', None), ('"  "', None), ("21", "21"), ("-0.50", "-0.50"), ("5.0", "5.0"),
        ("1e-5", "0.00001"), ("1.5E3", "1500"), ("0e5", "0"), ("9" * 30, "9" * 30),
        ('"1e-5"', "1e-5"), ('"None"', "None"), ('" 7"', " 7"),
    ],
)  # fmt: skip
def test_golds_keep_their_value(tmp_path: Path, value: str, gold: str | None):
    found = load(tmp_path, ROW, f'{{"prompt": "b", "answer": {value}}}')
    assert found["answer"] == ["2", gold]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("true", r"mine.jsonl:2 column 'answer' is a boolean \(true\).* in quotes"),
        ('["2", "2.0"]', r"mine.jsonl:2 column 'answer' is a list .*alternatives are not supported"),
        ('{"value": "2"}', "mine.jsonl:2 column 'answer' is an object .* as text"),
    ],
)
def test_golds_that_are_none(tmp_path: Path, value: str, match: str):
    with pytest.raises(ValueError, match=match):
        load(tmp_path, ROW, f'{{"prompt": "b", "answer": {value}}}')


def test_levels_and_ids_that_are_null_are_absent(tmp_path: Path):
    found = load(tmp_path, {**ROW, "level": None, "problem_id": None}, {**ROW, "level": 1.5, "problem_id": 7})
    assert found["level"] == ["", "1.5"]
    assert found["problem_id"] == ["line-1", "7"]
    with pytest.raises(ValueError, match=r"mine.jsonl:1 column 'level' is a list"):
        load(tmp_path, {**ROW, "level": [1]})


def test_an_answer_file_with_nulls(tmp_path: Path):
    """A null id is none, and not the id None that all such rows share; a null level or source is absent."""
    answer = {"problem_id": 1, "prompt": "p", "completion": "c"}
    write(tmp_path, [{**answer, "level": None, "source": None, "correct": None}], "nulls.jsonl")
    assert read_answers(tmp_path / "nulls.jsonl") == [{**answer, "problem_id": "1", "correct": None}]
    write(tmp_path, [{"problem_id": None, "prompt": "p", "completion": "c"}], "answers.jsonl")
    with pytest.raises(ValueError, match=r"answers.jsonl:1 lacks problem_id"):
        read_answers(tmp_path / "answers.jsonl")


# --- prompts (F14, F20) -------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "1+1="}
TOLD = [USER, {"role": "assistant", "content": "2"}]


def test_chat_rows(tmp_path: Path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}]
    system = {"role": "system", "content": "Add."}
    prompts = [
        [USER],
        [system, USER],
        [system, {"role": "user", "content": parts}],
        [*TOLD, USER],
        [{**USER, "name": None}],
    ]
    found = load(tmp_path, *({**ROW, "prompt": p} for p in prompts))
    assert found["prompt"] == [[USER], [system, USER], [system, USER], [*TOLD, USER], [USER]]


def test_a_turn_that_gives_the_answer_away(tmp_path: Path):
    row = {"messages": TOLD, "answer": "2"}
    with pytest.raises(ValueError, match=r"column 'messages' ends with an assistant's turn.* drop_last_turn: true"):
        load(tmp_path, row, prompt_column="messages")
    found = load(tmp_path, row, prompt_column="messages", drop_last_turn=True)
    assert found["prompt"] == [[USER]]
    with pytest.raises(ValueError, match="ends with an assistant's turn"):
        load(tmp_path, {**ROW, "prompt": TOLD[1:]}, drop_last_turn=True)


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (None, "mine.jsonl:2 column 'prompt' is empty"),
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is empty"),
        (123, r"mine.jsonl:2 column 'prompt' is a number \(123\), neither text nor a list of messages"),
        (True, "is a boolean"),
        ({"role": "user"}, "is an object"),
        ([USER], "mine.jsonl:2 has chat messages as its prompt, .*mine.jsonl:1 text; write all one way"),
        (["hello"], "message 1 needs the keys role and content, got str"),
        ([{"from": "human", "value": "1"}], r"needs the keys role and content, got \['from', 'value'\]"),
        ([{"role": "human", "content": "1"}], "has the role 'human'; known: system"),
        ([{"role": "user", "content": None}], "has a NoneType"),
        ([{"role": "user", "content": " "}], "ends with a user turn ' '"),
        ([{"role": "system", "content": "s"}], "ends with a system turn"),
        ([{**USER, "tool_calls": [1]}], "has 'tool_calls', which is not carried"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "a part of type 'image'; only text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a part of type 'image_url'"),
    ],
)
def test_prompts_that_are_refused_by_line(tmp_path: Path, prompt: Any, match: str):
    with pytest.raises(ValueError, match=match):
        load(tmp_path, ROW, {**ROW, "prompt": prompt})


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"question": "q", "answer": "1"}, "no column 'prompt'.* Set prompt_column: \"question\""),
        ({"problem": "q", "solution": "1"}, 'prompt_column: "problem". Set answer_column: "solution"'),
        ({" prompt": "q", "Answer": "1"}, 'Set prompt_column: " prompt". Set answer_column: "Answer"'),
        ({"promt": "q", "answer": "1"}, "Did you mean 'promt'"),
    ],
)
def test_columns_under_another_name(tmp_path: Path, record: dict[str, str], match: str):
    with pytest.raises(ValueError, match=match):
        load(tmp_path, record)


def test_ids_that_occur_twice_are_named_by_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"jsonl:3 problem_id 'x' occurs more than once, first in .*jsonl:1"):
        load(tmp_path, {**ROW, "problem_id": "x"}, ROW, {**ROW, "problem_id": "x"})


# --- the verifier column (F18) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "spec"),
    [
        ("exact", {"kind": "exact"}),
        ({"kind": "choice", "letters": "ABCDE"}, {"kind": "choice", "letters": "ABCDE"}),
        ('{"kind": "math"}', {"kind": "math"}),
        (None, {"kind": "choice"}),
    ],
)
def test_verifiers_of_a_file(tmp_path: Path, value: Any, spec: dict[str, str]):
    found = load(tmp_path, ROW, {**ROW, "verifier": value}, verifier="choice")
    assert [json.loads(v) for v in found["verifier"]] == [{"kind": "choice"}, spec]
    assert set(FILE_KINDS) < set(KINDS)


@pytest.mark.parametrize(
    "value",
    ["", "maths", ["math"], 3, {}, {"kind": "maths"}, {"kind": ["math"]}, '{"kind"', {"letters": "AB"}, "reasoning_gym",
     {"kind": "math", "letters": "AB"}, {"kind": "choice", "letter": "AB"}, {"kind": "choice", "letters": ["A"]}],
)  # fmt: skip
def test_verifiers_that_are_refused(tmp_path: Path, value: Any):
    with pytest.raises(ValueError, match=r"mine.jsonl:2: .*(column 'verifier').*") as error:
        load(tmp_path, ROW, {**ROW, "verifier": value})
    assert "math" in str(error.value) or "letters" in str(error.value) or "JSON" in str(error.value)


def test_the_option_is_checked_as_the_column(tmp_path: Path):
    with pytest.raises(ValueError, match=r"option verifier of the task.* math, exact, choice, code"):
        load(tmp_path, ROW, verifier="maths")


def test_which_tasks_generate_without_end():
    endless = {*PROCEDURAL, *INQUIRIES, "reasoning_gym:NAME"}
    assert {name for name in task_names() if is_endless(name)} == endless
    assert {"sums", "twenty_questions", "diagram"} < endless
