"""Tables: what the words of a procedural table promise, the hand-written animals, a user's own."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrl.beliefs import (
    DuplicateHypothesis,
    EmptyHypothesisSpace,
    ExactBayes,
    InvalidDistribution,
    ShapeMismatch,
    UnknownAnswer,
)
from entrl.environments import ATTRIBUTES, NAMES, Table, animals, find_table, level_of, load_table, procedural_table
from entrl.environments.tables import FEW, FEW_NAMES, IDLE

SIZES = [(8, 8), (16, 16), (64, 48), (256, 96)]


def test_words_are_single_distinct_and_no_name_is_an_attribute():
    words = [word for level in ATTRIBUTES for word in level]
    assert len(set(NAMES)) == len(NAMES) == 320
    assert len(set(words)) == len(words)
    assert not set(NAMES) & set(words)
    assert all(word.isalpha() and word.islower() for word in (*NAMES, *words))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_procedural_tables_have_the_size_asked_for_and_distinct_rows(rows, columns, seed):
    table = procedural_table(seed, rows=rows, columns=columns)
    assert table.values.shape == (rows, columns)
    assert len(np.unique(table.values, axis=0)) == rows
    assert set(np.unique(table.values)) <= {0, 1}
    assert set(table.hypotheses) <= set(NAMES[: max(FEW_NAMES, rows)])


def test_small_tables_use_few_words():
    tables = [procedural_table(seed, rows=8, columns=8) for seed in range(200)]
    names = {name for table in tables for name in table.hypotheses}
    words = {word for table in tables for word in table.questions}
    assert len(names) <= FEW_NAMES
    assert len(words) <= 4 * FEW  # three levels and the useless words


def test_a_word_tells_its_level_and_each_level_is_half_as_frequent():
    shares: dict[int, list[float]] = {}
    for seed in range(150):
        table = procedural_table(seed, rows=64, columns=48, flip=0.0)
        for column, word in enumerate(table.questions):
            shares.setdefault(level_of(word), []).append(table.values[:, column].mean())
    for level in range(IDLE):
        assert np.mean(shares[level]) == pytest.approx(2.0 ** -(level + 1), abs=0.01)
        assert np.std(shares[level]) < 0.02, "worth the same from table to table, up to repairs of equal rows"
    assert level_of("no such word") is None


def test_useless_words_are_always_the_same_ones():
    for seed in range(60):
        table = procedural_table(seed, rows=32, columns=32)
        for column, word in enumerate(table.questions):
            if level_of(word) != IDLE:
                continue
            cells, kind = table.values[:, column], ATTRIBUTES[IDLE].index(word) % 3
            if kind < 2:
                assert (cells == (kind == 0)).all()
            else:
                others = np.delete(table.values, column, axis=1)
                assert (others != cells[:, None]).sum(0).min() <= 1


def test_taxonomy_correlates_columns():
    """Words of one level fall on whole groups, so rows agree more than independent cells would."""
    gaps = []
    for seed in range(30):
        table = procedural_table(seed, rows=64, columns=48, flip=0.0)
        deep = table.values[:, [level_of(word) in (0, 1) for word in table.questions]]
        _, sizes = np.unique(deep, axis=0, return_counts=True)
        gaps.append(len(sizes))
    assert np.mean(gaps) < 25, "64 rows fall into the 16 groups of level 1, up to repairs"


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), columns=st.integers(8, 40))
@settings(max_examples=40, deadline=None)
def test_the_id_finds_the_table_again(seed, rows, columns):
    table = procedural_table(seed, rows=rows, columns=columns)
    again = find_table(table.table_id)
    assert again.hypotheses == table.hypotheses
    assert again.questions == table.questions
    assert (again.values == table.values).all()


def test_another_flip_is_another_table_and_the_id_says_so():
    table = procedural_table(3, rows=8, columns=8, flip=0.2)
    assert table.table_id.endswith("flip=0.2")
    assert (find_table(table.table_id).values == table.values).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows must be in 1..320"),
        ({"rows": 321}, "rows must be in 1..320"),
        ({"columns": 133}, "columns in 1..132"),
        ({"rows": 16, "columns": 3}, "cannot tell 16 rows apart"),
        ({"flip": 0.5}, r"flip must be in \[0, 0.5\)"),
    ],
)
def test_sizes_that_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        procedural_table(0, **arguments)


def test_animals_are_32_x_24_distinct_and_right_about_a_few_things():
    table = animals()
    assert table.values.shape == (32, 24)
    assert len(np.unique(table.values, axis=0)) == 32
    assert len(np.unique(table.values, axis=1).T) == 24
    assert (table.values.sum(0) > 0).all()
    assert (table.values.sum(0) < 32).all()
    truth = {(name, word): bool(v) for name, row in zip(table.hypotheses, table.values, strict=True)
             for word, v in zip(table.questions, row, strict=True)}  # fmt: skip
    assert truth["zebra", "stripes"]
    assert truth["owl", "night"]
    assert not truth["ostrich", "flies"]
    assert not truth["whale", "eggs"]


def test_greedy_questions_find_every_animal():
    """Distinct rows and certain answers: entropy ends at 0, on average after at least H0 = 5 questions."""
    table, asked = animals(), []
    for target in range(32):
        bayes = ExactBayes.from_table(table)
        while (question := bayes.best_question()) is not None:
            bayes.observe(question, int(table.values[target, table.questions.index(question)]))
        assert bayes.entropy() == pytest.approx(0, abs=1e-9)
        asked.append(len(bayes.asked))
    assert 5 <= np.mean(asked) < 6


def test_likelihood_moves_the_noise_to_the_other_answers():
    """Three answers, noise 0.3: 0.7 on the cell's, 0.15 on each other."""
    table = made(values=np.array([[0], [2]]), answers=("no", "yes", "maybe"))
    np.testing.assert_allclose(table.likelihood("q", noise=0.3), [[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]])
    np.testing.assert_array_equal(table.likelihood("q"), [[1, 0, 0], [0, 0, 1]])
    with pytest.raises(InvalidDistribution, match="noise"):
        table.likelihood("q", noise=1.5)
    with pytest.raises(UnknownAnswer, match="unknown question"):
        table.likelihood("r")


