"""Evaluation against slow twins: brute-force pass@k, teacher-forced entropies, one-row generation."""

import itertools
import json
import math
from statistics import fmean

import pytest
import torch
from entrl_rewards.accuracy import reward
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from entrl.evaluation import answers as module
from entrl.evaluation.answers import evaluate, evaluate_path
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.scores import pass_at_k, summary
from entrl.evaluation.writing import Asked, Sampling
from entrl.models.load import find_adapter, load_policy
from entrl.models.shipped import model_path
from entrl.tasks import load_task
from entrl_lab.nursery.tokenizer import character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


def tiny(tokenizer, seed=0):
    """Random weights, scaled up so that greedy answers differ between prompts."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny(tokenizer)


@pytest.fixture(scope="module")
def dataset():
    return load_task("sums", split="test", size=6, seed=0)


QUICK = {"max_new_tokens": 12, "progress": False}


def by_characters(texts, answers, verifiers):
    """A verifier with all three verdicts, by the sum of the characters: wrong, right, not verified."""
    return [(0.0, 1.0, None)[sum(map(ord, text)) % 3] for text in texts]


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1), (6, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c):
    outcome = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(outcome, k))
        assert pass_at_k(n, c, k) == pytest.approx(fmean(any(s) for s in subsets), abs=1e-12)


def test_pass_at_1_is_the_share_and_impossible_counts_are_refused():
    assert pass_at_k(8, 2, 1) == 0.25
    for n, c, k in [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)]:
        with pytest.raises(ValueError, match=r"pass@k needs 0 <= c <= n"):
            pass_at_k(n, c, k)


def test_summary_leaves_out_what_was_not_verified():
    base = {"greedy_length": 4, "mean_length": 6.0}
    problems = [
        {**base, "greedy_correct": True, "n_correct": 1, "n_samples": 2},
        {**base, "greedy_correct": None, "n_correct": 0, "n_samples": 0},
        {**base, "greedy_correct": False, "n_correct": 1, "n_samples": 1},
    ]
    found = summary(problems, k=[1, 2], seed=0)
    assert found["greedy_accuracy"] == 0.5
    assert found["sampled_accuracy"] == 0.75  # (1/2 + 1/1) / 2
    assert found["pass_at_k"] == {"1": 0.75, "2": 1.0}  # only the first problem has 2 samples
    assert 0.5 <= found["sampled_accuracy_ci"][0] <= 0.75 <= found["sampled_accuracy_ci"][1] <= 1
    nothing = summary([problems[1]], k=[1], seed=0)
    assert nothing["greedy_accuracy"] is nothing["sampled_accuracy"] is nothing["pass_at_k"]["1"] is None


def test_result_adds_up(model, tokenizer, dataset):
    seen = []

    def score(texts, answers, verifiers):
        seen.append((list(texts), list(answers), by_characters(texts, answers, verifiers)))
        return seen[-1][2]

    found = evaluate(model, tokenizer, dataset, samples=4, k=[1, 4], score=score, labels={"task": "sums"}, **QUICK)
    seen.sort(key=lambda call: dataset["answer"].index(call[1][0]))  # a call for each problem, the greedy answer first
    assert [answers for _, answers, _ in seen] == [[a] * 5 for a in dataset["answer"]]
    greedy = [found[0] for _, _, found in seen]
    texts, drawn = ([x for call in seen for x in call[i][1:]] for i in (0, 2))
    greedy_texts = [texts[0] for texts, _, _ in seen]
    assert found["unverified"] == greedy.count(None) + drawn.count(None) > 0
    for i, problem in enumerate(found["problems"]):
        mine = [s for s in drawn[4 * i : 4 * i + 4] if s is not None]
        assert (problem["n_correct"], problem["n_samples"]) == (sum(mine), len(mine))
        assert problem["greedy_correct"] == (None if greedy[i] is None else bool(greedy[i]))
        assert problem["prompt"] == dataset[i]["prompt"]
    assert found["missing_close_rate"] == fmean("</think>" not in text for text in texts)
    for part in ("think", "answer"):  # the problems' entropies make the whole
        lengths = [p[f"mean_{part}_length"] for p in found["problems"]]
        sums = [p[f"{part}_entropy"] * n for p, n in zip(found["problems"], lengths, strict=True) if n]
        assert found["entropy"][part] == (pytest.approx(sum(sums) / sum(lengths)) if sums else None)
    closed = ["</think>" in text for text in texts]  # one token in this vocabulary, and in neither phase
    whole = [p["mean_think_length"] + p["mean_answer_length"] + fmean(closed[4 * i : 4 * i + 4])
             for i, p in enumerate(found["problems"])]  # fmt: skip
    assert whole == pytest.approx([p["mean_length"] for p in found["problems"]])
    assert sum(found["length"].values()) + fmean(closed) == pytest.approx(found["mean_length_sampled"])
    assert [e["id"] for e in found["examples"]] == [p["id"] for p in found["problems"][:3]]
    for i, example in enumerate(found["examples"]):  # the greedy answers
        assert "".join(text for _, text in example["text"]) == greedy_texts[i]
        assert example["right"] == found["problems"][i]["greedy_correct"]
        assert example["tokens"] == found["problems"][i]["greedy_length"]
    assert found["task"] == "sums"
    assert found["n_problems"] == 6
    assert json.loads(json.dumps(found)) == found


def test_counts_are_means_over_sampled_texts(model, tokenizer, dataset, tmp_path):
    texts = []

    def score(of, answers, verifiers):
        texts.extend(of[1:])  # the first is the greedy one
        return [None] * len(of)

    file = tmp_path / "counting.py"
    file.write_text("def digits(text):\n    return sum(map(str.isdigit, text))\nword = 'no function'\n")
    found = evaluate(model, tokenizer, dataset, samples=2, score=score, counts={"digits": f"{file}:digits"}, **QUICK)
    assert found["counts"] == {"digits": pytest.approx(fmean(sum(map(str.isdigit, text)) for text in texts))}
    assert found["counts"]["digits"] > 0
    assert "counts" not in evaluate(model, tokenizer, dataset, samples=1, **QUICK)
    with pytest.raises(TypeError, match=r"count 'words' \(.*:word\) is a str; name a function of a text"):
        evaluate(model, tokenizer, dataset, counts={"words": f"{file}:word"}, **QUICK)


def test_entropies_equal_a_teacher_forced_float64_pass(model, tokenizer, dataset):
    """Exact means exact: padding, temperature, phases and the cut at the end token included."""
    prompts = [tokenizer(text=p)["input_ids"] for p in dataset["prompt"] for _ in range(3)]
    sampling = Sampling(samples=3, temperature=0.7, top_p=0.9, max_new_tokens=12, seed=0)
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=20)
    asked = [Asked(index=i, prompt_ids=prompts[3 * i]) for i in range(len(dataset))]
    found = {a.index: a for a in writer.write(asked)}
    drawn = [c for i in range(len(dataset)) for c in found[i].drawn]
    reference = tiny(tokenizer).double()
    expected = []
    for prompt, completion in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
        p = torch.softmax(logits / 0.7, -1)
        expected.append(-(p * p.log()).sum(-1))
        torch.testing.assert_close(completion.entropies.double(), expected[-1], atol=1e-5, rtol=1e-5)
        said = p.log().gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        torch.testing.assert_close(completion.logprobs.double(), said, atol=1e-4, rtol=1e-5)
    tags = module.tags_of(tokenizer, "<think>", "</think>")
    parts = [module.signals(prompts[3 * i], drawn[3 * i : 3 * i + 3], tags) for i in range(len(dataset))]
    found = module._entropies(parts)
    assert found["all"] == pytest.approx(torch.cat(expected).mean().item(), abs=1e-5)
    close = tokenizer.convert_tokens_to_ids("</think>")
    think = [h[: c.ids.index(close) if close in c.ids else None] for h, c in zip(expected, drawn, strict=True)]
    assert found["think"] == pytest.approx(torch.cat(think).mean().item(), abs=1e-5)


def test_greedy_equals_one_row_at_a_time_for_any_batch_size(model, tokenizer, dataset):
    runs = []
    for batch_size in (1, 4, 64):
        texts = {}

        def score(t, answers, verifiers, texts=texts):
            texts[answers[0]] = t[0]
            return [0.0] * len(t)

        evaluate(model, tokenizer, dataset, samples=1, batch_size=batch_size, score=score, **QUICK)
        runs.append([texts[answer] for answer in dataset["answer"]])
    assert runs[0] == runs[1] == runs[2]
    for prompt, text in zip(dataset["prompt"], runs[0], strict=True):
        ids = tokenizer(text=prompt, return_tensors="pt")["input_ids"]
        alone = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert tokenizer.decode(alone, skip_special_tokens=True) == text


def test_seeded_and_without_trace(model, tokenizer, dataset):
    """Same seed, same result; the caller's random state, mode and generation config stay."""
    model.train()
    config = model.generation_config = GenerationConfig(top_k=1, repetition_penalty=5.0, eos_token_id=0)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    runs = [evaluate(model, tokenizer, dataset, samples=4, seed=s, score=by_characters, **QUICK) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert model.generation_config is config
    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=0)
    plain = evaluate(model, tokenizer, dataset, samples=4, seed=0, score=by_characters, **QUICK)
    for run in (*runs, plain):
        del run["seconds"]
    assert runs[0] == runs[1] == plain  # top_k and penalty of the model's own config had no say
    assert runs[0]["problems"] != runs[2]["problems"]


