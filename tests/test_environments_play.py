"""Playing: the books of an episode, the scores, and a language model that plays as TRL's own tool loop would."""

import json
import math
import re

import pytest
import torch
from datasets import Dataset
from entrl_rewards.information_gain import InformationGain
from entrl_rewards.information_gain_options import InformationGainExpert
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from entrl.environments import DiagramSpecification, TwentyQuestions, find_table
from entrl.environments.model_policy import ModelPolicy
from entrl.environments.play import entropy_area, paired, play, score, values_of
from entrl.environments.policies import FixedOrder, GreedyExact, GuessOnly, RandomQuestions
from entrl.tasks.inquiries import diagram_rows, twenty_questions_rows


def games(size=6, **options):
    return twenty_questions_rows(split="test", size=size, seed=0, **({"rows": 8, "columns": 8} | options))


def chat_tokenizer():
    """Bytes and the special tokens of Qwen3's template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = qwen3_chat_template
    return made


def chat_model(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


QUESTIONS = find_table("procedural:rows=8,columns=8,seed=0").questions
SCRIPTS = [
    [call("ask", attribute=q) for q in QUESTIONS[:3]] + [call("submit", answer=QUESTIONS[0])],
    [call("ask", attribute=QUESTIONS[0]) + "\n" + call("ask", attribute=QUESTIONS[1]), call("fly", to="moon"), "done"],
    [
        call("ask", colour="red"),
        call("ask", attribute=QUESTIONS[0]),
        '<tool_call>\n{"name": "ask", "argu\n</tool_call>',
    ],
    [call("ask", attribute=QUESTIONS[i % 2]) for i in range(40)],  # for ever the same, until it does not fit
    [
        "<think>\nhm\n</think>\n\n"
        + call("submit", answer=find_table("procedural:rows=8,columns=8,seed=0").hypotheses[2])
    ],
    ["I know it"],
]


class Replies:
    """The scripted model: its next turn is a function of the conversation it is shown."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prefixes):
        return [self._one(self.tokenizer.decode(ids)) for ids in prefixes]

    def _one(self, text):
        script = SCRIPTS[int(re.search(r"game (\d)", text)[1])]
        turn = text.count("<|im_start|>assistant") - 1
        text = script[turn] if turn < len(script) else "done"
        return self.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]


class ScriptedTrainer(GRPOTrainer):
    replies = None

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return self.replies(prompt_ids), None


class ScriptedPolicy(ModelPolicy):
    def generate(self, prefixes, max_new_tokens):
        return Replies(self.tokenizer)(prefixes)


def scripted_rows():
    table = "procedural:rows=8,columns=8,seed=0"
    target = find_table(table).hypotheses[2]
    row = {"table_id": table, "target": target, "max_questions": 20, "seed": 5, "user_noise": 0.1}
    return [
        row | {"prompt": [{"role": "user", "content": f"game {i}"}], "problem_id": f"game {i}"}
        for i in range(len(SCRIPTS))
    ]


