"""Games of twenty questions whose turns come from a server of `vllm_replicas`, on one process or two.

As a script: `[accelerate launch ...] tests/dialogue_runs.py OUT WORLD URL`; every rank writes what its rows were.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from entrl_rewards.information_gain import InformationGain
from inquiry_runs import script
from peft import LoraConfig
from tiny_model import options, tiny_model

from entrl.environments import load_environment
from entrl.tasks import load_task
from entrl.trainers.grpo.trainer import EntropyGRPOTrainer
from entrl_lab.nursery.inquirer import InquirerConfig
from entrl_lab.nursery.inquirer.build import tokenizer_of
from entrl_lab.nursery.inquirer.tokenizer import END

ROWS = 8  # of a rollout, over all ranks
SERVED = "m"  # what the server calls its base model


def writer() -> Any:
    """What a server writes: player k of a prompt plays `script(prompt, k)`; only the last prompt's players ask."""
    tokenizer = tokenizer_of(InquirerConfig())
    asking = load_games()[-1]["problem_id"]
    questions = {row["problem_id"]: row["prompt"][-1]["content"] for row in load_games()}

    def write(prompt: list[int], seed: int, n: int) -> list[list[int]]:
        text = tokenizer.decode(prompt)
        turn = text.count("<|im_start|>assistant\n") - 1
        if questions[asking] not in text:
            return [tokenizer.encode(END, add_special_tokens=False)] * n  # one turn, and no word
        start = text[: text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")]
        lines = [script(start, k) for k in range(n if turn == 0 else ROWS)]
        said = text.count(END)
        if turn > 0:  # the player whose words stand there
            lines = [own for own in lines if all(line in text for line in own[:turn])][:1]
        texts = [own[turn] if turn < len(own) else END for own in lines]
        assert len(texts) == n, (turn, n, said)
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    return write


def load_games() -> Any:
    return load_task({"task": "twenty_questions", "rows": 6, "columns": 6}, split="train", size=2, seed=0)


def run(out: Path, world: int, url: str) -> dict[str, Any]:
    tokenizer = tokenizer_of(InquirerConfig())
    model = tiny_model(vocabulary=tokenizer)
    model.config.max_position_embeddings = 4096
    model.name_or_path = SERVED
    rows: list[dict[str, Any]] = []

    class Watched(EntropyGRPOTrainer):
        def _generate(self, prompts: list) -> Any:
            found = super()._generate(prompts)
            rows.extend({"prompt": p, "ids": i, "tool_mask": m} for p, i, m in zip(*found[:3], strict=True))
            return found

    trainer = Watched(
        model,
        [InformationGain(credit="expected", pay="episode", question_cost=0.05, invalid_penalty=0.1)],
        args=options(
            out / f"world{world}",
            per_device_train_batch_size=ROWS // world,
            num_generations=4,
            max_completion_length=200,
            max_steps=2,
            use_vllm=True,
            vllm_mode="server",
            vllm_replicas=[url],
            vllm_adapter_dir=str(out / "adapters"),
            vllm_importance_sampling_mode="token_truncate",
            shuffle_dataset=False,
            ddp_timeout=120,
            expected_world_size=world,
            expected_backend="gloo" if world > 1 else None,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=load_games(),
        processing_class=tokenizer,
        environment_factory=load_environment("twenty_questions", {"name_ruled_out": True}),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    trainer.train()
    return {"rows": rows, "world": trainer.accelerator.num_processes, "calls": trainer.vllm_generation.calls}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    found = run(folder, size, sys.argv[3])
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save(found, folder / f"world{size}-rank{rank}.pt")
