"""The tiny reasoner under other spellings of its tags, and under a template like Qwen3's: same weights, same ids."""

import json
import shutil
from pathlib import Path

from entrl.models.shipped import model_path

# As Qwen3's: with thinking switched off, the prompt itself opens and closes an empty block.
SWITCH = (
    "{%- for message in messages %}<|im_start|>{{ message['content'] }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{%- endif %}"
    "{%- endif %}"
)
# As DeepSeek-R1's: the prompt opens the thinking.
PREFILLED = (
    "{%- for message in messages %}{{ message['content'] }}{%- endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)


def respelled(folder: Path, open_tag: str, close_tag: str, *, special: bool = False) -> str:
    """The tiny reasoner with its two tag tokens called otherwise, as special tokens if asked."""
    shutil.copytree(model_path("tiny-reasoner"), folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    names = {"<think>": open_tag, "</think>": close_tag}
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(token, token): i for token, i in vocab.items()}
    for token in content["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": special}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(folder)


def templated(folder: Path, template: str) -> str:
    """The tiny reasoner with a chat template of ours; `<|im_start|>` becomes a token of the template's."""
    from transformers import AutoTokenizer

    shutil.copytree(model_path("tiny-reasoner"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = template.replace("<|im_start|>", tokenizer.eos_token)  # no embedding to spare for a new one
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)