def test_rates_at_the_limits(model, tokenizer, dataset):
    one = evaluate(model, tokenizer, dataset, samples=2, score=by_characters, max_new_tokens=1, progress=False)
    assert one["mean_length_sampled"] == one["mean_length_greedy"] == 1.0
    with torch.no_grad():  # a model that ends at once
        ending = tiny(tokenizer)
        ending.generation_config.eos_token_id = list(range(len(tokenizer)))
    ended = evaluate(ending, tokenizer, dataset, samples=2, score=by_characters, **QUICK)
    assert ended["truncation_rate"] == 0.0
    assert ended["mean_length_sampled"] == 1.0


def test_the_default_verifier_counts_right_answers(model, tokenizer):
    """Gold answers that are what the model says: greedy accuracy 1; other gold answers: 0."""
    rows = load_task("sums", split="test", size=20, seed=0)
    said = {}
    numbered = rows.remove_columns("answer").add_column("answer", [str(i) for i in range(20)])
    hear = lambda t, answers, _: said.update({int(answers[0]): t[0]}) or [0.0] * len(t)  # noqa: E731
    evaluate(model, tokenizer, numbered, samples=1, score=hear, **QUICK)
    parts = [reward.answer_part(said[i]) for i in range(20)]
    answered = [i for i, part in enumerate(parts) if part]
    assert len(answered) >= 3
    exact = [json.dumps({"kind": "exact"})] * len(answered)
    rows = rows.select(answered).remove_columns(["answer", "verifier"]).add_column("verifier", exact)
    for gold, accuracy in (([parts[i] for i in answered], 1.0), (["never said"] * len(answered), 0.0)):
        found = evaluate(model, tokenizer, rows.add_column("answer", gold), samples=1, **QUICK)
        assert found["greedy_accuracy"] == accuracy