def made(**changes):
    fields = {"table_id": "t", "hypotheses": ("a", "b"), "questions": ("q",), "values": np.array([[0], [1]])}
    return Table(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hypotheses": ()}, EmptyHypothesisSpace, "at least one hypothesis"),
        ({"questions": ()}, ShapeMismatch, "at least one question"),
        ({"hypotheses": ("a", " A ")}, DuplicateHypothesis, "there twice"),
        ({"hypotheses": ("a", "")}, ShapeMismatch, "not empty"),
        ({"values": np.array([[0, 1]])}, ShapeMismatch, "need 2 rows and 1 columns"),
        ({"values": np.array([[0], [2]])}, UnknownAnswer, "indices of the 2 answers"),
        ({"values": np.array([[0], [-1]])}, UnknownAnswer, "indices"),
        ({"values": np.array([[0.5], [1.0]])}, UnknownAnswer, "indices"),
        ({"prior": [0.5, 0.4]}, InvalidDistribution, "sum"),
        ({"prior": [1.0]}, ShapeMismatch, "prior of t"),
        ({"prior": [float("nan"), 1.0]}, InvalidDistribution, "prior"),
        ({"likelihoods": [[[1.0, 0.0], [0.5, 0.4]]]}, InvalidDistribution, "likelihood"),
        ({"likelihoods": [[[1.0], [1.0]]]}, ShapeMismatch, "one column for each"),
        ({"likelihoods": []}, ShapeMismatch, "0 likelihoods"),
    ],
)
def test_tables_refuse_what_makes_no_sense(changes, error, message):
    with pytest.raises(error, match=message):
        made(**changes)


def test_unknown_table_names_the_forms():
    with pytest.raises(ValueError, match="unknown table 'animal'"):
        find_table("animal")


# A user's own table


def written(folder, name, text):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return str(path)


CONTRACT = """
class Mine:
    hypotheses = ["cat", "owl"]
    questions = ["fur", "flies"]
    prior = [0.25, 0.75]

    def likelihood(self, question):
        return [[0, 1], [1, 0]] if question == "fur" else [[1, 0], [0, 1]]

    def render(self, question, answer):
        return f"{question}? {answer}"


def make():
    return Mine()
"""


def test_noise_stays_among_the_answers_that_a_question_has(tmp_path):
    """`wings` and `legs` share an alphabet: nobody is wrong about wings by saying "four"."""
    csv = "name,wings,legs,fins\ncat,no,four,no\nowl,yes,two,no\nman,no,two,no\n"
    table = load_table(written(tmp_path, "mixed.csv", csv))
    assert set(table.answers) == {"no", "yes", "two", "four"}
    order = {answer: table.answers.index(answer) for answer in table.answers}
    wings, legs, fins = (table.likelihood(question, noise=0.3) for question in table.questions)
    np.testing.assert_allclose(wings[0][[order["no"], order["yes"]]], [0.7, 0.3])
    np.testing.assert_allclose(legs[0][[order["four"], order["two"]]], [0.7, 0.3])
    np.testing.assert_allclose(fins[0][[order["no"], order["yes"]]], [0.7, 0.3])  # never yes here, and could be
    for one in (wings, legs, fins):
        np.testing.assert_allclose(one.sum(1), 1)