@pytest.mark.parametrize("iterations", [None, 2])
def test_a_model_plays_as_trl_lets_it(tmp_path, iterations):
    """Unknown tools, malformed calls, two calls in a turn, and results that do not fit: message for message."""
    tokenizer, seen = chat_tokenizer(), {}
    paying = InformationGain(
        pay="turn", credit="realised", invalid_penalty=10.0, expert=InformationGainExpert(normalise="none")
    )

    def capture(completions, environments, **kwargs):
        seen.update(completions=completions, events=[list(e._events) for e in environments])
        seen["entropies"] = [e._estimator.entropy() for e in environments]
        seen["rewards"] = paying(completions=completions, environments=environments, **kwargs)
        return [0.0] * len(completions)

    options = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(SCRIPTS),
        num_generations=len(SCRIPTS),
        max_completion_length=1420,
        max_tool_calling_iterations=iterations,
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    rows = scripted_rows()
    trainer = ScriptedTrainer(
        chat_model(tokenizer),
        capture,
        options,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=TwentyQuestions,
    )
    trainer.replies = Replies(tokenizer)
    trainer._generate_and_score_completions(rows)
    policy = ScriptedPolicy(
        model=chat_model(tokenizer),
        tokenizer=chat_tokenizer(),
        max_completion_length=1420,
        max_tool_calling_iterations=iterations,
    )
    episodes = play(TwentyQuestions, rows, policy, batch=4)
    assert [list(e.transcript) for e in episodes] == seen["completions"]
    assert [len(e.asked) for e in episodes] == [
        sum(event.correct is None for event in events) for events in seen["events"]
    ]
    # what did not fit was asked, and is not paid
    forever, gains = seen["events"][3], paying.row_columns["turn_rewards"]
    shown = sum(m["role"] == "tool" for m in seen["completions"][3])
    if iterations is None:
        assert 2 < shown == len(forever) - 1
        assert [bool(e.repeated) for e in forever] == [False, False] + [True] * (len(forever) - 2)
    else:
        assert shown == iterations
    realised = [e.step.realised for e in forever]
    assert gains[3].tolist() == pytest.approx([*realised[:2], *[0.0] * (len(gains[3]) - 2)], abs=1e-6)
    assert len(gains[3]) == sum(m["role"] == "assistant" for m in seen["completions"][3])
    # an unknown tool, a wrong argument name and broken JSON never reach the environment, and are charged
    assert (episodes[1].invalid, episodes[2].invalid) == (1, 2)
    assert gains[1][1].item() == pytest.approx(-10.0)
    assert gains[2][0].item() == pytest.approx(-10.0)
    assert gains[2][-1].item() == pytest.approx(-10.0)
    assert seen["rewards"] == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_a_random_model_plays_the_same_twice_and_alone():
    tokenizer = chat_tokenizer()
    rows = scripted_rows()[:3]
    policy = ModelPolicy(model=chat_model(tokenizer).train(), tokenizer=tokenizer, max_completion_length=12)
    first = play(TwentyQuestions, rows, policy, batch=3)
    assert play(TwentyQuestions, rows, policy, batch=3) == first
    assert play(TwentyQuestions, rows, policy, batch=1) == first  # padding changes nothing
    assert policy.model.training
    state = torch.get_rng_state()
    sampling = ModelPolicy(model=policy.model, tokenizer=tokenizer, max_completion_length=12, temperature=1.0, seed=1)
    drawn = play(TwentyQuestions, rows, sampling, batch=2)
    assert play(TwentyQuestions, rows, sampling, batch=2) == drawn != first
    own = policy.model.generation_config
    own.repetition_penalty, own.min_p, own.no_repeat_ngram_size = 3.0, 0.9, 1  # as a model may ship them: not read
    for asked, said in ((policy, first), (sampling, drawn)):
        asked.restart()
        assert play(TwentyQuestions, rows, asked, batch=3 if asked is policy else 2) == said
    assert policy.model.generation_config is own
    sampling.seed = 2
    assert play(TwentyQuestions, rows, sampling, batch=2) != drawn
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(e.questions or e.submitted for e in first)


def test_a_model_policy_refuses_what_cannot_call_tools():
    tokenizer = chat_tokenizer()
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        ModelPolicy(model=None, tokenizer=tokenizer, temperature=-1)
    with pytest.raises(ValueError, match="max_completion_length must be >= 1"):
        ModelPolicy(model=None, tokenizer=tokenizer, max_completion_length=0)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="cannot render tool calls"):
        ModelPolicy(model=None, tokenizer=tokenizer)


@pytest.mark.parametrize("policy", [GreedyExact(), RandomQuestions(), FixedOrder(), GuessOnly()])
def test_the_books_of_an_episode(policy):
    for played in play(TwentyQuestions, games(user_noise=0.1, max_questions=5), policy):
        assert played.questions == len(played.gains) == len(played.asked) <= 5
        assert sum(played.gains) == pytest.approx(played.h0 - (played.entropies[-1] if played.entropies else played.h0))
        assert played.submitted
        assert played.repeats == played.invalid == played.refused == 0
        assert [q for q, _ in played.history] == [q for q, _ in played.asked]
        assert entropy_area(played) >= 0


