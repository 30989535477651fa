"""An evaluation that is killed, resumed, or worked off by several processes equals one that is not."""

import json

import pytest
import torch
from tiny_model import tiny_model

from entrl.evaluation import generation, memory
from entrl.evaluation.answers import Answers, evaluate
from entrl.evaluation.generation import TransformersWriter
from entrl.evaluation.records import (
    Done,
    Partial,
    clear_records,
    even,
    idle_ranks,
    refuse_foreign_records,
    shares,
    work_off,
)
from entrl.evaluation.writing import Asked, Sampling
from entrl.tasks import load_task
from entrl_lab.nursery.tokenizer import character_tokenizer

SAMPLING = Sampling(samples=3, temperature=1.0, top_p=0.95, max_new_tokens=12, seed=3)
OPTIONS = {"samples": 3, "k": [1, 3], "top_p": 0.95, "max_new_tokens": 12, "seed": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(vocabulary=tokenizer).eval()


@pytest.fixture(scope="module")
def dataset():
    return load_task("sums", split="test", size=7, seed=0)


def by_characters(texts, answers, verifiers):
    return [(0.0, 1.0, None)[sum(map(ord, text)) % 3] for text in texts]


def answers(model, tokenizer, dataset, **changes):
    asked = {"tokenizer": tokenizer, "dataset": dataset, "sampling": SAMPLING, "k": [1, 3], "score": by_characters}
    work = Answers(model=model, batch_size=8, **asked, **changes)
    work.ready(work.fitting(1))
    return work


def timeless(result):
    return {k: v for k, v in result.items() if k != "seconds"}


@pytest.fixture(scope="module")
def whole(model, tokenizer, dataset):
    return evaluate(model, tokenizer, dataset, score=by_characters, progress=False, **OPTIONS)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_kill_anywhere_loses_no_finished_problem_and_changes_no_number(
    after, model, tokenizer, dataset, whole, tmp_path, monkeypatch
):
    real = Partial.writing

    def dying(self, rank):
        import contextlib

        @contextlib.contextmanager
        def within():
            with real(self, rank) as keep:
                count = 0

                def counted(*row):
                    nonlocal count
                    if count == after:
                        with (self.folder / f"rank-{rank}.jsonl").open("a") as file:
                            file.write('{"index": 0, "rec')  # as a kill tears it
                        raise Killed
                    keep(*row)
                    count += 1

                yield counted

        return within()

    folder = tmp_path / "eval.partial"
    options = {"score": by_characters, "progress": False, "partial": folder, **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "writing", dying)
        with pytest.raises(Killed):
            evaluate(model, tokenizer, dataset, **options)
    first = (folder / "rank-0.jsonl").read_text().split("\n")[:-1]
    assert len(first) == after
    asked = []
    plain = TransformersWriter.write
    monkeypatch.setattr(TransformersWriter, "write", lambda self, a: asked.extend(x.index for x in a) or plain(self, a))
    resumed = evaluate(model, tokenizer, dataset, **options)
    assert timeless(resumed) == timeless(whole)
    assert not folder.exists()
    assert len(asked) <= 7 - after + 1  # two problems a unit: at most one finished one is asked again with its unit


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_several_processes_and_another_number_after_a_kill_give_the_same(
    ranks, model, tokenizer, dataset, whole, tmp_path
):
    work = answers(model, tokenizer, dataset)
    partial = Partial(folder=tmp_path / "p", settings=work.settings)
    partial.prepare(print)
    half = work_off(work, partial=partial, rank=1, ranks=2, progress=False)  # rank 0 of two was killed at once
    assert 0 < len(half.records) < 7
    total = Done()
    for rank in range(ranks):
        total.add(work_off(work, partial=partial, rank=rank, ranks=ranks, progress=False))
    assert timeless(work.result(total.in_order(7), 0.0)) == timeless(whole)


def test_every_problem_is_dealt_once_and_units_stay_whole():
    order = [5, 3, 1, 0, 2, 4, 6]
    for ranks in (1, 2, 3, 8):
        dealt = shares(order, 2, ranks)
        assert len(dealt) == ranks
        assert sorted(i for share in dealt for i in share) == list(range(7))
        regrouped = {tuple(s[at : at + 2]) for s in dealt for at in range(0, len(s), 2)}
        assert regrouped == {(5, 3), (1, 0), (2, 4), (6,)}  # so a writer that takes two at a time meets the same pairs
    assert shares(order, None, 2) == [[5, 1, 2, 6], [3, 0, 4]]


def test_a_batch_that_is_found_leaves_no_rank_idle(model, tokenizer, dataset, monkeypatch):
    """200 problems of 2 answers on 8 ranks, where 256 answers fit: 25 a rank, and not 128 and 72 on two."""
    for batch, per_problem, problems, ranks, longest in [
        (256, 2, 200, 8, 25),
        (256, 2, 1100, 8, 138),  # two rounds of 69, not one of 128 and a rest
        (256, 2, 200, 1, 200),
        (256, 9, 30, 8, 4),
        (256, 2, 3, 8, 1),
        (4, 9, 30, 8, 4),  # a problem by parts
        (16, 9, 30, 8, 4),
    ]:
        found = even(batch, per_problem, problems, ranks)
        assert found <= batch
        assert found == batch or ranks > 1
        dealt = [len(share) for share in shares(range(problems), max(1, found // per_problem), ranks)]
        assert sum(dealt) == problems
        assert max(dealt) == longest
    monkeypatch.setattr("entrl.evaluation.answers.rows_that_fit", lambda *_, **__: 256)
    asked = {"tokenizer": tokenizer, "dataset": dataset, "sampling": SAMPLING}
    found = Answers(model=model, **asked, batch_size="auto")
    assert [found.fitting(1, ranks) for ranks in (1, 2, 3, 8)] == [256, 16, 12, 4]  # 7 problems of 4 answers
    found.ready(found.fitting(1, 3))
    assert idle_ranks(found, 3) is None
    given = Answers(model=model, **asked, batch_size=20)
    assert [given.fitting(1, ranks) for ranks in (1, 2, 3, 8)] == [20] * 4  # so no number depends on the ranks
    given.ready(20)
    assert idle_ranks(given, 2) is None
    assert idle_ranks(given, 3).startswith("1 of 3 ranks have nothing to do: 5 of the 7 problems are asked together")


def test_records_of_other_settings_are_not_mixed_in(model, tokenizer, dataset, tmp_path, capsys):
    folder = tmp_path / "p"
    common = {"k": [1], "greedy": True, "problems": "a hash", "batch_size": 8, "seed": 1}
    first = Partial(folder=folder, settings={"temperature": 1.0, **common})
    first.prepare(print)
    with first.writing(0) as keep:
        keep(0, {"a": 1}, 2.0)
    assert first.read() == Done(records={0: {"a": 1}}, seconds=2.0)
    first.prepare(print)
    assert first.read().records
    assert capsys.readouterr().out == ""
    (folder / "0").mkdir()
    (folder / "0" / "notes.txt").write_text("mine")
    (folder / "kept.csv").write_text("mine too")
    other = Partial(folder=folder, settings={"temperature": 0.7, **common})
    other.prepare(print)
    assert other.read() == Done()
    assert "other temperature: starting anew" in capsys.readouterr().out
    assert clear_records(folder) == ["0", "kept.csv"]  # what is not ours stays, and the folder with it
    assert (folder / "0" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "files",
    [
        {"results.csv": "1"},
        {"settings.json": '{"editor.tabSize": 2}', "rank-0.jsonl": "{}"},
        {"settings.json": "[1]"},
        {"0/notes.txt": "1"},
        {"rank-0.jsonl": "{}", "batch.json": "{}"},
    ],
)
def test_a_folder_that_is_no_evaluation_s_is_refused_and_left_whole(files, model, tokenizer, dataset, tmp_path):
    folder = tmp_path / "eval.partial"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"eval\.partial .* nothing was touched: move it away"):
        evaluate(model, tokenizer, dataset, score=by_characters, progress=False, partial=folder, **OPTIONS)
    clear_records(folder)
    assert {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()} == files


def test_records_are_known_as_ours_wherever_a_kill_leaves_them(model, tokenizer, dataset, tmp_path):
    """Of one task and of several; killed while it began, and while it was cleared."""
    work, folder = answers(model, tokenizer, dataset), tmp_path / "p"
    settings = work.settings
    for place in (folder, folder / "0", folder / "1"):
        kept = Partial(folder=place, settings=settings)
        kept.prepare(print)
        kept.batch(lambda: 8)
        with kept.writing(0) as keep:
            keep(0, {"a": 1}, 2.0)
    real, gone = type(folder).unlink, []

    def dying(self, **how):
        if len(gone) == 4:
            raise Killed
        gone.append(self.name)
        real(self, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(folder), "unlink", dying)
        with pytest.raises(Killed):
            clear_records(folder)
    refuse_foreign_records(folder)
    assert clear_records(folder) == []
    assert not folder.exists()
    folder.mkdir()
    (folder / "settings.part").write_text("{")  # before the first settings have their place
    Partial(folder=folder, settings=settings).prepare(print)
    assert clear_records(folder) == []


def test_without_greedy_answers(model, tokenizer, dataset, whole):
    found = evaluate(model, tokenizer, dataset, score=by_characters, progress=False, greedy=False, **OPTIONS)
    assert found["greedy_accuracy"] is found["mean_length_greedy"] is found["greedy_truncation_rate"] is None
    assert [p["greedy_correct"] for p in found["problems"]] == [None] * 7
    for name in (
        "n_correct",
        "n_samples",
        "mean_length",
    ):  # the draws are the same
        assert [p[name] for p in found["problems"]] == [p[name] for p in whole["problems"]]
    assert json.loads(json.dumps(found)) == found


def test_what_is_drawn_does_not_depend_on_its_company(model, tokenizer, dataset):
    prompts = [tokenizer(text=p)["input_ids"] for p in dataset["prompt"]]
    asked = [Asked(index=i, prompt_ids=ids) for i, ids in enumerate(prompts)]

    def written(rows, questions):
        writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=SAMPLING, rows=rows)
        return {a.index: [a.greedy.ids, *(c.ids for c in a.drawn)] for a in writer.write(questions)}

    together = written(64, asked)
    assert together == written(1, asked) == written(5, list(reversed(asked)))
    assert written(64, asked[3:4])[3] == together[3]
    assert len({tuple(ids) for answers in together.values() for ids in answers}) > 20


def test_draws_have_the_model_s_probabilities(model, tokenizer):
    """The first token of 4,000 answers against its distribution, top_p included."""
    prompt = tokenizer(text="1+2=")["input_ids"]
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / 2, -1)
    order = p.argsort(descending=True)
    kept = order[: int((p[order].cumsum(0) < 0.9).sum()) + 1]
    expected = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
    sampling = Sampling(samples=4000, temperature=2.0, top_p=0.9, max_new_tokens=1, seed=0, greedy=False)
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=1000)
    (found,) = writer.write([Asked(index=0, prompt_ids=prompt)])
    counts = torch.bincount(torch.tensor([c.ids[0] for c in found.drawn]), minlength=len(p)).double()
    assert counts[expected == 0].sum() == 0
    deviation = ((counts - 4000 * expected) / (4000 * expected * (1 - expected)).sqrt())[expected > 0]
    assert deviation.abs().max() < 4.5


