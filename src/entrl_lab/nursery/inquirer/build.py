"""`entrl nursery --model tiny-inquirer` (or `tiny-specifier`): teach a small Qwen3 to ask badly, measure it, write it.

The same config, library versions and kind of processor give the same weights, byte for byte; the manifest holds their
SHA-256. Lessons come from the train side of the task `twenty_questions` (diagram game: from other worlds than the
task's); the measurement plays the test side, on rows no lesson was about, through the tool loop that RL uses.

    L = mean over the model's own tokens and the answers it is given of -log p

The answers are in the loss although no policy writes them: whoever predicts them must know which rows are left.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from entrl.environments.tables import ATTRIBUTES, NAMES
from entrl.settings.provenance import built_from
from entrl.version import __version__
from entrl_lab.nursery.inquirer.batches import IGNORED, Batch, batches, sight
from entrl_lab.nursery.inquirer.calibration import calibrate
from entrl_lab.nursery.inquirer.config import CURRICULUM, NAMES_OF_MODELS, SPECIFIER_CURRICULUM, InquirerConfig, Stage
from entrl_lab.nursery.inquirer.lessons import (
    DIAGRAM_TOOLS,
    SENTENCES,
    SLOT_PHRASES,
    TOOLS,
    Lesson,
    Tools,
    diagram_lessons,
    lessons,
    words,
)
from entrl_lab.nursery.inquirer.tokenizer import SPACE, call_opening, inquirer_tokenizer
from entrl_lab.nursery.sft import sha256

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "numpy")
CALM = 0.15  # of the last norm at birth: a copier that is sure of itself takes long to unlearn
COPY_GAIN = 0.5  # a layer adds a quarter of what it looked at


def tokenizer_of(config: InquirerConfig) -> PreTrainedTokenizerFast:
    sentences = SENTENCES + SLOT_PHRASES if config.specifies else SENTENCES
    return inquirer_tokenizer(words(), TOOLS + DIAGRAM_TOOLS, sentences, max_length=config.max_positions)


def untrained_model(tokenizer: Any, config: InquirerConfig) -> Qwen3ForCausalLM:
    """A Qwen3 that begins as a copier: what it must learn is where to look.

    A word begins alike with and without a space before it. In each layer queries equal keys, so a token looks at its
    like, and the output undoes the value projection, so it takes along what it saw (the idea of mimetic initialisation,
    arXiv 2305.09828; the scales are ours). Half of the heads take it away instead: a name that was ruled out becomes
    less likely. Without those heads the rule was not found in 1,000 steps of three settings.
    """
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
        )
    )
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():
        embedding_VD: Any = model.get_input_embeddings().weight
        embedding_VD.normal_(std=config.embedding_std)
        space_D = torch.randn(config.width) * config.embedding_std
        for piece, index in vocabulary.items():
            if piece.startswith((SPACE, " ")) and (bare := vocabulary.get(piece[1:])) is not None:
                embedding_VD[index] = embedding_VD[bare] + space_D
        for kind in (NAMES, [word for level in ATTRIBUTES for word in level]):
            shared_D = torch.randn(config.width) * config.embedding_std
            pieces = [piece for word in kind for piece in (word, SPACE + word) if piece in vocabulary]
            embedding_VD[[vocabulary[piece] for piece in pieces]] += shared_D
        inner: Any = model.model
        inner.norm.weight.fill_(CALM)
        for layer in inner.layers:
            attention = layer.self_attn
            for block in attention.q_proj.weight.split(config.head_dim):
                nn.init.orthogonal_(block)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            for block in attention.v_proj.weight.split(config.head_dim):
                nn.init.orthogonal_(block, gain=COPY_GAIN)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
            attention.o_proj.weight[:, : config.heads // 2 * config.head_dim] *= -1
    return model


def train(
    config: InquirerConfig, *, say: Callable[[str], None] = print, checkpoints: Path | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The whole curriculum. checkpoints: a folder that gets the model every 500 steps, to look at while it learns."""
    torch.set_num_threads(config.threads)
    set_seed(config.seed)
    tokenizer = tokenizer_of(config)
    model = untrained_model(tokenizer, config)
    optimiser = _optimiser(model, config)
    started, step, losses = time.perf_counter(), 0, []
    for number, stage in enumerate(config.curriculum):
        taught = taught_in(stage, config, config.seed * 1000 + number)
        for batch in islice(batches(tokenizer, taught, stage.batch, tools=config.taught_tools), stage.steps):
            losses.append(_learn(model, batch, optimiser, config, factor=_factor(step, config)))
            step += 1
            if step % 50 == 0:
                named = _named(losses, tokenizer, config.taught_tools)
                means = " ".join(f"{name} {value:.3f}" for name, value in named.items())
                say(f"step {step}/{config.steps} {means} nats, {time.perf_counter() - started:.0f} s")
                losses = []
            if checkpoints is not None and step % 500 == 0:
                model.save_pretrained(checkpoints)
                tokenizer.save_pretrained(checkpoints)
    return model.eval(), tokenizer


def taught_in(stage: Stage, config: InquirerConfig, seed: int) -> Iterator[Lesson]:
    """The lessons of a stage, without end."""
    if config.specifies:
        return diagram_lessons(seed, stage.dialogues, script=config.script)
    return lessons(
        seed,
        stage.sizes,
        script=None if stage.practice else config.script,
        drills=stage.drills,
        dialogues=stage.dialogues,
        diagrams=stage.diagrams,
    )


