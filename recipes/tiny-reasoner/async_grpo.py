"""Asynchronous GRPO from a recipe: model, data, rewards, controllers and adapter of the YAML, options of TRL's trainer.

    entrl serve recipes/tiny-reasoner/async.yaml --vllm-args "--max-loras 4"        (in another terminal)
    python recipes/tiny-reasoner/async_grpo.py --steps 120 --max-staleness 2

The server keeps as many adapters as versions may be named at once: --max-loras is max_staleness + 2. Of the recipe's
`trainer:` group what both trainers know is used; the rest is GRPO's own.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from entrl.models.load import refuse_adapter
from entrl.models.shipped import model_path
from entrl.report import write_report
from entrl.runs.folder import write_json, write_text
from entrl.runs.log import RunLog
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.serve import find_api_key
from entrl.trainers.async_grpo.config import EntropyAsyncGRPOConfig
from entrl.trainers.async_grpo.trainer import EntropyAsyncGRPOTrainer

HERE = Path(__file__).parent


def conversations(recipe: Recipe) -> Any:
    """The recipe's data with every prompt as a conversation, as TRL's asynchronous loop reads it."""
    data = recipe.load_data()
    as_turn = lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}  # noqa: E731
    return data.map(as_turn) if isinstance(data[0]["prompt"], str) else data


def options(recipe: Recipe, *, run_dir: Path, url: str, **asked: Any) -> EntropyAsyncGRPOConfig:
    """`trainer:` keys that the asynchronous trainer has too, and what was asked for here."""
    known = {f.name for f in dataclasses.fields(EntropyAsyncGRPOConfig)}
    shared = {k: v for k, v in recipe.trainer.items() if k in known}
    ours = {
        "output_dir": str(run_dir / "checkpoints"),
        "vllm_server_base_url": url,
        "token_budget": 0,  # micro-batches of per_device_train_batch_size rows
        "report_to": [],
        "disable_tqdm": True,
    }
    return EntropyAsyncGRPOConfig(**{**shared, **ours, **asked})


def train(recipe: Recipe, *, run_dir: Path, url: str, **asked: Any) -> EntropyAsyncGRPOTrainer:
    """One run, with the files `entrl report` reads."""
    refuse_adapter(recipe.model.path, "this script trains a new one", revision=recipe.model.revision)
    key = find_api_key(recipe.run_dir)
    if key is not None:
        os.environ["ENTRL_VLLM_API_KEY"] = key
    run_dir.mkdir(parents=True)
    write_text(run_dir / "recipe.yaml", recipe.to_yaml())
    log = RunLog(run_dir)
    trainer = EntropyAsyncGRPOTrainer(
        model_path(recipe.model.path),
        [r.value for r in recipe.build_rewards()],
        options(recipe, run_dir=run_dir, url=url, **asked),
        conversations(recipe),
        peft_config=recipe.build_lora(),
        controllers=[c.value for c in recipe.build_controllers()],
        callbacks=[log],
    )
    log.trainer = trainer
    manifest = {"status": "running", "trainer": "asynchronous", "options": dataclasses.asdict(trainer.args)}
    write_json(run_dir / "manifest.json", manifest)
    trainer.train()
    write_json(run_dir / "manifest.json", manifest | {"status": "finished", "steps": trainer.state.global_step})
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=HERE / "async.yaml")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--max-staleness", type=int, default=2)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/async"))
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    (url,) = recipe.trainer["vllm_replicas"]
    train(recipe, run_dir=args.run_dir, url=url, max_steps=args.steps, max_staleness=args.max_staleness)
    print(write_report([args.run_dir]))


if __name__ == "__main__":
    main()
