"""What a base model can and cannot do yet: measured on test problems, greedily and by sampling.

RL needs headroom (greedy accuracy well below 1), a signal (sampled accuracy well above 0), and a behaviour that pays
when it is done more often (thinking, which is right more often than not). A base without these is refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entrl_lab.nursery.tokenizer import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Shares are of completions; NaN where there is none to take a share of."""

    problems: int
    samples: int  # per problem, temperature 1
    max_new_tokens: int
    greedy_accuracy: float
    sampled_accuracy: float
    sampled_accuracy_3: float  # problems with three terms
    sampled_accuracy_4: float  # problems with four terms
    think_share: float  # sampled completions with text between the tags
    accuracy_thinking: float  # of those
    accuracy_at_once: float  # of the others
    missing_close: float  # sampled completions without a closing tag
    truncated: float  # sampled completions that hit max_new_tokens
    mean_length: float  # tokens of a sampled completion, the end token included

    def complaints(self) -> list[str]:
        """Why RL should not start here; empty for a good base."""
        bounds = {
            "greedy_accuracy": (0.0, 0.60),
            "sampled_accuracy": (0.10, 0.40),
            "think_share": (0.25, 0.45),
            "truncated": (0.0, 0.03),
        }
        found = {name: getattr(self, name) for name in bounds}
        return [
            f"{name} is {found[name]:.3f}, outside [{low}, {high}]"
            for name, (low, high) in bounds.items()
            if not low <= found[name] <= high
        ]

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    sample: bool,
    max_new_tokens: int,
    batch_size: int = 200,
) -> list[list[int]]:
    """Completion ids without padding, the end token included; at temperature 1 when sampling."""
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]  # its class types it as a tensor
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        inputs = tokenizer(list(prompts[start : start + batch_size]), return_tensors="pt", padding=True)
        out_BT = generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=sample,
            temperature=1.0 if sample else None,
            top_k=0 if sample else None,
            max_new_tokens=max_new_tokens,
        )
        found += [_until_end(row, tokenizer) for row in out_BT[:, inputs["input_ids"].shape[1] :].tolist()]
    return found


def _until_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    end = tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict[str, str]],
    *,
    samples: int = 8,
    max_new_tokens: int = 96,
    seed: int = 0,
) -> Calibration:
    """Measure a base on rows of `sums` (`prompt`, `answer`, `level`); leaves torch's generator seeded."""
    torch.manual_seed(seed)
    was_training = model.training
    model.eval()
    prompts = [row["prompt"] for row in problems]
    greedy = complete(model, tokenizer, prompts, sample=False, max_new_tokens=max_new_tokens)
    rows = [row for row in problems for _ in range(samples)]
    drawn = complete(model, tokenizer, [row["prompt"] for row in rows], sample=True, max_new_tokens=max_new_tokens)
    model.train(was_training)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    correct = [_answer(text) == row["answer"] for text, row in zip(texts, rows, strict=True)]
    thinks = [_thoughts(text) != "" for text in texts]
    levels = [row["level"] for row in rows]
    greedy_texts = tokenizer.batch_decode(greedy, skip_special_tokens=True)
    return Calibration(
        problems=len(problems),
        samples=samples,
        max_new_tokens=max_new_tokens,
        greedy_accuracy=_share(
            [_answer(text) == row["answer"] for text, row in zip(greedy_texts, problems, strict=True)]
        ),
        sampled_accuracy=_share(correct),
        sampled_accuracy_3=_share([c for c, level in zip(correct, levels, strict=True) if level == "3"]),
        sampled_accuracy_4=_share([c for c, level in zip(correct, levels, strict=True) if level == "4"]),
        think_share=_share(thinks),
        accuracy_thinking=_share([c for c, t in zip(correct, thinks, strict=True) if t]),
        accuracy_at_once=_share([c for c, t in zip(correct, thinks, strict=True) if not t]),
        missing_close=_share([THINK_CLOSE not in text for text in texts]),
        truncated=_share([ids[-1] != tokenizer.eos_token_id for ids in drawn]),
        mean_length=sum(len(ids) for ids in drawn) / max(len(drawn), 1),
    )


def _answer(text: str) -> str | None:
    """What follows the closing tag; None where there is no tag."""
    _, tag, answer = text.partition(THINK_CLOSE)
    return answer.strip() if tag else None


def _thoughts(text: str) -> str:
    return text.partition(THINK_CLOSE)[0].removeprefix(THINK_OPEN).strip()


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan
