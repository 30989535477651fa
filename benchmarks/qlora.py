"""What four bits do to a base, and what rounding the adapter to bfloat16 does to its updates (docs/lora.md).

    python benchmarks/qlora.py --model FOLDER --out benchmarks/qlora.json        needs bitsandbytes

gap      |log-prob difference| of tokens that the model sampled in bfloat16: float32, and nf4, against bfloat16; nats
changed  share of the numbers of adapter matrix A that 8 steps change, kept in bfloat16 (as TRL does) and in float32;
         a random model of width 64
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_model import digits, options, prompts, saved_model

from entrl.models.quantization import keep_adapter_in_float32
from entrl.settings.provenance import entrl_commit
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
NF4["bnb_4bit_compute_dtype"] = torch.bfloat16
ASKED = (
    "What is 17 + 8 - 6?",
    "Name three rivers in Europe.",
    "A shop sells 12 loaves in the morning and 7 in the afternoon. How many in all?",
    "Write two sentences about winter.",
)


def gap(path: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    chats = [[{"role": "user", "content": text}] for text in ASKED]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    sampler = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    torch.manual_seed(0)
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 48}
    out_BT = sampler.generate(**asked, **how, num_return_sequences=4)
    start = asked["input_ids"].shape[1]
    said_BT = out_BT[:, start:]
    seen_BT = torch.cat([asked["attention_mask"].repeat_interleave(4, 0), torch.ones_like(said_BT)], 1)
    is_end_BT = said_BT == tokenizer.eos_token_id
    counts_BT = is_end_BT.cumsum(1) - is_end_BT.long() == 0  # up to and with the first end token

    @torch.no_grad()
    def logprobs(model: Any) -> torch.Tensor:
        places_BT = (seen_BT.cumsum(-1) - 1).clamp(min=0)
        logits_BTV = model(input_ids=out_BT, attention_mask=seen_BT, position_ids=places_BT).logits
        log_p_BTV = logits_BTV[:, start - 1 : -1].float().log_softmax(-1)
        return log_p_BTV.gather(-1, said_BT[..., None])[..., 0][counts_BT]

    own = logprobs(sampler)
    others = {
        "float32": AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        "nf4": AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4)
        ),
    }
    found = {name: (logprobs(model) - own).abs() for name, model in others.items()}
    gaps = {name: {"mean": d.mean().item(), "max": d.max().item()} for name, d in found.items()}
    return {"tokens": int(counts_BT.sum()), **gaps}


def changed(rate: float, *, float32: bool) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        base = saved_model(Path(scratch) / "base", hidden=64)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**NF4)
        )
        steps = {"max_steps": 8, "max_completion_length": 8, "lr_scheduler_type": "constant"}
        args = options(Path(scratch), bf16=True, learning_rate=rate, **steps)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        tokenizer = AutoTokenizer.from_pretrained(base)
        trainer = EntropyGRPOTrainer(model, [digits], args, prompts(), processing_class=tokenizer, peft_config=lora)
        if float32:
            keep_adapter_in_float32(trainer.model)
        parts = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_A" in n}
        before = {n: p.detach().clone() for n, p in parts.items()}
        trainer.train()
        return sum(int((p != before[n]).sum()) for n, p in parts.items()) / sum(p.numel() for p in before.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    shares = {
        f"{rate:g}": {kind: changed(rate, float32=kind == "float32") for kind in ("bfloat16", "float32")}
        for rate in (1e-5, 1e-4)
    }
    found = {"commit": entrl_commit(), "gap": gap(given.model), "changed": shares}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
