"""Environments by name: options, a user's own class, and classes that TRL would choke on."""

import pytest

from entrl.environments import InquiryEnv, load_environment


def test_load_environment_binds_options():
    factory = load_environment("twenty_questions", {"on_contradiction": "reset", "assumed_noise": 0.1})
    first, second = factory(), factory()
    assert first is not second
    assert first._on_contradiction == "reset"
    assert load_environment("twenty_questions_scored", {"gain_weight": 0.5, "assumed_noise": 0.0})()._weights[1] == 0.5


def own(folder, body):
    (folder / "mine.py").write_text(f"from entrl.environments import TwentyQuestions\n{body}")
    return "mine.py:Mine"


def test_load_environment_from_a_file(tmp_path):
    use = own(tmp_path, "class Mine(TwentyQuestions):\n    pass\n")
    assert isinstance(load_environment(use, {}, base=tmp_path)(), InquiryEnv)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("Mine = 3\n", TypeError, "is a int, not a class"),
        ("class Mine:\n    pass\n", TypeError, "no method reset"),
        (
            "class Mine(TwentyQuestions):\n    def hint(self, x):\n        '''Hint.'''\n",
            TypeError,
            "Mine.hint: argument 'x'",
        ),
        (
            "class Mine(TwentyQuestions):\n    def hint(self, x: int):\n        '''Hint.'''\n",
            TypeError,
            "under 'Args:'",
        ),
        (
            "class Mine(TwentyQuestions):\n    def hint(self) -> str:\n        return ''\n",
            TypeError,
            "needs a docstring",
        ),
    ],
)
def test_environments_that_trl_would_choke_on(tmp_path, body, error, message):
    with pytest.raises(error, match=message):
        load_environment(own(tmp_path, body), {}, base=tmp_path)


def test_unknown_environments_and_arguments():
    with pytest.raises(ValueError, match="Did you mean 'diagram'"):
        load_environment("diagrams")
    with pytest.raises(ValueError, match=r"no argument 'on_contradictions'.*Did you mean 'on_contradiction'"):
        load_environment("twenty_questions_scored", {"on_contradictions": "ignore"})
    with pytest.raises(ValueError, match="on_contradiction must be"):
        load_environment("twenty_questions", {"on_contradiction": "forget"})
