"""The tiny inquirer: any text survives, TRL accepts the template, lessons are real games, the asset plays."""

import itertools
import json
import random
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from entrl.environments.diagram import DiagramShort
from entrl.environments.diagram_worlds import find_world, parse_specification
from entrl.environments.model_policy import ModelPolicy, tools_of
from entrl.environments.play import play
from entrl.environments.table_files import find_table
from entrl.environments.tables import procedural_table
from entrl.environments.twenty_questions import TwentyQuestions
from entrl.tasks.inquiries import diagram_rows, twenty_questions_rows
from entrl.tasks.rows import digest
from entrl_lab.nursery.inquirer import InquirerConfig, Script
from entrl_lab.nursery.inquirer.batches import IGNORED, batches, sight
from entrl_lab.nursery.inquirer.build import taught_in, tokenizer_of, train, untrained_model
from entrl_lab.nursery.inquirer.calibration import INQUIRER, SPECIFIER
from entrl_lab.nursery.inquirer.config import NAMES_OF_MODELS, SPECIFIER_CURRICULUM, Stage
from entrl_lab.nursery.inquirer.lessons import TOOLS as TWENTY
from entrl_lab.nursery.inquirer.lessons import (
    call,
    diagram_dialogue,
    diagram_lesson,
    diagram_prompt,
    dialogue,
    drill,
    lessons,
    prompt_of,
    train_seeds,
)
from entrl_lab.nursery.sft import sha256

ASSETS = Path(str(files("entrl.models.shipped")))
CONFIG = InquirerConfig()
TOKENIZER = tokenizer_of(CONFIG)
PIECES = [" fur", "mizo", "é", "  ", "\n", "漢", "Ġ", "12"]
TOOLS = list(tools_of(TwentyQuestions()).values())
CALL = re.compile(r'"name": "(\w+)", "arguments": \{"\w+": "([^"]+)"\}')
SMALL = Stage(steps=2, batch=4, sizes=((3, 3), (4, 4)), drills=2, dialogues=2, diagrams=0.3, practice=True)


def row(**sizes: int) -> dict[str, Any]:
    return dict(twenty_questions_rows(split="train", size=1, seed=3, **({"rows": 8, "columns": 8} | sizes))[0])


def played() -> tuple[list[dict], dict[str, Any]]:
    """The messages of a game of three questions in the real environment, and its row."""
    one, env = row(), TwentyQuestions()
    env.reset(**one)
    questions = find_table(one["table_id"]).questions
    text = "".join(call(TWENTY[0], word) for word in questions[:3]) + call(TWENTY[1], one["target"])
    return replayed(text, env, one["prompt"], {"ask": "attribute", "submit": "answer"})[:-1], one


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([*sorted(TOKENIZER.get_added_vocab()), " fur", "mizo", "é", "  ", "\n", "漢", "Ġ", "12"]))
)
def test_any_text_survives(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_characters_survive(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_trl_accepts_the_template() -> None:
    assert supports_tool_calling(TOKENIZER)
    assert is_chat_template_prefix_preserving(TOKENIZER)
    assert TOKENIZER.response_template is not None  # otherwise TRL knows no parser for this template


def test_sizes_in_tokens() -> None:
    messages, one = played()
    ids = TOKENIZER.apply_chat_template(one["prompt"], tools=TOOLS, add_generation_prompt=True, return_dict=False)
    table = find_table(one["table_id"])
    cells = int(table.values.sum())
    # 7 for system, tools and instruction; name, colon, line break of 8 rows (the last has none); 1 opens a turn
    assert len(ids) == 7 + cells + 3 * 8 - 1 + 1
    after = messages[: len(one["prompt"]) + 2]
    full = TOKENIZER.apply_chat_template(after, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert len(full) - len(ids) == 8  # a question: 4 tokens of the model, 4 of the answer


def test_every_message_renders_the_same_when_more_follow() -> None:
    messages, _ = played()
    texts = [
        TOKENIZER.apply_chat_template(messages[: n + 1], tools=TOOLS, tokenize=False) for n in range(len(messages))
    ]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_calls_are_parsed_and_broken_ones_are_text() -> None:
    prefix = TOKENIZER.encode("<|im_start|>assistant\n", add_special_tokens=False)
    good = '<tool_call>\n{"name": "ask", "arguments": {"attribute": "fur"}}\n</tool_call><|im_end|>'
    reply = parse_response(TOKENIZER, TOKENIZER.encode(good, add_special_tokens=False), prefix=prefix, tools=TOOLS)
    assert reply["tool_calls"] == [{"type": "function", "function": {"name": "ask", "arguments": {"attribute": "fur"}}}]
    broken = good.replace('"}}', '"}')
    reply = parse_response(TOKENIZER, TOKENIZER.encode(broken, add_special_tokens=False), prefix=prefix, tools=TOOLS)
    assert "tool_calls" not in reply
    assert "fur" in reply["content"]


def replayed(text: str, env: Any, prompt: list[dict], arguments: dict[str, str]) -> list[dict]:
    """The messages of a lesson when its calls are made in the real environment."""
    messages = list(prompt)
    for tool, value in CALL.findall(text):
        call = {"type": "function", "function": {"name": tool, "arguments": {arguments[tool]: value}}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": tool, "content": getattr(env, tool)(value)})
    return [*messages, {"role": "assistant", "content": ""}]


def budget_of(text: str) -> int:
    found = re.search(r"Question 1 of (\d+):", text)
    return int(found[1]) if found else 20


@pytest.mark.parametrize("seed", range(20))
def test_lessons_are_the_template_and_the_environment_to_the_letter(seed: int) -> None:
    one = row()
    table = find_table(one["table_id"])
    for script in (None, Script(), Script(repeat=0.5, early=0.5)):
        text = dialogue(table, random.Random(seed), script=script)
        calls = CALL.findall(text)
        assert [tool for tool, _ in calls] == ["ask"] * (len(calls) - 1) + ["submit"]
        wrong = re.search(r"Wrong, it is (\w+)\.", text)
        env = TwentyQuestions(name_ruled_out=True)
        env.reset(**(one | {"target": wrong[1] if wrong else calls[-1][1], "max_questions": budget_of(text)}))
        messages = replayed(text, env, one["prompt"], {"ask": "attribute", "submit": "answer"})
        assert TOKENIZER.apply_chat_template(messages, tools=TOOLS, tokenize=False) == prompt_of(table) + text
        assert env._invalid == env._refused == 0


@pytest.mark.parametrize("named_in_answers", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_diagram_lessons_are_the_template_and_the_environment_to_the_letter(seed: int, named_in_answers: bool) -> None:
    one = dict(diagram_rows(split="train", size=20, seed=4, slots=4)[seed])
    world, env = find_world(one["table_id"]), DiagramShort(slot_in_answer=named_in_answers)
    truth = parse_specification(one["target"], world.slots)
    script = Script(repeat=0.2, early=0.2)
    text = diagram_dialogue(
        world, truth, one["named"], random.Random(seed), script=script, slot_in_answer=named_in_answers
    )
    env.reset(**(one | {"max_questions": budget_of(text)}))
    messages = replayed(text, env, one["prompt"], {"ask": "slot", "submit": "specification"})
    tools = list(tools_of(env).values())
    prompt = diagram_prompt(world, truth, one["named"])
    assert TOKENIZER.apply_chat_template(messages, tools=tools, tokenize=False) == prompt + text
    assert env._invalid == env._refused == 0
    known = {one["named"], *(slot for tool, slot in CALL.findall(text) if tool == "ask")}
    if known == set(world.slots):
        assert env._correct is True


def test_wishes_of_the_specifier_follow_no_rule() -> None:
    """Uniform values: timelines go left to right in the task, always, and anywhere in these lessons."""
    rng, seen = random.Random(0), set()
    for _ in range(3000):
        text = "".join(diagram_lesson(rng, 1, script=Script(early=0.0), slots=(5,), alone=True).parts)
        if "kind=timeline" in (answers := re.findall(r"Question \d+ of \d+: (\S+)<?", text)):
            seen |= {answer for answer in answers if answer.startswith("layout=")}
    assert len(seen) > 2


def test_a_name_is_never_ruled_out_by_the_answers() -> None:
    rng = random.Random(1)
    for seed in range(100):
        table = procedural_table(seed, rows=6, columns=6)
        text = dialogue(table, rng, script=Script())
        *asks, (_, name) = CALL.findall(text)
        answers = re.findall(r"Question \d+ of \d+: (yes|no)", text)
        cells = table.values[table.hypotheses.index(name)]
        said = [("no", "yes")[cells[table.questions.index(word)]] for _, word in asks]
        assert said == answers


def test_drills_name_one_of_the_table_that_was_not_ruled_out() -> None:
    table = procedural_table(5, rows=4, columns=4)
    counts = set()
    for seed in range(50):
        said, _, rest = drill(table, random.Random(seed)).partition("<tool_call>")
        out = re.findall(r"\w+", said.replace("not", ""))
        name = re.search(r'"answer": "(\w+)"', rest)
        assert name is not None
        assert name[1] in set(table.hypotheses) - set(out)
        assert set(out) < set(table.hypotheses)
        assert len(set(out)) == len(out)
        counts.add(len(out))
    assert counts == {0, 1, 2, 3}


def test_lessons_come_from_the_train_side() -> None:
    seeds = itertools.islice(train_seeds(random.Random(0)), 200)
    assert all(digest(f"table/{seed}") % 5 for seed in seeds)


def test_packed_parts_are_as_if_alone() -> None:
    """A part's logits in a pack equal those of prompt + part in a row of its own."""
    torch.manual_seed(0)
    model = untrained_model(TOKENIZER, CONFIG).eval()
    taught = lessons(0, ((4, 4),), script=None, drills=2, dialogues=2)
    batch = next(batches(TOKENIZER, taught, 3))
    with torch.no_grad():
        packed = model(batch.ids_BT, attention_mask=sight(batch)[:, None], position_ids=batch.positions_BT).logits
        for i, part in itertools.product(range(3), range(1, 5)):
            own, prompt = batch.parts_BT[i] == part, batch.parts_BT[i] == 0
            alone = model(batch.ids_BT[i][prompt | own][None]).logits[0, int(prompt.sum()) :]
            torch.testing.assert_close(packed[i][own], alone, atol=1e-4, rtol=1e-4)


def test_the_first_call_of_a_specifier_is_taught() -> None:
    config = InquirerConfig(name="tiny-specifier")
    tokenizer = tokenizer_of(config)
    taught = taught_in(SPECIFIER_CURRICULUM[0], config, 0)
    batch = next(batches(tokenizer, taught, 4, tools=config.taught_tools))
    for ids, labels, parts in zip(batch.ids_BT, batch.labels_BT, batch.parts_BT, strict=True):
        for part in range(1, int(parts.max()) + 1):
            own = parts == part
            text, whole = tokenizer.decode(labels[own & (labels != IGNORED)]), tokenizer.decode(ids[own])
            assert text.count("<tool_call>") == whole.count("<tool_call>") >= 1
            assert "Question" not in text
            assert "Right" not in text


def test_what_is_taught() -> None:
    """The model's own tokens and the answers; neither the table nor the environment's wording."""
    taught = lessons(0, ((4, 4),), script=None, drills=0, dialogues=1)
    batch = next(batches(TOKENIZER, taught, 8))
    kept = batch.labels_BT != IGNORED
    assert (batch.labels_BT[kept] == batch.ids_BT[kept]).all()
    for ids, labels in zip(batch.ids_BT, batch.labels_BT, strict=True):
        text = TOKENIZER.decode(labels[labels != IGNORED])
        whole = TOKENIZER.decode(ids)
        assert not any(word in text for word in ("Question", "Find", "Correct"))
        assert text.count("<tool_call>") == whole.count("<tool_call>")
        assert len(re.findall(r" (?:yes|no)", text)) == len(re.findall(r"Question \d+ of \d+: ", whole))
        assert text.endswith("<|im_end|>" * 2)  # of the submission, and of the message after it that says nothing


def test_a_seed_gives_one_model() -> None:
    config = InquirerConfig(curriculum=(SMALL,), width=16, heads=2, head_dim=16, layers=1, intermediate=16)
    said: list[str] = []
    first, second = (train(config, say=said.append)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(InquirerConfig(**(vars(config) | {"seed": 1})), say=said.append)[0].state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="repeat is a probability"):
        Script(repeat=1.5)
    with pytest.raises(ValueError, match="curriculum is empty"):
        InquirerConfig(curriculum=())
    with pytest.raises(ValueError, match="threads must be >= 1"):
        InquirerConfig(threads=0)


def shipped(name: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(ASSETS / name), AutoTokenizer.from_pretrained(ASSETS / name)


@pytest.fixture(scope="module")
def asset() -> tuple[Any, Any]:
    return shipped("tiny-inquirer")


@pytest.mark.parametrize("name", NAMES_OF_MODELS)
def test_the_assets_are_what_their_manifests_say(name: str) -> None:
    folder, (model, tokenizer) = ASSETS / name, shipped(name)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["name"] == name
    assert manifest["weights_sha256"] == sha256(folder / "model.safetensors")
    assert manifest["tokenizer_sha256"] == sha256(folder / "tokenizer.json")
    assert manifest["parameters"] == model.num_parameters()
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    built = tokenizer_of(InquirerConfig(name=name))  # the code still builds the tokenizer that was shipped
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    assert tokenizer.response_template == built.response_template


def test_the_specifier_plays() -> None:
    """60 requests at temperature 1: games end, and far more slots are right than the one that the request names."""
    model, tokenizer = shipped("tiny-specifier")
    policy = ModelPolicy(model=model, tokenizer=tokenizer, temperature=1.0, max_completion_length=300)
    episodes = play(SPECIFIER.game, SPECIFIER.games(60), policy, batch=60)
    assert sum(e.submitted for e in episodes) >= 54
    assert sum(e.score for e in episodes) >= 0.4 * 60


def test_the_asset_plays(asset: tuple[Any, Any]) -> None:
    """60 test games at temperature 1: games end, and it is right far more often than a guess (1/8)."""
    rows = [dict(r) for r in twenty_questions_rows(split="test", size=60, seed=5, rows=8, columns=8)]
    model, tokenizer = asset
    policy = ModelPolicy(model=model, tokenizer=tokenizer, temperature=1.0, max_completion_length=300)
    episodes = play(INQUIRER.game, rows, policy, batch=60)
    assert sum(e.submitted for e in episodes) >= 54
    assert sum(e.correct for e in episodes) >= 30
    assert sum(e.invalid for e in episodes) <= 30  # it still asks for words of other tables
    again = play(INQUIRER.game, rows[:4], policy, batch=60)
    assert [e.transcript for e in again] == [e.transcript for e in play(INQUIRER.game, rows[:4], policy, batch=60)]