def test_three_ways_to_write_the_same_table(tmp_path):
    prior = [0.25, 0.75]
    full = {"hypotheses": ["cat", "owl"], "questions": ["fur", "flies"], "values": [[1, 0], [0, 1]], "prior": prior}
    rows = {"cat": {"fur": True, "flies": False}, "owl": {"flies": "yes", "fur": "No"}}
    csv = "name,fur,flies,prior\ncat, yes ,0,0.25\n\nowl,no,1,0.75\n"
    module = CONTRACT
    tables = [
        find_table("loaded:" + written(tmp_path, "full.json", full)),
        load_table(written(tmp_path, "rows.json", rows)),
        load_table(written(tmp_path, "table.csv", csv)),
        load_table(written(tmp_path, "mine.py", module) + ":make"),
    ]
    for table in tables:
        assert table.hypotheses == ("cat", "owl")
        assert table.questions == ("fur", "flies")
        np.testing.assert_array_equal(table.values, [[1, 0], [0, 1]])
        np.testing.assert_array_equal(table.likelihood("fur"), [[0, 1], [1, 0]])
    assert [None if t.prior is None else list(t.prior) for t in tables] == [prior, None, prior, prior]
    assert tables[3].render("fur", 1) == "fur? 1"
    assert tables[0].render("fur", 1) == "yes"


def test_other_answers_and_soft_likelihoods(tmp_path):
    words = load_table(written(tmp_path, "words.csv", "name,size\nant,small\ncow,large\nelk,large\n"))
    assert words.answers == ("small", "large")
    third = load_table(written(tmp_path, "third.csv", "name,swims\nant,no\ncow,sometimes\n"))
    assert third.answers == ("no", "yes", "sometimes")
    soft = {"hypotheses": ["a", "b"], "questions": ["q"], "likelihood": {"q": [[0.9, 0.1], [0.2, 0.8]]}}
    table = load_table(written(tmp_path, "soft.json", soft))
    np.testing.assert_allclose(table.likelihood("q"), [[0.9, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(table.likelihood("q", noise=0.5), [[0.5, 0.5], [0.5, 0.5]])
    assert table.values.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.json", "{", ValueError, "no JSON"),
        ("b.json", [1], ShapeMismatch, "object"),
        ("c.json", {"hypotheses": ["a"], "questions": ["q"]}, ShapeMismatch, "neither 'values' nor 'likelihood'"),
        ("d.json", {"hypotheses": "ab", "questions": ["q"]}, ShapeMismatch, "'hypotheses' must be a list"),
        ("e.json", {"hypotheses": [], "questions": ["q"], "values": []}, EmptyHypothesisSpace, "at least one"),
        ("f.json", {"hypotheses": ["a"], "questions": ["q"], "valeus": [[1]]}, ShapeMismatch, "Did you mean 'values'"),
        ("g.json", {"hypotheses": ["a"], "questions": ["q"], "values": [[1, 0]]}, ShapeMismatch, "must have 1 cells"),
        ("h.json", {"hypotheses": ["a"], "questions": ["q"], "values": [[7]], "answers": ["no", "yes"]}, UnknownAnswer,
         "row 'a', 'q': 7"),
        ("i.json", {"a": {"q": 1}, "b": {"r": 1}}, ShapeMismatch, "row 'b'"),
        ("j.json", {"a": 3}, ShapeMismatch, "row 'a' is a int"),
        ("k.json", {"hypotheses": ["a", "b"], "questions": ["q"], "likelihood": {"q": [[1, 0]]}}, ShapeMismatch, "'q'"),
        ("l.json", {"hypotheses": ["a"], "questions": ["q"], "likelihood": {}}, ShapeMismatch, "one entry"),
        ("m.json", {"hypotheses": ["a"], "questions": ["q"], "likelihood": {"q": [[0.5, 0.4]]}}, InvalidDistribution,
         "m.json"),
        ("n.csv", "name\n", ShapeMismatch, "header"),
        ("o.csv", "name,q\na,1,2\n", ShapeMismatch, "row 2 has 3 cells"),
        ("p.csv", "name,q,prior\na,1,much\n", ShapeMismatch, "prior 'much'"),
        ("q.csv", "name,q\na,1\na,0\n", DuplicateHypothesis, "twice"),
        ("r.csv", "name,q,prior\na,1,0.9\nb,0,0.9\n", InvalidDistribution, "sum"),
    ],
)  # fmt: skip
def test_bad_tables_say_where(tmp_path, name, text, error, message):
    with pytest.raises(error, match=message):
        load_table(written(tmp_path, name, text))


def test_places_without_a_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'none.json'"):
        load_table("none.json")
    with pytest.raises(ValueError, match="cannot load a table"):
        load_table("table.txt")
    with pytest.raises(ShapeMismatch, match="has no hypotheses, questions, likelihood"):
        load_table(written(tmp_path, "wrong.py", "def make():\n    return 3\n") + ":make")