def test_chat_prompts_go_through_the_template(model, tokenizer):
    rows = load_task("reasoning_gym:chain_sum", split="test", size=2, seed=0)
    found = evaluate(model, tokenizer, rows, samples=1, score=by_characters, **QUICK)
    assert found["problems"][0]["prompt"] == rows[0]["prompt"][-1]["content"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("models")
    base = tiny(tokenizer)
    base.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    loaded, _ = load_policy(str(root / "base"))
    adapter = get_peft_model(loaded, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(root / "adapter")
    return root


def test_base_and_adapter_folders(folders):
    task = {"task": "sums", "min_terms": 3}
    options = {"task": task, "size": 4, "samples": 2, "k": [1, 2], "score": by_characters, "device": "cpu", **QUICK}
    base = evaluate_path(str(folders / "base"), **options)
    adapter = evaluate_path(str(folders / "adapter"), **options)
    assert base["model"] == str(folders / "base")
    assert base["task"] == '{"min_terms": 3, "task": "sums"}'
    assert base["split"] == "test"
    assert [p["id"] for p in base["problems"]] == [p["id"] for p in adapter["problems"]]
    assert base["entropy"] != adapter["entropy"]
    assert math.isfinite(adapter["entropy"]["all"])


def test_an_adapter_leaves_its_own_generation_config_alone(folders, tokenizer, dataset):
    model, _ = load_policy(str(folders / "adapter"), device="cpu")
    inner = model.get_base_model().generation_config
    evaluate(model, tokenizer, dataset, samples=1, score=by_characters, **QUICK)
    assert model.get_base_model().generation_config is inner


def test_model_path(folders, tmp_path, monkeypatch):
    assert model_path(str(folders / "base")) == str(folders / "base")
    assert model_path("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        model_path("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither config.json nor adapter_config.json"):
        model_path(str(tmp_path))


def test_a_shipped_asset_is_found_by_name_and_from_another_installation(tmp_path, monkeypatch):
    from entrl.models import shipped as assets

    package = tmp_path / "assets"
    (package / "tiny-reasoner").mkdir(parents=True)
    (package / "tiny-reasoner" / "config.json").write_text("{}")
    monkeypatch.setattr(assets.resources, "files", lambda _: package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-reasoner").mkdir()  # a recipe folder of that name does not hide the asset
    shipped = str(package / "tiny-reasoner")
    assert model_path("tiny-reasoner") == shipped
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for recorded in ("tiny-reasoner", "/another/machine/entrl/models/shipped/tiny-reasoner", shipped):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": recorded}))
        found = find_adapter(str(adapter))
        assert found is not None
        assert found.base == shipped


def test_named_errors(model, tokenizer, dataset):
    for options, match in [
        ({"samples": 0}, "samples must be >= 1"),
        ({"samples": 2, "k": [4]}, r"pass@4 needs at least 4 samples"),
        ({"k": [0]}, r"k >= 1"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1"),
        ({"samples": 1, "score": lambda t, *_: [0.5] * len(t)}, "score must give 0, 1 or None, got 0.5"),
    ]:
        with pytest.raises(ValueError, match=match):
            evaluate(model, tokenizer, dataset, **{**QUICK, **options})
    bare = character_tokenizer()
    bare.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        evaluate(model, bare, dataset, samples=1, **QUICK)