@pytest.mark.parametrize("policy", [GreedyExact(), RandomQuestions(seed=3), FixedOrder()])
def test_batches_and_repeats_change_nothing(policy):
    rows = games(7)
    first = play(TwentyQuestions, rows, policy, batch=32)
    assert play(TwentyQuestions, rows, policy, batch=2) == first
    assert play(TwentyQuestions, rows, policy, batch=1) == first


def test_diagrams_are_played():
    rows = diagram_rows(split="test", size=8, seed=0)
    greedy, guess = (play(DiagramSpecification, rows, p) for p in (GreedyExact(), GuessOnly()))
    assert all(e.questions == 6 and e.invalid == 0 for e in greedy)
    assert sum(e.score for e in greedy) > sum(e.score for e in guess) > 0
    best = [g.gains[0] for g in greedy]
    assert best == pytest.approx([max(play_one(row)) for row in rows])


def play_one(row):
    """Realised gain of each slot as first question: an expert names the value, so it is the slot's entropy."""
    gains = []
    for slot in ("kind", "layout", "components", "connector", "grouping", "palette", "labels", "annotation", "aspect"):
        env = DiagramSpecification()
        env.reset(**row)
        env.ask(slot)
        gains.append(env._events[0].step.realised)
    return gains


def test_scores_by_hand():
    episodes = play(TwentyQuestions, games(4), FixedOrder())
    found = score(episodes)
    assert found["success"]["mean"] == 1.0
    assert found["success"]["lo"] == pytest.approx(0.5101, abs=1e-3)  # Wilson, 4 of 4
    assert found["questions"]["mean"] == sum(e.questions for e in episodes) / 4
    assert found["questions"]["lo"] <= found["questions"]["mean"] <= found["questions"]["hi"]
    assert found["normalised_gain"]["mean"] == pytest.approx(1.0)
    one = episodes[0]
    assert values_of(one)["gain_per_question"] == pytest.approx(3 / one.questions)
    curve = list(one.entropies) + [0.0] * (20 - len(one.entropies))
    assert entropy_area(one) == pytest.approx(sum(curve) / 20 / 3)
    silent = score(play(TwentyQuestions, games(4), GuessOnly()))
    assert silent["gain_per_question"] == {"mean": None, "lo": None, "hi": None, "n": 0}
    assert silent["entropy_area"]["mean"] == 1.0


def test_nothing_to_learn_has_no_normalised_gain():
    (played,) = play(TwentyQuestions, games(1, rows=1), GreedyExact())
    assert played.correct
    assert values_of(played)["normalised_gain"] is None
    assert entropy_area(played) == 0.0


def test_paired_differences_are_over_the_same_rows():
    rows = games(5)
    a, b = play(TwentyQuestions, rows, RandomQuestions()), play(TwentyQuestions, rows, GreedyExact())
    found = paired(a, b)
    want = sum(y.questions - x.questions for x, y in zip(a, b, strict=True)) / 5
    assert found["questions"]["mean"] == pytest.approx(want)
    assert paired(a, a)["gain"] == {"mean": 0.0, "lo": 0.0, "hi": 0.0, "n": 5}
    with pytest.raises(ValueError, match="different rows"):
        paired(a, b[1:])


def test_playing_needs_rows():
    with pytest.raises(ValueError, match="no rows"):
        play(TwentyQuestions, [], GreedyExact())
    with pytest.raises(ValueError, match="batch must be >= 1"):
        play(TwentyQuestions, games(1), GreedyExact(), batch=0)
    with pytest.raises(ValueError, match="no episodes"):
        score([])
    assert math.isfinite(score(play(TwentyQuestions, games(1), GreedyExact()))["gain"]["mean"])
