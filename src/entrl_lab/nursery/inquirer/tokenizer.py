r"""A byte-level tokenizer whose fixed phrases are one token each, and a lean chat template with tool calls.

The messages look like Qwen3's (`<|im_start|>role\n ... <|im_end|>`, calls as JSON inside `<tool_call>` tags, results
inside `<tool_response>` tags), so TRL's parser for Qwen3 reads the calls. Three things are leaner. A tool is shown by
its name and its arguments (`ask(attribute)`) and not by its JSON schema, which alone would be some hundred tokens. The
line break between two messages belongs to the later one, so a message never changes when another follows. There is no
thinking block unless a message has something in it.

Any text survives encoding and decoding: a word that is not listed is spelt in bytes.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

SYSTEM = f"{START}system\nTools:"
USER = f"\n{START}user\n"
ASSISTANT = f"{END}\n{START}assistant\n"  # closes what came before: after a user's message
RESULT = f"\n{START}user\n<tool_response>\n"
RESULT_END = f"\n</tool_response>{ASSISTANT}"
CALL_END = f'"}}}}\n{CALL_CLOSE}'
SPACE = "Ġ"  # how byte-level vocabularies write it
NUMBERS = 100  # 0 .. 99 are one token each
BUDGETS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)  # "Question 1 of 2:" .. "Question 20 of 20:" are one token each

# The text of Qwen3's training template where it matters to a parser; what differs is said above.
CHAT_TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}
        {%- set tool = tool.function if tool.function else tool %}
        {{- (' ' if loop.first else ', ') + tool.name + '(' + tool.parameters.properties.keys() | join(', ') + ')' }}
    {%- endfor %}
    {%- if messages[0].role == 'system' %}
        {{- '\\n' + messages[0].content }}
    {%- endif %}
    {{- '<|im_end|>' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>' }}
{%- endif %}
{%- set begun = namespace(value=(tools or messages[0].role == 'system')) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set before = '\\n' if begun.value else '' %}
    {%- if message.role == 'system' and loop.first %}
    {%- elif message.role == 'assistant' %}
        {{- before + '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if message.reasoning_content is string and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n' if content or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {%- set begun.value = true %}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- before + '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>' }}
        {%- endif %}
        {%- set begun.value = true %}
    {%- else %}
        {{- before + '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' }}
        {%- set begun.value = true %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\\n<|im_start|>assistant\\n' }}
{%- endif %}
"""

# How transformers finds reasoning, calls and content in what the model wrote; the layout is TRL's for Qwen3.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": THINK_OPEN, "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": CALL_OPEN,
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


def call_opening(tool: str, argument: str) -> str:
    """A call with one argument, up to its value."""
    return f'{CALL_OPEN}\n{{"name": "{tool}", "arguments": {{"{argument}": "'


def counter(number: int, budget: int) -> str:
    """How an environment's answer begins."""
    return f"Question {number} of {budget}:"


def phrases(tools: Sequence[tuple[str, str]], sentences: Iterable[str] = ()) -> list[str]:
    """The fixed phrases of a dialogue with these (tool, argument) pairs; each becomes one token."""
    fixed = [SYSTEM, USER, ASSISTANT, RESULT, RESULT_END, "\n</tool_response>", CALL_END]
    fixed += [f" {tool}({argument})" for tool, argument in tools]
    fixed += [call_opening(tool, argument) for tool, argument in tools]
    fixed += [counter(number, budget) for budget in BUDGETS for number in range(1, budget + 1)]
    return [*fixed, *sentences]


def inquirer_tokenizer(
    words: Iterable[str],
    tools: Sequence[tuple[str, str]],
    sentences: Iterable[str] = (),
    *,
    max_length: int = 2048,
) -> PreTrainedTokenizerFast:
    """Bytes, numbers, and every word with and without a space before it; pads on the left.

    words: one token each, in two spellings. tools: (name, its one argument). sentences: fixed text, one token each.
    """
    ordered = list(dict.fromkeys([*map(str, range(NUMBERS)), *words]))
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [
        spelt for word in ordered for spelt in (word, "Ġ" + word)
    ]  # Ġ is how byte-level vocabularies write a space
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+(?:-[A-Za-z]+)*| ?[0-9]{1,2}|[\s\S]"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    plain = [CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE, *phrases(tools, sentences)]
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in dict.fromkeys(plain)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START],
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer
