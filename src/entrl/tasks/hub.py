"""Benchmarks of the Hugging Face hub by name: where each lives and how its columns become ours.

gsm8k         openai/gsm8k, main               train and test; the gold answer follows `####`
dapo-math     BytedTsinghua-SIA/DAPO-Math-17k  train only; the file repeats its problems, one copy is kept
math-500      HuggingFaceH4/MATH-500           test only
aime24        HuggingFaceH4/aime_2024          test only, 30 problems
aime25        math-ai/aime25                   test only, 30 problems
gpqa-diamond  Idavidrein/gpqa, gpqa_diamond    test only; gated (hub login); options shuffled by the seed

The mapping of columns is a pure function per benchmark (`map_rows`), apart from the download.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from entrl.tasks.rows import BOXED, Row, chat, digest, verifier_json

Record = Mapping[str, Any]

CHOICE = (
    "Please reason step by step, and finish with the letter of the right option alone, as \\boxed{A}, "
    "\\boxed{B}, \\boxed{C} or \\boxed{D}."
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a benchmark lives; `splits` maps ours to the hub's, and a missing one is refused."""

    path: str
    config: str | None = None
    splits: Mapping[str, str]
    row: Callable[[Record, int], Row]


def gsm8k_row(record: Record, seed: int) -> Row:
    """The worked solution ends in `#### 1,234`; the comma is dropped."""
    _, mark, answer = record["answer"].rpartition("####")
    if not mark:
        raise ValueError(f"gsm8k: no '####' in the solution {record['answer'][-60:]!r}")
    return _math_row("gsm8k", record["question"], answer.strip().replace(",", ""))


def dapo_row(record: Record, seed: int) -> Row:
    """The prompt as published: it asks for a last line `Answer: ...`, which math verification reads."""
    messages = [dict(message) for message in record["prompt"]]
    question = "\n".join(message["content"] for message in messages)
    return Row(
        prompt=messages,
        answer=str(record["reward_model"]["ground_truth"]),
        verifier=verifier_json("math"),
        problem_id=f"dapo-math/{digest(question):016x}",
        level="",
    )


def math500_row(record: Record, seed: int) -> Row:
    """Level 1-5 as published."""
    return _math_row("math-500", record["problem"], record["answer"], level=str(record["level"]))


def aime_row(record: Record, seed: int) -> Row:
    """Answers are integers from 0 to 999; some files write them with leading zeros."""
    return _math_row("aime", record["problem"], str(int(record["answer"])))


def gpqa_row(record: Record, seed: int) -> Row:
    """Four options in an order drawn from the seed and the question, so it does not depend on row order."""
    question = record["Question"].strip()
    right = record["Correct Answer"].strip()
    options = [right, *(record[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
    order = random.Random(f"{seed}/{digest(question)}").sample(range(4), 4)
    listed = "\n".join(f"{letter}) {options[i]}" for letter, i in zip("ABCD", order, strict=True))
    return Row(
        prompt=chat(f"{question}\n\n{listed}", instruction=CHOICE),
        answer="ABCD"[order.index(0)],
        verifier=verifier_json("choice", letters="ABCD"),
        problem_id=f"gpqa-diamond/{digest(question):016x}",
        level=str(record.get("High-level domain", "")),
    )


def _math_row(name: str, question: str, answer: str, *, level: str = "") -> Row:
    return Row(
        prompt=chat(question, instruction=BOXED),
        answer=answer,
        verifier=verifier_json("math"),
        problem_id=f"{name}/{digest(question):016x}",
        level=level,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(path="openai/gsm8k", config="main", splits={"train": "train", "test": "test"}, row=gsm8k_row),
    "dapo-math": Benchmark(path="BytedTsinghua-SIA/DAPO-Math-17k", splits={"train": "train"}, row=dapo_row),
    "math-500": Benchmark(path="HuggingFaceH4/MATH-500", splits={"test": "test"}, row=math500_row),
    "aime24": Benchmark(path="HuggingFaceH4/aime_2024", splits={"test": "train"}, row=aime_row),
    "aime25": Benchmark(path="math-ai/aime25", splits={"test": "test"}, row=aime_row),
    "gpqa-diamond": Benchmark(path="Idavidrein/gpqa", config="gpqa_diamond", splits={"test": "train"}, row=gpqa_row),
}


def benchmark_rows(name: str, *, split: str, size: int | None, seed: int) -> list[Row]:
    """Download (or read from the hub's cache) and map; with `size`, a sample drawn with `seed`."""
    benchmark = BENCHMARKS[name]
    if split not in benchmark.splits:
        raise ValueError(
            f"{name} has no {split} split, only {sorted(benchmark.splits)}; take another task for {split}ing"
        )
    return map_rows(name, _download(name, benchmark, split), size=size, seed=seed)


def map_rows(name: str, records: Iterable[Record], *, size: int | None, seed: int) -> list[Row]:
    """Records as the hub stores them to rows; a problem that occurs again is dropped."""
    rows: dict[str, Row] = {}
    for record in records:
        row = BENCHMARKS[name].row(record, seed)
        rows.setdefault(row["problem_id"], row)
    kept = list(rows.values())
    return random.Random(seed).sample(kept, size) if size is not None and size < len(kept) else kept


def _download(name: str, benchmark: Benchmark, split: str) -> Iterable[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return cast(Iterable[Record], load_dataset(benchmark.path, benchmark.config, split=benchmark.splits[split]))
    except (OSError, DatasetsError) as error:
        raise ConnectionError(
            f"task {name!r} needs {benchmark.path} of the Hugging Face hub, which could not be "
            f"read: {error}. "
            "Check the network and HF_HUB_OFFLINE (a gated dataset also needs `hf auth login`), "
            "or save the problems yourself and use `jsonl:PATH`"
        ) from error
