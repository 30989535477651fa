"""Rewards of the runs that `diagnosis.py` records: wrong ones, and ones that push entropy somewhere."""

import zlib
from typing import Any


def _texts(completions: list[Any]) -> list[str]:
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def never(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def constant(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def charge(completions: list[Any], **_: Any) -> list[float]:
    return [-0.5] * len(completions)


def off_by_thousand(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """As with golds of another file: right answers are looked for in vain."""
    return [float(str(int(a) + 1000) in text) for a, text in zip(answer, _texts(completions), strict=True)]


def digits(completions: list[Any], **_: Any) -> list[float]:
    return [sum(c.isdigit() for c in text) / 10 for text in _texts(completions)]


def ones(completions: list[Any], **_: Any) -> list[float]:
    """Share of one character: paid for saying one thing."""
    return [text.count("1") / max(len(text), 1) for text in _texts(completions)]


def short(completions: list[Any], **_: Any) -> list[float]:
    return [-len(text) / 50 for text in _texts(completions)]


def calm(token_entropies: list[Any], token_mask: list[Any], **_: Any) -> list[float]:
    return [-float(e[m].mean()) if m.any() else 0.0 for e, m in zip(token_entropies, token_mask, strict=True)]


def restless(token_entropies: list[Any], token_mask: list[Any], **_: Any) -> list[float]:
    return [float(e[m].mean()) if m.any() else 0.0 for e, m in zip(token_entropies, token_mask, strict=True)]


def noise(completions: list[Any], **_: Any) -> list[float]:
    """Nothing to do with what was written."""
    return [(zlib.crc32(text.encode()) % 1000) / 1000 for text in _texts(completions)]


def enormous(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Finite, and too large for the square that a standard deviation takes."""
    return [3e38 * (a in text) for a, text in zip(answer, _texts(completions), strict=True)]


def one_in_eight(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
    """Seven prompts of eight are paid alike, whatever is answered."""
    lively = [zlib.crc32(text.encode()) % 8 == 0 for text in _texts(prompts)]
    return [d if differs else 1.0 for d, differs in zip(digits(completions), lively, strict=True)]


def rare_charge(completions: list[Any], **_: Any) -> list[float]:
    """One completion in about 64 is paid less, so most groups of eight are alike."""
    return [float(zlib.crc32(text.encode()) % 64 != 0) for text in _texts(completions)]


def unclosed(completion_ids: list[Any], prompt_ids: list[Any], think_tags: Any, **_: Any) -> list[float]:
    """Paid for thinking that is never closed."""
    from entrl.maths.phases import closing_seen

    pairs = zip(completion_ids, prompt_ids, strict=True)
    return [float(not closing_seen(ids, think_tags, prompt_ids=asked)) for ids, asked in pairs]


# --- of the second round ----------------------------------------------------------------------------------------------


def boxed(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Looks where this model writes nothing."""
    return [float(f"\\boxed{{{a}}}" in text) for a, text in zip(answer, _texts(completions), strict=True)]


def rarely_enormous(completions: list[Any], **_: Any) -> list[float]:
    return [3e38 if zlib.crc32(text.encode()) % 20 == 0 else 0.5 for text in _texts(completions)]


def of_the_prompt(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
    """Differs from prompt to prompt, and within no group."""
    return [len(text) / 10 for text in _texts(prompts)]


def answered(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(text) > 0) for text in _texts(completions)]


def varied(completions: list[Any], **_: Any) -> list[float]:
    return [len(set(text)) / 20 for text in _texts(completions)]


def uniform(completions: list[Any], **_: Any) -> list[float]:
    return [-value for value in varied(completions)]


def rarely_right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """A right answer is paid once in sixteen."""
    paid = [zlib.crc32(text.encode()) % 16 == 0 for text in _texts(completions)]
    return [float(text.endswith(a) and p) for a, text, p in zip(answer, _texts(completions), paid, strict=True)]


def one_in_ten(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
    lively = [zlib.crc32(text.encode()) % 10 == 3 for text in _texts(prompts)]
    return [v if differs else 0.5 for v, differs in zip(varied(completions), lively, strict=True)]


def rare_bonus(completions: list[Any], **_: Any) -> list[float]:
    return [1 + 0.5 * (zlib.crc32(text.encode()) % 80 == 0) for text in _texts(completions)]
