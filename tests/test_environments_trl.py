"""The environments inside a real TRL trainer: tools as TRL describes them, scripted dialogues through its tool loop.

The model is a random Qwen3 and never writes: `_generate_single_turn` gives the tokens of a script. Everything after
that is TRL's: parsing, calls, errors, roll-backs, rewards.
"""

import functools
import json
import warnings
from pathlib import Path

import pytest
import trl
from tiny_model import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from entrl.environments import ENVIRONMENTS, ScoredTwentyQuestions, TwentyQuestions, find_table, load_environment
from entrl.environments.loader import tools
from entrl.tasks import load_task

GAMES = load_task({"task": "twenty_questions", "rows": 8, "columns": 8, "max_questions": 3}, size=4)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_tool_has_a_schema(name):
    cls = ENVIRONMENTS[name]
    env = load_environment(name)()
    for tool in tools(cls):
        schema = get_json_schema(getattr(env, tool))["function"]
        assert schema["name"] == tool
        properties = schema["parameters"]["properties"]
        assert properties
        assert all(field["description"] and field["type"] in ("string", "array") for field in properties.values())
        assert sorted(schema["parameters"]["required"]) == sorted(properties)
    assert set(tools(cls)) <= {"ask", "ask_any", "ask_choice", "submit"}


@functools.lru_cache(maxsize=1)
def byte_tokenizer():
    """Byte-level, with Qwen3's marks as one token each and TRL's own copy of its template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([], trainers.BpeTrainer(special_tokens=marks, initial_alphabet=alphabet))
    backend.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / "qwen3.jinja").read_text(encoding="utf-8")
    return tokenizer


def call(tool, **arguments):
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call><|im_end|>"


class Scripted(GRPOTrainer):
    """Row i of a batch says what `script(i)` says, turn by turn; a finished script ends its dialogue."""

    script: list[list[str]]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations=1, **_):
        out = []
        for ids in prompt_ids:
            text = self._tokenizer.decode(ids)
            turn = text.count("<|im_start|>assistant\n") - 1
            if turn == 0:
                lines = self.script[self.started % len(self.script)]
                self.started += 1
                self.playing.append(lines)
                at = len(self.playing) - 1
            else:
                at = self.order.pop(0)
            lines = self.playing[at]
            said = lines[turn] if turn < len(lines) else "<|im_end|>"
            if "<tool_call>" in said and "}\n</tool_call>" in said:
                self.order.append(at)
            out.append(self._tokenizer.encode(said, add_special_tokens=False))
        return out, None


def played(tmp_path, script, *, environment=TwentyQuestions, rewards=None, **options):
    """One training step on a group of as many rows as the script has dialogues; what the reward functions saw."""
    seen = {}

    def watch(completions, environments, **_):
        seen["completions"], seen["environments"] = completions, list(environments)
        return [float(env._correct or False) for env in environments]

    tokenizer = byte_tokenizer()
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(script),
        num_generations=len(script),
        max_steps=1,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        **({"max_completion_length": 4000} | options),
    )
    model = tiny_model(vocabulary=tokenizer)
    model.config.max_position_embeddings = 8192  # TRL drops tool results beyond it, and bytes are many tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that environments are experimental
        trainer = Scripted(
            model,
            [watch] if rewards is None else rewards,
            config,
            train_dataset=GAMES.select([0]),
            processing_class=tokenizer,
            environment_factory=environment,
        )
        trainer.script, trainer.started, trainer.playing, trainer.order = script, 0, [], []
        trainer.train()
    seen["log"] = trainer.state.log_history
    return seen


def messages(completion):
    return [message["content"] for message in completion if message["role"] == "tool"]


def test_dialogues_go_through_trl(tmp_path):
    """Good play, the same question for ever, submitting at once, and everything a model can get wrong; one group."""
    table, target = find_table(GAMES[0]["table_id"]), GAMES[0]["target"]
    words = table.questions
    truth = [table.answers[v] for v in table.values[table.hypotheses.index(target)]]
    script = [
        [call("ask", attribute=words[0]), call("ask", attribute=words[1]), call("submit", answer=target)],
        [call("ask", attribute=words[0])] * 5 + [call("submit", answer="nobody")],
        [call("submit", answer=target), call("ask", attribute=words[0])],
        [
            call("guess", name=target),
            call("ask", word=words[0]),
            call("ask", attribute=3),
            call("ask", attribute=words[2]),
        ],
        ["<tool_call>\n{'name': ask\n</tool_call><|im_end|>"],
        ["no tool at all<|im_end|>"],
    ]
    seen = played(tmp_path, script)
    texts = [messages(completion) for completion in seen["completions"]]
    good, same, early, odd, malformed, silent = seen["environments"]
    assert len({id(env) for env in seen["environments"]}) == 6

    assert texts[0] == [f"Question 1 of 3: {truth[0]}", f"Question 2 of 3: {truth[1]}", "Correct."]
    assert [event.observation for event in good._events] == texts[0]
    assert good._correct is True

    repeat = f"{truth[0]} (asked before)"
    refused = "No questions left after 3; submit your answer."
    assert texts[1][:5] == [f"Question 1 of 3: {truth[0]}", f"Question 2 of 3: {repeat}", f"Question 3 of 3: {repeat}",
                            refused, refused]  # fmt: skip
    assert texts[1][5].startswith("Error: unknown name 'nobody'")
    assert (same._asked, same._refused, same._invalid, same._correct) == (3, 2, 1, None)
    assert sum(same._gains()) == same._gains()[0]

    assert texts[2] == ["Correct.", "The inquiry is over."]
    assert (early._asked, early._refused, early._gains()) == (0, 1, [])

    assert "error" in texts[3][0]  # an unknown tool and a wrong argument never reach the environment
    assert "error" in texts[3][1]
    assert texts[3][2].startswith("Error: unknown attribute 3")
    assert texts[3][3] == f"Question 1 of 3: {truth[2]}"
    assert (odd._invalid, odd._asked, len(odd._events)) == (1, 1, 1)

    for env, text in ((malformed, texts[4]), (silent, texts[5])):
        assert text == []
        assert (env._events, env._correct, env._score, env._gains()) == ([], None, None, [])


def test_an_overlong_result_is_dropped_but_the_event_stays(tmp_path):
    """What `seen_only` of the reward exists for: the observation is in the environment and not in the completion."""
    words = find_table(GAMES[0]["table_id"]).questions
    turns = [call("ask", attribute=word) for word in words[:3]]
    length = len(byte_tokenizer().encode(turns[0])) + 10
    seen = played(tmp_path, [turns, turns], max_completion_length=length)
    for completion, env in zip(seen["completions"], seen["environments"], strict=True):
        assert messages(completion) == []
        assert len(env._events) == 1


def test_the_scored_environment_needs_no_reward_function(tmp_path):
    target = GAMES[0]["target"]
    seen = played(
        tmp_path,
        [[call("submit", answer=target)], ["<|im_end|>"]],
        environment=functools.partial(ScoredTwentyQuestions, gain_weight=0.5),
        rewards=[],
    )
    assert seen["log"][0]["rewards/ScoredTwentyQuestions/mean"] == pytest.approx(0.5)
