"""recipes/r1-distill, but for scale: Qwen2's architecture and a template that opens the thought in the prompt.

Not their vLLM, hub data and length (another machine), nor the 4-bit base (`test_models_quantization.py`).
"""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from entrl.runs.recipe import load_recipe
from entrl.runs.train import train

RECIPES = Path(__file__).parents[1] / "recipes" / "r1-distill"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)


def distilled_like(folder: Path) -> str:
    """A random Qwen2 with untied embeddings, a byte-level BPE, and a prompt that ends in `<think>`."""
    control = ["<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["a baker sells 12 loaves and then 7 more"] * 4,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=control),
    )
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>", padding_side="left",
        unk_token="<|end|>",  # else Qwen2's tokenizer, as which it is read back, adds one that has no embedding
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pear-gsm8k", "lora-24gb", "qlora-24gb"])
def test_r1_distill_recipe_is_constructed_and_steps_with_a_random_model(name: str, tmp_path: Path):
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} loaves and {i} more?"}], "answer": str(2 * i)} for i in range(128)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        f"model={{path: {distilled_like(tmp_path / 'model')}, dtype: float32}}",
        f"data={{task: 'jsonl:{tmp_path / 'rows.jsonl'}', train_size: 128}}",
        f"eval={{task: 'jsonl:{tmp_path / 'rows.jsonl'}', size: 3, samples: 2, k: [1, 2], max_new_tokens: 6}}",
        "trainer.use_vllm=false",
        "trainer.vllm_replicas=null",
        "trainer.max_completion_length=6",
        "trainer.max_steps=1",
        f"trainer.output_dir={tmp_path / 'run'}",
    ]
    result = train(load_recipe(RECIPES / f"{name}.yaml", words), console=Console(quiet=True))
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["step"] == 1
    assert "pear/h_think" in row
    samples = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"].endswith("<|Assistant|><think>\n")
    # the prompt opened the thought: cut before its end there is no answer, whatever was written
    assert all(s["entropies"] is not None for s in samples)
    assert row["pear/correct"] == 0
    assert result.eval_after is not None
    assert result.eval_after["n_problems"] == 3
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file() == (name != "pear-gsm8k")
