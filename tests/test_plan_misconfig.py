"""Wrong recipes: `plan` names what `train` would stop on, and warns of what is legal and senseless.

One list for both: what plan says of each, and (slow) that train stops at its start exactly where plan found a problem.
Each is a small recipe with one thing wrong. `stops`: words of the problem; `warns`: words of the warning, of a run that
trains; neither: nothing is said, and why. What another machine may have (a tracker, a kernel, a model of the hub) is no
problem of the recipe: the verdict then is not "ready", and says that it was not checked.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_model import saved_model

from entrl.runs.plan import plan
from entrl.runs.recipe import Recipe, load_recipe
from entrl.runs.train import USER_ERRORS, train
from entrl.settings.yaml import dump_yaml

HERE = Path(__file__).parent
REWARDS = {
    "difficulty": "def mine(completions, **kwargs):\n    return kwargs['difficulty']\n",
    "length": "def mine(completions, **kwargs):\n    return [0.0]\n",
    "strings": "def mine(completions, **kwargs):\n    return ['good' for _ in completions]\n",
    "raises": "def mine(completions, **kwargs):\n    raise RuntimeError('no judge here')\n",
    "scalar": "def mine(completions, **kwargs):\n    return 1.0\n",
    "nan": "def mine(completions, **kwargs):\n    return [float('nan') for _ in completions]\n",
    "constant": "def mine(completions, **kwargs):\n    return [0.5 for _ in completions]\n",
    "syntax": "def mine(**kwargs)\n    return [0.0]\n",
    "fails": "LIMIT = 1 / 0\n\ndef mine(**kwargs):\n    return [0.0]\n",
    "missing_module": "import not_there_at_all\n\ndef mine(**kwargs):\n    return [0.0]\n",
    "counts": "def mine(text):\n    return float(len(text))\n",
    "good": "def mine(completions, answer, **kwargs):\n    return [float(len(a)) for a in answer]\n",
}
ROWS = [{"prompt": f"1{i}+11=", "answer": str(21 + i)} for i in range(8)]
MINE = [{"use": "mine.py:mine"}]
JUDGE = {"url": "http://localhost:9/v1/chat/completions", "model": "any"}


@dataclass(frozen=True, kw_only=True)
class Wrong:
    what: str
    changes: dict[str, Any] = field(default_factory=dict)  # of the recipe, by dotted key
    reward: str = "good"  # of REWARDS, written to mine.py
    rows: list[dict[str, Any]] | None = None
    latin: str | None = None  # the file that is written in Latin-1
    env: dict[str, str] = field(default_factory=dict)
    stops: str | None = None
    warns: str | None = None


def key(what: str, stops: str, **trainer: Any) -> Wrong:
    """Of the group `trainer` alone."""
    return Wrong(what=what, stops=stops, changes={f"trainer.{name}": value for name, value in trainer.items()})


JSONL = {"data": {"task": "jsonl:rows.jsonl"}}
VLLM = {"eval.engine": "vllm"}
SERVED = {"eval.servers": ["http://127.0.0.1:1"]}
DROPPED = {"r": 2, "lora_dropout": 0.1}
LORA = {"r": 2, "target_modules": "all-linear"}
REPLICAS = {"trainer.use_vllm": True, "trainer.vllm_mode": "server", "lora": LORA}
TAGS = {"rewards": ["pear"], "trainer.scale_rewards": "batch"}
BEST = {"trainer.load_best_model_at_end": True, "trainer.save_strategy": "steps", "trainer.save_steps": 1}
CASES = [
    Wrong(what="nothing"),
    Wrong(what="pear alpha quoted", changes={"rewards": [{"use": "pear", "args": {"alpha": "1"}}]}, stops="alpha"),
    Wrong(what="eval.k ['1']", changes={"eval.k": ["1"]}, stops="eval.k"),
    Wrong(what="learning rate 1", changes={"trainer.learning_rate": 1.0}, warns="learning_rate"),
    Wrong(what="learning rate 0", changes={"trainer.learning_rate": 0.0}, warns="learning_rate"),
    Wrong(what="learning rate 0.1", changes={"trainer.learning_rate": 0.1}, warns="learning_rate"),
    Wrong(what="learning rate 1e4", changes={"trainer.learning_rate": 1e4}, stops="learning_rate"),
    Wrong(
        what="accumulation 0",
        changes={"trainer.gradient_accumulation_steps": 0},
        stops="gradient_accumulation_steps",
    ),
    Wrong(what="temperature .inf", changes={"trainer.temperature": float("inf")}, stops="temperature"),
    Wrong(what="temperature .nan", changes={"trainer.temperature": float("nan")}, stops="temperature"),
    Wrong(what="max_completion_length 0", changes={"trainer.max_completion_length": 0}, stops="max_completion_length"),
    Wrong(what="max_steps 0", changes={"trainer.max_steps": 0}, stops="max_steps"),
    Wrong(what="num_train_epochs 0", changes={"trainer.max_steps": -1, "trainer.num_train_epochs": 0}, stops="epochs"),
    Wrong(what="num_iterations 0", changes={"trainer.num_iterations": 0}, stops="num_iterations"),
    Wrong(what="beta -0.1", changes={"trainer.beta": -0.1}, stops="beta"),
    Wrong(what="quantile 20", changes={"trainer.top_entropy_quantile": 20.0}, stops="top_entropy_quantile"),
    Wrong(
        what="train_size smaller than a rollout", changes={"data.train_size": 1}, stops="one rollout needs 2 prompts"
    ),
    Wrong(what="eval.max_new_tokens 0", changes={"eval.max_new_tokens": 0}, stops="max_new_tokens"),
    Wrong(what="eval.max_new_tokens -5", changes={"eval.max_new_tokens": -5}, stops="max_new_tokens"),
    Wrong(what="constant reward", changes={"rewards": MINE}, reward="constant", warns="returned 0.5 for all"),
    Wrong(what="reward reads a column", changes={"rewards": MINE}, reward="difficulty", stops="KeyError: 'difficulty'"),
    Wrong(what="reward of wrong length", changes={"rewards": MINE}, reward="length", stops="returned 1 rewards for"),
    Wrong(what="reward strings", changes={"rewards": MINE}, reward="strings", stops="returned 'good' (str)"),
    Wrong(what="reward raises", changes={"rewards": MINE}, reward="raises", stops="RuntimeError: no judge here"),
    Wrong(what="reward scalar", changes={"rewards": MINE}, reward="scalar", stops="returned float"),
    Wrong(what="reward NaN", changes={"rewards": MINE}, reward="nan", stops="returned nan"),
    Wrong(what="reward imports", changes={"rewards": MINE}, reward="missing_module", stops="not_there_at_all"),
    Wrong(what="reward is no Python", changes={"rewards": MINE}, reward="syntax", stops="cannot be imported: Syntax"),
    Wrong(what="reward file fails", changes={"rewards": MINE}, reward="fails", stops="imported: ZeroDivisionError"),
    Wrong(what="a reward of one's own", changes={"rewards": MINE}),
    Wrong(what="weight -1 on accuracy", changes={"rewards": [{"use": "accuracy", "weight": -1.0}]}, warns="weight"),
    Wrong(what="weight .nan", changes={"rewards": [{"use": "accuracy", "weight": float("nan")}]}, stops="weight"),
    Wrong(what="correctness twice", changes={"rewards": ["accuracy", "pear"]}, warns="correctness"),
    Wrong(what="every problem twice", changes=JSONL, rows=ROWS * 2, warns="prompts occur before"),
    Wrong(
        what="ids twice", changes=JSONL, rows=[{**r, "problem_id": "a"} for r in ROWS], stops="occurs more than once"
    ),
    Wrong(what="golds empty", changes=JSONL, rows=[{**r, "answer": ""} for r in ROWS], stops="gold answer"),
    Wrong(
        what="golds no mathematics",
        changes=JSONL,
        rows=[{**r, "answer": f"the {w} one"} for r, w in zip(ROWS, "abcdefgh", strict=True)],
        warns="no gold answer reads as mathematics",
    ),
    Wrong(
        what="golds words, as asked", changes=JSONL, rows=[{**r, "answer": "red", "verifier": "exact"} for r in ROWS]
    ),
    Wrong(what="golds NaN", changes=JSONL, rows=[{**r, "answer": float("nan")} for r in ROWS], stops="NaN is no JSON"),
    Wrong(what="verifier code", changes=JSONL, rows=[{**r, "verifier": "code"} for r in ROWS], stops="verifier"),
    Wrong(what="eval on the training split", changes={"eval.split": "train"}, warns="eval"),
    Wrong(what="model not there", changes={"model.path": "no/such-model"}, stops="no/such-model"),
    Wrong(what="flash attention here", changes={"model.attn_implementation": "flash_attention_2"}, stops="flash"),
    Wrong(what="attention misspelt", changes={"model.attn_implementation": "spda"}, stops="attn_implementation"),
    Wrong(what="lora SEQ_CLS", changes={"lora": {"r": 2, "task_type": "SEQ_CLS"}}, stops="task_type"),
    Wrong(what="lora r 0", changes={"lora": {"r": 0}}, stops="r"),
    Wrong(what="lora on nothing", changes={"lora": {"r": 2, "target_modules": ["no_such"]}}, stops="no_such"),
    Wrong(what="scale_rewards std", changes={"trainer.scale_rewards": "std"}, stops="scale_rewards"),
    Wrong(what="aggregation", changes={"trainer.multi_objective_aggregation": "sum"}, stops="multi_objective"),
    Wrong(what="ratio level", changes={"trainer.importance_sampling_level": "word"}, stops="importance_sampling_level"),
    Wrong(what="loss_type", changes={"trainer.loss_type": "ppo"}, stops="loss_type"),
    Wrong(what="optim", changes={"trainer.optim": "adamm"}, stops="adamm"),
    Wrong(what="optim not installed", changes={"trainer.optim": "adamw_bnb_8bit"}, stops="bitsandbytes"),
    Wrong(what="scheduler", changes={"trainer.lr_scheduler_type": "constnt"}, stops="constnt"),
    Wrong(
        what="scheduler without its rate", changes={"trainer.lr_scheduler_type": "cosine_with_min_lr"}, stops="min_lr"
    ),
    Wrong(what="scheduler option", changes={"trainer.lr_scheduler_kwargs": {"foo": 1}}, stops="lr_scheduler_kwargs"),
    Wrong(what="optimiser option", changes={"trainer.optim_args": "foo"}, stops="optim_args"),
    Wrong(what="adam_beta1 1.5", changes={"trainer.adam_beta1": 1.5}, stops="trainer.adam_"),
    Wrong(what="adam_epsilon -1", changes={"trainer.adam_epsilon": -1.0}, stops="trainer.adam_"),
    Wrong(what="seed -1", changes={"trainer.seed": -1}, stops="trainer.seed"),
    Wrong(what="workers -1", changes={"trainer.dataloader_num_workers": -1}, stops="dataloader_num_workers"),
    Wrong(what="vllm_mode", changes={"trainer.vllm_mode": "servr"}, stops="trainer.vllm_mode must be one of"),
    Wrong(what="hub not at hand", changes={"trainer.push_to_hub": True}, stops="trainer.push_to_hub: HF_HUB_OFFLINE"),
    Wrong(
        what="cache misspelt", changes={"trainer.cache_implementation": "statc"}, stops="cache_implementation must be"
    ),
    Wrong(
        what="moving reference of an adapter",
        changes={"trainer.sync_ref_model": True, "trainer.beta": 0.1, "lora": {"r": 2}},
        stops="sync_ref_model beside lora",
    ),
    Wrong(what="backend misspelt", changes={"trainer.ddp_backend": "nccll"}, stops="ddp_backend must be one of"),
    Wrong(what="evaluation on start of nothing", changes={"trainer.eval_on_start": True}, stops="eval_on_start"),
    Wrong(what="tracker not installed", changes={"trainer.report_to": "wandb"}, stops="wandb"),
    Wrong(what="tracker not known", changes={"trainer.report_to": ["wandbb"]}, stops="wandbb"),
    Wrong(
        what="save_only_model", changes={"trainer.save_only_model": True, "trainer.save_steps": 1}, warns="save_only"
    ),
    Wrong(what="longer than the positions", changes={"trainer.max_completion_length": 600}, warns="positions|context"),
    Wrong(what="generations do not divide", changes={"trainer.num_generations": 3}, stops="num_generations"),
    Wrong(what="one generation", changes={"trainer.num_generations": 1}, stops="generations"),
    Wrong(what="liger not installed", changes={"trainer.use_liger_kernel": True}, stops="liger"),
    Wrong(what="recipe in Latin-1", latin="wrong.yaml", stops="wrong.yaml:"),
    Wrong(what="rows in Latin-1", changes=JSONL, latin="rows.jsonl", stops="if it is Latin-1"),
    Wrong(what="reward in Latin-1", changes={"rewards": MINE}, latin="mine.py", stops="cannot be imported"),
    Wrong(what="WORLD_SIZE left over", env={"WORLD_SIZE": "2"}, stops="`unset WORLD_SIZE`"),
    Wrong(what="variable not set", changes={"trainer.output_dir": "$ENTRL_NOT_SET/run"}, stops="ENTRL_NOT_SET is not"),
    Wrong(what="all cut", changes={"trainer.max_completion_length": 2}, warns="trainer.max_completion_length of 2 is"),
    Wrong(
        what="all cut and masked",
        changes={"trainer.max_completion_length": 2, "trainer.mask_truncated_completions": True},
        warns="nothing would be trained",
    ),
    Wrong(what="evaluation cut", changes={"eval.max_new_tokens": 1}, warns="eval.max_new_tokens of 1 is too short"),
    Wrong(
        what="verifier without time",
        changes={"rewards": [{"use": "accuracy", "args": {"timeout_s": 1e-4}}]},
        warns="rewards.0.args.timeout_s",
    ),
    Wrong(what="vLLM not installed", changes={"trainer.use_vllm": True}, stops="trainer.use_vllm: vLLM is not"),
    Wrong(what="evaluation's vLLM not installed", changes=VLLM, stops="eval.engine: vLLM is not"),
    Wrong(
        what="vLLM evaluates a 4-bit base",
        changes={**VLLM, "model.quantization": {"bits": 4}, "lora": {"r": 2}},
        stops="model.quantization that is trained",
    ),
    Wrong(what="vLLM evaluates a revision", changes={**VLLM, "model.revision": "v1"}, stops="model.revision out"),
    Wrong(
        what="vLLM evaluates dialogues",
        changes={**VLLM, "environment": {"use": "twenty_questions"}},
        stops="set eval.engine: transformers",
    ),
    Wrong(what="servers of all weights", changes={**VLLM, **SERVED}, stops="eval.servers hold the model they"),
    Wrong(
        what="servers of an adapter that they drop",
        changes={**VLLM, **SERVED, "lora": {"r": 2, "use_dora": True}},
        stops="DoRA",
    ),
    Wrong(what="dropout of the adapter", changes={"rewards": ["pear"], "lora": DROPPED}, stops="lora.lora_dropout is"),
    Wrong(
        what="dropout of the adapter under a probe",
        changes={"trainer.probe_every": 1, "lora": DROPPED},
        stops="lora.lora_dropout is",
    ),
    Wrong(what="dropout without entropies", changes={"lora": DROPPED}),  # stock TRL's own
    Wrong(
        what="dropout made idle",
        changes={"rewards": ["pear"], "trainer.disable_dropout": True, "trainer.scale_rewards": "batch"}
        | {"lora": DROPPED},
    ),
    Wrong(
        what="best model without eval", changes={"trainer.load_best_model_at_end": True}, stops="load_best_model_at_end"
    ),
    Wrong(what="the best of nothing", changes={**BEST, "eval": None}, stops="there are none; add eval"),
    Wrong(what="the best of the loss", changes={**BEST, "eval.at": [1]}, stops="would compare the loss"),
    Wrong(
        what="mixture: eval on a split that is trained on",
        changes={
            "data": {"mixture": [{"task": "sums"}, {"task": "jsonl:rows.jsonl"}], "train_size": 8},
            "eval.split": "train",
        },
        warns="eval reads the split",
    ),
    Wrong(what="deepspeed file", changes={"trainer.deepspeed": "not/there.json"}, stops="deepspeed"),
    Wrong(what="output_dir null", changes={"trainer.output_dir": None}, stops="output_dir"),
    Wrong(what="epsilon negative", changes={"trainer.epsilon": -0.2}, stops="epsilon"),
    Wrong(what="weight decay nan", changes={"trainer.weight_decay": float("nan")}, stops="weight_decay"),
    Wrong(what="top_p 0", changes={"trainer.top_p": 0.0}, stops="top_p"),
    Wrong(what="top_p 2", changes={"trainer.top_p": 2.0}, stops="top_p"),
    Wrong(what="top_k -1", changes={"trainer.top_k": -1}, stops="top_k"),
    Wrong(what="min_p 2", changes={"trainer.min_p": 2.0}, stops="min_p"),
    Wrong(what="repetition_penalty 0", changes={"trainer.repetition_penalty": 0.0}, stops="repetition_penalty"),
    Wrong(
        what="replica without scheme",
        changes={**REPLICAS, "trainer.vllm_replicas": ["127.0.0.1:8000"]},
        stops="trainer.vllm_replicas.0 is no address",
    ),
    Wrong(
        what="replica's port",
        changes={**REPLICAS, "trainer.vllm_replicas": ["http://127.0.0.1:80000"]},
        stops="its port in 1..65535",
    ),
    Wrong(
        what="TRL's server without scheme",
        changes={**REPLICAS, "trainer.vllm_server_base_url": "localhost:8000"},
        stops="trainer.vllm_server_base_url is no address",
    ),
    Wrong(
        what="evaluation's server without scheme",
        changes={**VLLM, "eval.servers": ["localhost:8000"], "lora": LORA},
        stops="eval.servers.0 is no address",
    ),
    Wrong(what="count of nothing", changes={"eval.counts": {"x": "entrl.tasks.rechecks:nosuch"}}, stops="'nosuch'"),
    Wrong(what="count no function", changes={"eval.counts": {"x": "math:pi"}}, stops="name a function of a text"),
    Wrong(what="count beside the recipe", changes={"eval.counts": {"x": "mine.py:mine"}}, reward="counts"),
    Wrong(what="tag empty", changes={**TAGS, "trainer.think_open": ""}, stops="cannot encode the tag ''"),
    Wrong(what="tag not spelt", changes={**TAGS, "trainer.think_close": "</ψ>"}, stops="cannot encode the tag"),
    Wrong(
        what="one tag for both",
        changes={**TAGS, "trainer.think_open": "<think>", "trainer.think_close": "<think>"},
        stops="cannot both open and close",
    ),
    Wrong(
        what="lora partly on nothing",
        changes={"lora": {"r": 2, "target_modules": ["q_proj", "nosuch"]}},
        warns="target_modules names nosuch",
    ),
    Wrong(
        what="lora saves nothing",
        changes={"lora": {**LORA, "modules_to_save": ["nosuch"]}},
        warns="modules_to_save names nosuch",
    ),
    Wrong(
        what="lora layers beyond",
        changes={"lora": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [0, 99]}},
        warns="layers_to_transform names [99]",
    ),
    Wrong(what="lora_alpha 0", changes={"lora": {**LORA, "lora_alpha": 0}}, warns="lora.lora_alpha is 0"),
    Wrong(
        what="lora_alpha of a billion",
        changes={"lora": {**LORA, "lora_alpha": 10**9}},
        warns="lora.lora_alpha of 1e+09 over 2 (of lora.r) is 5e+08",
    ),
    Wrong(
        what="alpha of a layer of a billion",
        changes={"lora": {**LORA, "lora_alpha": 4, "alpha_pattern": {"q_proj": 10**9}}},
        warns="lora.alpha_pattern.q_proj of 1e+09",
    ),
    Wrong(
        what="pear alpha 100",
        changes={**TAGS, "rewards": [{"use": "pear", "args": {"alpha": 100.0}}]},
        warns="rewards.0.args.alpha of pear is 100",
    ),
    Wrong(
        what="kl_cov coef of a million",
        changes={
            "controllers": [{"use": "kl_cov", "args": {"coef": 1e6}}],
            "trainer.max_steps": 2,
            "trainer.per_device_train_batch_size": 4,
            "trainer.steps_per_generation": 2,
        },
        warns="controllers.0.args.coef of kl_cov is 1e+06",
    ),
    Wrong(
        what="l1_max target beyond completions",
        changes={"rewards": [{"use": "entrl_rewards.length:l1_max", "args": {"target": 1000}}]},
        warns="args.target of entrl_rewards.length:l1_max is 1000 beside trainer.max_completion_length of 4",
    ),
    Wrong(
        what="soft_overlong beyond completions",
        changes={"rewards": ["accuracy", "entrl_rewards.length:soft_overlong"]},
        warns="rewards.1.args.max_length",
    ),
    Wrong(
        what="laser_d beyond completions",
        changes={"rewards": [{"use": "entrl_rewards.length:laser_d", "args": {"max_length": 9000}}]},
        warns="rewards.0.args.max_length",
    ),
    Wrong(
        what="curriculum that nothing passes",
        changes={"curriculum": {"use": "band", "pass_above": 500.0}},
        warns="curriculum.pass_above of band is 500",
    ),
    Wrong(
        what="curriculum that full marks do not pass",
        changes={"curriculum": {"use": "band", "pass_above": 1.0}},
        warns="curriculum.pass_above is 1, and accuracy gives 0 to 1: no answer passes",
    ),
    Wrong(
        what="curriculum that wrong answers pass",
        changes={"curriculum": {"use": "band", "pass_above": -0.5}},
        warns="curriculum.pass_above is -0.5, and accuracy gives 0 to 1: every answer passes",
    ),
    key("workers that stay, of none", "dataloader_*: persistent_workers", dataloader_persistent_workers=True),
    key("start of no workers", "multi-process loading", dataloader_multiprocessing_context="fork"),
    key("start misspelt", "valid start", dataloader_num_workers=1, dataloader_multiprocessing_context="frok"),
    key("compiler misspelt", "torch_compile_backend: ", torch_compile=True, torch_compile_backend="inductr"),
    key("layout of more processes", "lays out 2 processes", parallelism_config={"dp_replicate_size": 2}),
    key(
        "checkpointing misspelt",
        "trainer.gradient_checkpointing_kwargs: Unexpected keyword arguments: reentrant",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"reentrant": False},
    ),
    key("reference moved every 0 steps", "at least 1", sync_ref_model=True, beta=0.1, ref_model_sync_steps=0),
    key("padding to 0", "pad_to_multiple_of must be", pad_to_multiple_of=0),
    key("engines on 0 devices", "parallel_size must be", vllm_tensor_parallel_size=0),
    key("port of TRL's server", "vllm_server_port must be", vllm_server_port=80000),
    key("run folder a file", "py is not a folder; set", output_dir=__file__),
    key("run folder in a file", "cannot lie in it", output_dir=f"{__file__}/run"),
    key("run folder somebody's", "is not a run folder", output_dir=str(HERE)),
    key("run folder in /proc", "can be written in /proc", output_dir="/proc/run"),
    key("report_to null", "write report_to: none", report_to=None),
    key("word of an enumeration", "trainer.lr_scheduler_type: cosin is", lr_scheduler_type="cosin"),
    key("length null", "max_completion_length is null", max_completion_length=None),
    Wrong(what="checkpoints of no strategy", changes={"trainer.save_steps": 1}, warns="trainer.save_steps is set, and"),
    Wrong(what="weight of a million", changes={"rewards": [{"use": "accuracy", "weight": 1e6}]}, warns="rewards.0"),
    Wrong(what="weight of 1e-9", changes={"rewards": [{"use": "accuracy", "weight": 1e-9}]}, warns="next to nothing"),
    Wrong(
        what="reward model of no folder",
        changes={"rewards": [{"use": "reward_model", "args": {"path": "/not/there"}}]},
        stops="does not exist",
    ),
    Wrong(
        what="key that is not set",
        changes={"rewards": [{"use": "llm_judge", "args": {**JUDGE, "api_key_env": "ENTRL_NO_SUCH_KEY"}}]},
        stops="which is not set here",
    ),
    Wrong(
        what="cache where nothing can be written",
        changes={"rewards": [{"use": "llm_judge", "args": {**JUDGE, "cache_file": "/etc/hostname/x"}}]},
        stops="cannot be written",
    ),
    Wrong(what="greedy", changes={"trainer.generation_kwargs": {"do_sample": False}}, stops="without spread"),
    Wrong(what="beams", changes={"trainer.generation_kwargs": {"num_beams": 4}}, stops="without spread"),
    Wrong(what="columns taken away", changes={"trainer.remove_unused_columns": True}, stops="remove_unused_columns"),
    Wrong(
        what="too many sums", changes={"data": {"task": "additions", "train_size": 100_000}}, stops="asked for 100000"
    ),
    Wrong(
        what="too many sums to evaluate",
        changes={"eval": {"task": "additions", "size": 100_000, "samples": 1, "k": [1], "max_new_tokens": 4}},
        stops="has 202 test problems",
    ),
    Wrong(what="logging_steps 0", changes={"trainer.logging_steps": 0}, stops="logging_steps"),
]
SMALL: dict[str, Any] = {
    "data": {"task": "sums", "train_size": 16},
    "rewards": ["accuracy"],
    "eval": {"task": "sums", "size": 1, "samples": 1, "k": [1], "max_new_tokens": 4, "before": True},
    "trainer": {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


def put(content: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        content = content.setdefault(group, {})
    content[last] = value


def made(case: Wrong, model: str, folder: Path) -> Recipe:
    """The recipe, read from a file as the command line does; ValueError where reading refuses it."""
    content: dict[str, Any] = json.loads(json.dumps(SMALL)) | {"model": {"path": model}}
    content["trainer"]["output_dir"] = str(folder / "run")
    for key, value in case.changes.items():
        put(content, key, value)
    (folder / "mine.py").write_text(REWARDS[case.reward])
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, case.rows or ROWS)))
    (folder / "wrong.yaml").write_text(dump_yaml(content))
    if case.latin is not None:
        comment = {".yaml": "\n# ", ".py": "\nWORD = '", ".jsonl": '\n{"prompt": "1+1=", "answer": "2", "why": "'}
        file = folder / case.latin
        file.write_bytes(file.read_bytes() + (comment[file.suffix] + "Länge'\n").encode("latin-1"))
    return load_recipe(folder / "wrong.yaml")


def by_name(case: Wrong) -> str:
    return case.what


QUICK = (
    "nothing",
    "temperature .nan",
    "num_iterations 0",
    "reward strings",
    "lora on nothing",
    "tracker not installed",
)
SORTED = [pytest.param(c, id=c.what, marks=() if c.what in QUICK else pytest.mark.slow) for c in CASES]


@pytest.mark.parametrize("case", SORTED)
def test_plan_says_what_is_wrong(case: Wrong, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    try:
        found = plan(made(case, model, tmp_path))
        problems, warnings, verdict = [*found.problems, *found.unchecked], found.warnings, found.verdict
    except USER_ERRORS as error:
        problems, warnings, verdict = [str(error)], [], "refused"
    if case.stops is not None:
        assert verdict != "ready to train"
        assert any(case.stops in p for p in problems), (problems, warnings)
        return
    assert verdict == "ready to train", problems
    if case.warns is not None:
        assert any(word in w for w in warnings for word in case.warns.split("|")), warnings


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_train_stops_where_plan_found_a_problem(
    case: Wrong, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if case.stops is None:
        train(made(case, model, tmp_path), console=Console(quiet=True))
        return
    with pytest.raises(USER_ERRORS):
        train(made(case, model, tmp_path), console=Console(quiet=True))
