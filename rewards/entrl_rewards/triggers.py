"""Words that open a turn of thought ("wait", "however"): which tokens of a vocabulary are such words.

The lists are ours and short. The ARES authors' list of 174 words was made by prompting a language model and is not
repeated here; a model that writes otherwise needs words of its own (`words=[...]`), or none at all, which looks at
every window.

Source:  ARES code, `normalize_token`: a token counts as the word it is after its marker characters, white space and
    case are taken away
Needs:   a tokenizer, or any sequence of token texts
"""

from collections.abc import Iterable, Sequence
from typing import Any

MARKERS = "Ġ▁Ċ"  # how byte-level and sentencepiece vocabularies write a leading space or line break

WORDS: dict[str, tuple[str, ...]] = {
    "en": (
        *("wait", "hmm", "actually", "however", "but", "although", "instead", "alternatively", "otherwise"),
        *("maybe", "perhaps", "suppose", "assume", "let", "if", "check", "verify", "recheck", "again", "so"),
        *("thus", "hence", "therefore", "because", "since"),
    ),
    "de": (
        *("warte", "moment", "eigentlich", "aber", "jedoch", "obwohl", "stattdessen", "sonst", "vielleicht"),
        *("angenommen", "falls", "wenn", "prüfe", "nochmal", "also", "daher", "folglich", "denn", "weil"),
    ),
    "fr": (
        *("attends", "attendons", "mais", "cependant", "pourtant", "sinon", "peut", "supposons", "si", "vérifions"),
        *("encore", "donc", "ainsi", "car", "puisque"),
    ),
    "es": (
        *("espera", "esperen", "pero", "aunque", "quizá", "quizás", "supongamos", "si", "verifiquemos", "otra"),
        *("entonces", "luego", "porque", "pues"),
    ),
    "zh": (
        *("等等", "等", "但", "但是", "不过", "然而", "也许", "可能", "假设", "如果"),
        *("检查", "验证", "所以", "因此", "因为", "那么"),
    ),
}


def normalise_token(text: str) -> str:
    """`" Wait"`, `"Ġwait"` and `"▁WAIT\\n"` are all `"wait"`."""
    return text.lstrip(MARKERS).strip().lower()


def trigger_words(given: str | Sequence[str]) -> frozenset[str]:
    """A language of `WORDS`, several joined by `+` ("en+zh"), or the words themselves, normalised."""
    if not isinstance(given, str):
        words = frozenset(normalise_token(w) for w in given)
        if not words or "" in words:
            raise ValueError(f"triggers must be words with letters, got {list(given)}; null looks at every window")
        return words
    chosen = given.split("+")
    if unknown := [language for language in chosen if language not in WORDS]:
        raise ValueError(f"no trigger words for {unknown}; known: {', '.join(WORDS)}; or give a list of words, or null")
    return frozenset(word for language in chosen for word in WORDS[language])


def trigger_ids(tokenizer: Any, words: Iterable[str]) -> frozenset[int]:
    """Ids of all tokens that are one of the words by themselves.

    A word that the vocabulary has only in pieces has no id; ValueError when that is true of all of them, because then
    no window would ever be looked at.
    """
    wanted = frozenset(words)
    vocabulary = tokenizer.get_vocab()
    # a byte-level vocabulary writes non-Latin words in its own alphabet, so both spellings are looked at
    found = {
        i
        for text, i in vocabulary.items()
        if normalise_token(text) in wanted or normalise_token(tokenizer.convert_tokens_to_string([text])) in wanted
    }
    if not found:
        raise ValueError(
            f"none of the trigger words {sorted(wanted)[:8]} is one token of this vocabulary ({len(vocabulary)} "
            "tokens); give words it has, or triggers: null to look at every window"
        )
    return frozenset(found)
