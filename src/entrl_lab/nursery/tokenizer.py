"""A character-level tokenizer: one token per printable ASCII character; tags and specials are one token each.

Encoding then decoding gives back any printable ASCII text (newlines and tags included) exactly; any other
character becomes `<|unk|>`. The tags are not special tokens: TRL decodes completions with special tokens left
out, and rewards must still see where the thinking ends.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from entrl.tasks.traces import THINK_CLOSE, THINK_OPEN

END, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unk|>"

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))

# One user turn renders as its bare content: a conversational prompt and the plain string are the same tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def character_tokenizer(*, max_length: int = 512) -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny reasoner; pads on the left, as generation wants."""
    tokens = [END, PAD, UNKNOWN, THINK_OPEN, THINK_CLOSE, *CHARACTERS]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()  # the default joins tokens with spaces
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (THINK_OPEN, THINK_CLOSE)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