def test_a_batch_that_does_not_fit_is_halved_and_said(model, tokenizer, dataset, monkeypatch):
    asked = [Asked(index=i, prompt_ids=tokenizer(text=p)["input_ids"]) for i, p in enumerate(dataset["prompt"])]
    real, sizes, said = type(model).generate, [], []

    def small(self, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **options)

    plain = TransformersWriter(model=model, tokenizer=tokenizer, sampling=SAMPLING, rows=28)
    expected = {a.index: [c.ids for c in a.drawn] for a in plain.write(asked)}
    monkeypatch.setattr(type(model), "generate", small)
    writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=SAMPLING, rows=28, say=said.append)
    assert {a.index: [c.ids for c in a.drawn] for a in writer.write(asked)} == expected
    assert sizes[:3] == [28, 14, 7]
    assert said == [f"out of memory: batches of {n} answers from here on" for n in (14, 7, 3)]
    assert max(sizes[3:]) == 3
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match="another fault"):
        list(writer.write(asked))


def test_a_batch_shrinks_as_its_answers_end(model, tokenizer, dataset, monkeypatch):
    """Half of the rows end, the others go on with their part of the cache, and nothing else changes."""
    sizes, real = [], type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda self, **o: sizes.append(len(o["input_ids"])) or real(self, **o))
    sampling = Sampling(samples=6, temperature=20.0, top_p=1.0, max_new_tokens=400, seed=0)  # ends are often drawn
    asked = [Asked(index=i, prompt_ids=tokenizer(text=p)["input_ids"]) for i, p in enumerate(dataset["prompt"])]

    def written(few):
        monkeypatch.setattr(generation, "FEW_ROWS", few)
        writer = TransformersWriter(model=model, tokenizer=tokenizer, sampling=sampling, rows=49)
        return {a.index: a for a in writer.write(asked)}

    shrunk, count = written(4), len(sizes)
    assert sizes[0] == 49
    assert sizes == sorted(sizes, reverse=True)
    assert count > 2
    straight = written(49)
    assert len(sizes) == count + 1
    for index, answered in shrunk.items():
        for a, b in zip(answered.drawn, straight[index].drawn, strict=True):
            assert a.ids == b.ids
            torch.testing.assert_close(a.entropies, b.entropies, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(a.logprobs, b.logprobs, atol=2e-4, rtol=1e-5)


def test_rows_that_fit(model, monkeypatch):
    """2 layers x 2 x key-value width x 4 bytes a token, and the logits of one step."""
    config = model.config
    width = config.num_key_value_heads * config.head_dim
    row = 100 * 2 * config.num_hidden_layers * width * 4 + memory.LOGITS * config.vocab_size
    assert memory.row_bytes(model, 100) == row
    for rows, found in ((0.5, 1), (1.5, 1), (5, 4), (33, 32), (10**6, memory.MOST_ROWS)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, rows=rows: rows * row / memory.SHARE["cpu"] * 1.001)
        assert memory.rows_that_fit(model, 100) == found
    monkeypatch.setattr(memory, "free_bytes", lambda _: 33 * row / memory.SHARE["cpu"])
    assert memory.rows_that_fit(model, 100, processes=2) == 16


def test_an_unfinished_evaluation_is_no_result(model, tokenizer, dataset):
    work = answers(model, tokenizer, dataset)
    with pytest.raises(RuntimeError, match="5 of 7 problems have no answer, the first is 1"):
        Done(records={0: {}, 3: {}}).in_order(len(work.order))