class Learnt(NamedTuple):
    """Of one step: nats of each taught token, what it was and what stood before it."""

    loss_N: Tensor
    label_N: Tensor
    before_N: Tensor


def _named(steps: list[Learnt], tokenizer: PreTrainedTokenizerFast, tools: Tools) -> dict[str, float]:
    """Mean nats of all taught tokens, and of those that tell whether it reads the prompt."""
    loss_N, label_N, before_N = (torch.cat(part) for part in zip(*steps, strict=True))
    ask, submit = (tokenizer.encode(call_opening(*tool), add_special_tokens=False)[0] for tool in tools)
    answers = torch.tensor([tokenizer.encode(a, add_special_tokens=False)[0] for a in (" yes", " no")])
    kinds = {"answers": torch.isin(label_N, answers), "questions": before_N == ask, "names": before_N == submit}
    vocabulary = tokenizer.get_vocab()
    slots = torch.tensor([vocabulary[phrase] for phrase in SLOT_PHRASES if phrase in vocabulary])
    kinds["values"] = torch.isin(before_N, slots)
    means = {name: loss_N[kind].mean().item() for name, kind in kinds.items() if kind.any()}
    return {"all": loss_N.mean().item()} | means


def _optimiser(model: nn.Module, config: InquirerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)


def _factor(step: int, config: InquirerConfig) -> float:
    """Of the rates: a short rise, a plateau, a linear fall to 0."""
    rising = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    falling = (config.steps - step) / max(config.decay_share * config.steps, 1.0)
    return min(rising, falling, 1.0)


def _learn(
    model: Qwen3ForCausalLM,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    config: InquirerConfig,
    *,
    factor: float,
) -> Learnt:
    """One optimiser step."""
    hidden_BTD = model.model(
        batch.ids_BT, attention_mask=sight(batch)[:, None], position_ids=batch.positions_BT, use_cache=False
    ).last_hidden_state
    # A part's first token is predicted from the prompt's last, every other from the one before it.
    before_BT = torch.arange(batch.ids_BT.shape[1]).expand_as(batch.ids_BT) - 1
    last_B = (batch.parts_BT == 0).sum(1) - 1
    first_BT = batch.parts_BT != batch.parts_BT.roll(1, 1)
    before_BT = torch.where(first_BT, last_B[:, None], before_BT)
    taught_BT = batch.labels_BT != IGNORED
    row_N, column_N = taught_BT.nonzero(as_tuple=True)
    logits_NV = model.lm_head(hidden_BTD[row_N, before_BT[row_N, column_N]])  # only where something is taught
    labels_N = batch.labels_BT[taught_BT]
    loss_N = nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
    loss = loss_N.mean()
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.max_norm)
    for group in optimiser.param_groups:
        group["lr"] = config.learning_rate * factor
    optimiser.step()
    return Learnt(loss_N.detach(), labels_N, batch.ids_BT[row_N, before_BT[row_N, column_N]])


def build(out: Path, config: InquirerConfig, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, write model and tokenizer, measure, write the manifest, which comes back."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = train(config, say=say)
    seconds = time.perf_counter() - started
    model.config.use_cache = True
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, and a wheel would keep that
    tokenizer.save_pretrained(out)
    measured = calibrate(model, tokenizer, config.measured, games=config.games, seed=config.seed)
    manifest = {
        "name": config.name,
        "entrl": __version__,
        "commit": built_from(Path(__file__).parent, ".", "../../../entrl/environments", "../../../entrl/beliefs"),
        "versions": {name: version(name) for name in LIBRARIES},
        "config": asdict(config),
        "parameters": model.num_parameters(),
        "training_seconds": round(seconds, 1),
        "weights_sha256": sha256(out / "model.safetensors"),
        "tokenizer_sha256": sha256(out / "tokenizer.json"),
        "calibration": measured,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _parser() -> argparse.ArgumentParser:
    defaults = InquirerConfig()
    parser = argparse.ArgumentParser(
        prog="entrl nursery --model MODEL", description=f"Build a model that asks: {' or '.join(NAMES_OF_MODELS)}."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not hold a model yet")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--share", type=float, default=1.0, help="of the curriculum's steps: quicker, worse")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="torch threads; changes the weights")
    parser.add_argument("--games", type=int, default=defaults.games, help="test games the model is measured on")
    return parser


def main(argv: list[str] | None = None, *, name: str = NAMES_OF_MODELS[0]) -> int:
    """The command for the model of this name; returns 1 when what came out is no good start for RL."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.out / "model.safetensors").exists():
        parser.error(f"{options.out} already holds a model; name another folder, or remove it first")
    if not 0 < options.share <= 1:
        parser.error(f"--share must be in (0, 1], got {options.share}")
    curriculum = CURRICULUM if name == NAMES_OF_MODELS[0] else SPECIFIER_CURRICULUM
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * options.share))) for stage in curriculum)
    try:
        config = InquirerConfig(
            name=name, seed=options.seed, curriculum=stages, threads=options.threads, games=options.games
        )
    except ValueError as error:
        parser.error(str(error))
    manifest = build(options.out, config, say=lambda line: print(line, flush=True))
    print(json.dumps({key: manifest[key] for key in ("parameters", "training_seconds", "calibration")}, indent=2))
    found = config.measured.complaints(manifest["calibration"])
    for complaint in found:
        print(f"not a good start for RL: {complaint}")
    return 1 if found else 0
