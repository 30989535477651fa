"""What stands in the rows: problems that repeat or are tested as well, golds that are all one, texts that control.

Each is legal and rarely meant: lines of warning. `where` is data or eval.
"""

import re
from collections.abc import Sequence
from typing import Any

from entrl.diagnosis.bounds import BEYOND

NAMED = 3  # rows named in a message about many
FEWEST = 4  # rows below which nothing is said of all of them alike, our choice


def some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def text_of(prompt: Any) -> str:
    """What a person wrote: a text, or the contents of messages."""
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


def content_warnings(rows: Any, where: str, *, from_file: bool) -> list[str]:
    """from_file: nobody of ours has looked at how its golds were made"""
    golds = [gold for gold in rows["answer"] if gold] if "answer" in rows.column_names else []
    return [
        *(_repeats(rows) if where == "data" else []),
        *_one_gold(golds, where),
        *(_shown_golds(rows, where) if from_file and golds else []),
    ]


def _repeats(rows: Any) -> list[str]:
    first: dict[str, str] = {}
    again = [
        f"{row_id} as {first[str(prompt)]}"
        for row_id, prompt in zip(rows["problem_id"], rows["prompt"], strict=True)
        if first.setdefault(str(prompt), row_id) != row_id
    ]
    return [f"data: {len(again)} of {len(rows)} prompts occur before ({some(again)})"] if again else []


def _one_gold(golds: Sequence[str], where: str) -> list[str]:
    if len(golds) < FEWEST or len(set(golds)) > 1:
        return []
    return [
        f"{where}: all {len(golds)} gold answers are {golds[0][:40]!r}, which can be learnt without reading a prompt; "
        "is answer_column right? Give the rows answers of their own"
    ]


def _shown_golds(rows: Any, where: str) -> list[str]:
    """Golds of two characters or more that stand in the prompt as a word, in almost all rows."""
    pairs = [
        (row_id, text_of(prompt), str(gold))
        for row_id, prompt, gold in zip(rows["problem_id"], rows["prompt"], rows["answer"], strict=True)
        if gold is not None and len(str(gold)) > 1
    ]
    shown = [row_id for row_id, text, gold in pairs if re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", text)]
    if len(pairs) < FEWEST or len(shown) < BEYOND["share of golds in their prompts"].high * len(pairs):
        return []
    return [
        f"{where}: the gold answer stands in the prompt of {len(shown)} of {len(rows)} rows ({some(shown)}); take it "
        "out, unless the answer is to be chosen from what the prompt lists"
    ]


def overlap_warnings(trained: Any, tested: Any, name: str) -> list[str]:
    """Problems of an evaluation that are trained on. trained, tested: their rows, of a generated task a few."""
    seen = {text_of(prompt).strip() for prompt in trained["prompt"]}
    both = [
        row_id
        for row_id, prompt in zip(tested["problem_id"], tested["prompt"], strict=True)
        if text_of(prompt).strip() in seen
    ]
    if not both:
        return []
    return [
        f"eval: {len(both)} of the {len(tested)} problems of {name} are trained on as well ({some(both)}): its numbers "
        "are no test; leave them out of one of the two (a file's option test_every holds some out)"
    ]


def control_warnings(tokenizer: Any, rows: Any, where: str, tags: Sequence[str]) -> list[str]:
    """Text of a row that is read as a control token or as a thinking tag."""
    control = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    out = []
    for what, words in (("control tokens of the tokenizer", control), ("thinking tags of the run", list(tags))):
        held = [
            f"{row_id}: {word}"
            for row_id, prompt in zip(rows["problem_id"], rows["prompt"], strict=True)
            if (word := next((w for w in words if w in text_of(prompt)), None)) is not None
        ]
        if held:
            out.append(
                f"{where}: {len(held)} of {len(rows)} prompts hold {what} ({some(held)}), which are read as such; take "
                "them out, unless you wrote the template into the prompts yourself"
            )
    golds = rows["answer"] if "answer" in rows.column_names else []
    held = [f"{rows['problem_id'][i]}: {g}" for i, g in enumerate(golds) if g and any(w in g for w in control)]
    if held:
        out.append(
            f"{where}: {len(held)} of {len(rows)} gold answers hold control tokens of the tokenizer ({some(held)}), "
            "which no completion holds once it is decoded; take them out"
        )
    return out


def template_warnings(tokenizer: Any, rows: Any, given: dict[str, Any]) -> list[str]:
    """Of trainer.chat_template_kwargs: arguments that nothing reads."""
    if not given:
        return []
    if isinstance(rows[0]["prompt"], str):
        return [
            f"trainer.chat_template_kwargs: {', '.join(given)} are for chat templates, and the prompts of data are "
            "plain text, which no template sees; leave it out, or write the prompts as messages"
        ]
    template = tokenizer.chat_template
    idle = [name for name in given if isinstance(template, str) and not re.search(rf"\b{re.escape(name)}\b", template)]
    if not idle:
        return []
    return [
        f"trainer.chat_template_kwargs names {', '.join(idle)}, which the chat template does not read; correct it, or "
        "leave it out"
    ]
