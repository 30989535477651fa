"""Really take a logged step, under any controllers: from the logged parameters and optimiser, on the logged rows.

    forward   logits / temperature, log-softmax; log-probs and entropies of the completion tokens
    backward  the window's loss, micro-batch by micro-batch, gradients added up as the trainer adds them
    step      gradient norm clipped, one step of the logged optimiser with the logged state
    measure   mean entropy over the window's own states, and over the fixed probe prefixes, before and after

Rows, states and prefixes stay the same, so what is measured is the within-state part of an entropy change.

Source:  TRL 1.16 `GRPOTrainer` with the loop of transformers' `Trainer`; a test holds the parameters after the step to
    the trainer's own
Differs: one process takes the whole step; no distributed sharding, no 8-bit or custom optimiser
Needs:   RUN/recipe.yaml and, per window, state.pt (`trainer.log_window_state: true`)
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrl.maths.signals import entropy_from_logits
from entrl.trainers.grpo.window_log import FOLDER, STATE_FILE, LoggedWindow, window_folder
from entrl_lab.replay.settings import Setting
from entrl_lab.replay.window_loss import check_window, micro_batch_loss, micro_batches, select

CHUNK = 16  # rows run at a time


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Token sequences to score: prompts padded on the left, completions on the right; masks are bool."""

    prompt_ids_BT: Tensor
    prompt_mask_BT: Tensor
    completion_ids_BT: Tensor
    completion_mask_BT: Tensor

    def __getitem__(self, part: slice) -> "Prefixes":
        return Prefixes(
            prompt_ids_BT=self.prompt_ids_BT[part],
            prompt_mask_BT=self.prompt_mask_BT[part],
            completion_ids_BT=self.completion_ids_BT[part],
            completion_mask_BT=self.completion_mask_BT[part],
        )

    def __len__(self) -> int:
        return len(self.prompt_ids_BT)


@dataclass(frozen=True, kw_only=True)
class StepState:
    """What a trainer held before a step; everything needed to take it again."""

    parameters: Mapping[str, Tensor]  # the trainable ones
    optimizer: Mapping[str, Any]  # torch's state_dict
    optimizer_names: Sequence[Sequence[str]]  # parameter names per group, in the optimiser's order
    optimizer_class: str  # a name in torch.optim
    max_grad_norm: float | None  # None or 0 = no clipping
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did, nats; probe None without probe prefixes.

    linear_within, linear_probe: <d mean entropy / d parameters, change of the parameters>, the first-order part in
        parameter space; None unless asked for
    """

    within: float
    probe: float | None
    grad_norm: float  # before clipping
    linear_within: float | None = None
    linear_probe: float | None = None


def load_state(run_dir: str | Path, step: int) -> StepState:
    """Read state.pt of a logged step; FileNotFoundError names the option that writes it."""
    file = window_folder(run_dir, step) / STATE_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"step {step} has no {STATE_FILE}, so its step cannot be taken again; train with "
            "trainer.log_window_state: true"
        )
    content = torch.load(file, map_location="cpu", weights_only=True)
    names = StepState.__dataclass_fields__
    if missing := sorted(names.keys() - content.keys()):
        raise ValueError(f"{file} has no {', '.join(missing)}; log the window again with this version of entrl")
    return StepState(**{name: content[name] for name in names})


def load_probe(run_dir: str | Path) -> Prefixes | None:
    """The fixed probe prefixes of all ranks; None where the run had none (`trainer.probe_every: 0`)."""
    files = sorted((Path(run_dir) / FOLDER).glob("probe*.pt"))
    if not files:
        return None
    parts = [torch.load(f, map_location="cpu", weights_only=True) for f in files]

    def together(name: str) -> Tensor:
        width = max(p[name].shape[1] for p in parts)
        left = name.startswith("prompt")
        pads = [(width - p[name].shape[1], 0) if left else (0, width - p[name].shape[1]) for p in parts]
        return torch.cat([torch.nn.functional.pad(p[name], pad) for p, pad in zip(parts, pads, strict=True)])

    return Prefixes(**{name: together(name) for name in Prefixes.__dataclass_fields__})


def prefixes_of(window: LoggedWindow) -> Prefixes:
    return Prefixes(**{name: getattr(window, name) for name in Prefixes.__dataclass_fields__})


def score(model: Any, prefixes: Prefixes, *, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probs, entropies), (B, T) float32 nats, of the completion tokens; 0 at padding, with the model's graph.

    Rows are run in order of length and cut to their longest, since most of a padded window is padding. Only the right
    side is cut: that moves no token to another position.
    """
    length_B = prefixes.completion_mask_BT.sum(-1)
    order_B = length_B.argsort()
    log_probs, entropies = [], []
    for rows in order_B.split(CHUNK):
        width = max(1, int(length_B[rows].max()))
        found = _score_rows(model, prefixes, rows, width, temperature=temperature)
        missing = prefixes.completion_ids_BT.shape[1] - width
        for kept, new_BT in zip((log_probs, entropies), found, strict=True):
            kept.append(torch.nn.functional.pad(new_BT, (0, missing)))
    back_B = order_B.argsort()
    return torch.cat(log_probs)[back_B], torch.cat(entropies)[back_B]


def _score_rows(
    model: Any, prefixes: Prefixes, rows: Tensor, width: int, *, temperature: float
) -> tuple[Tensor, Tensor]:
    target_BT = prefixes.completion_ids_BT[rows, :width]
    mask_BT = prefixes.completion_mask_BT[rows, :width].bool()
    ids = torch.cat([prefixes.prompt_ids_BT[rows], target_BT], 1)
    mask = torch.cat([prefixes.prompt_mask_BT[rows].bool(), mask_BT], 1).long()
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width + 1)
    logits_BTV = out.logits[:, -width - 1 : -1].float()
    log_p_BTV = torch.log_softmax(logits_BTV / temperature, -1)
    log_probs_BT = log_p_BTV.gather(-1, target_BT[..., None])[..., 0]
    entropies_BT = entropy_from_logits(logits_BTV, temperature=temperature)
    return torch.where(mask_BT, log_probs_BT, 0.0), torch.where(mask_BT, entropies_BT, 0.0)


class RealStep:
    """Takes steps from one logged state. The model is left as the state has it.

    model: of the run's recipe, adapter included; any weights of the right names.
    bf16: whether the run trained under bfloat16 autocast.
    """

    def __init__(
        self, model: Any, window: LoggedWindow, state: StepState, *, probe: Prefixes | None = None, bf16: bool = False
    ) -> None:
        self.model, self.window, self.state, self.probe, self.bf16 = model, window, state, probe, bf16
        self._named = _trainable(model, state)
        self._restore()
        self._before: dict[str, float | None] = {}
        self._slopes: dict[str, dict[str, Tensor]] = {}
        with torch.no_grad():
            self._before = self._entropies()

    def take(self, setting: Setting, *, linear: bool = False) -> StepOutcome:
        """The step under one setting, measured; parameters are put back afterwards."""
        grad_norm = self._step(setting)
        with torch.no_grad():
            after = self._entropies()
        moved = {name: (p.detach() - self.state.parameters[name]).clone() for name, p in self._named.items()}
        self._restore()
        within, probe = (_difference(after[k], self._before[k]) for k in ("within", "probe"))
        assert within is not None
        return StepOutcome(
            within=within,
            probe=probe,
            grad_norm=grad_norm,
            linear_within=self._linear("within", moved) if linear else None,
            linear_probe=self._linear("probe", moved) if linear and self.probe is not None else None,
        )

    def parameters_after(self, setting: Setting) -> dict[str, Tensor]:
        """Copies of the parameters a step leaves, by name."""
        self._step(setting)
        found = {name: p.detach().clone() for name, p in self._named.items()}
        self._restore()
        return found

    def _restore(self) -> None:
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(self.state.parameters[name])
                p.grad = None

    def _step(self, setting: Setting) -> float:
        window, controllers = self.window, setting.fresh_controllers()
        check_window(window, controllers)
        optimizer = _optimizer(self._named, self.state)
        selections = select(window, controllers)
        self.model.train()
        for part in micro_batches(window):
            with self._forward_context():
                log_probs_BT, entropies_BT = score(
                    self.model, prefixes_of(window)[part], temperature=window.options.temperature
                )
            found = micro_batch_loss(
                window,
                controllers,
                selections,
                part,
                log_probs_BT=log_probs_BT,
                entropies_BT=entropies_BT.detach(),
            )
            found.loss.backward()
        limit = self.state.max_grad_norm or torch.inf
        grad_norm = float(torch.nn.utils.clip_grad_norm_(list(self._named.values()), limit))
        if not torch.isfinite(torch.tensor(grad_norm)):
            raise ValueError(
                f"the gradient of {setting.label!r} in step {window.step} is {grad_norm}; leave the setting or the "
                "step out"
            )
        optimizer.step()
        return grad_norm

    @contextmanager
    def _forward_context(self) -> Iterator[None]:
        device = next(iter(self._named.values())).device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            yield

    def _mean_entropy(self, prefixes: Prefixes, mask_BT: Tensor, *, backward: bool = False) -> float:
        """Mean over the masked tokens, chunk by chunk; with `backward`, its gradient is left in the parameters."""
        total, tokens = 0.0, int(mask_BT.sum())
        for start in range(0, len(prefixes), 4 * CHUNK):
            part = slice(start, start + 4 * CHUNK)
            with self._forward_context():
                entropies_BT = score(self.model, prefixes[part], temperature=self.window.options.temperature)[1]
            chunk = torch.where(mask_BT[part], entropies_BT.double(), 0.0).sum() / tokens
            if backward:
                chunk.backward()
            total += float(chunk.detach())
        return total

    def _measured(self) -> dict[str, tuple[Prefixes, Tensor]]:
        found = {"within": (prefixes_of(self.window), self.window.rows.mask_BT)}
        if self.probe is not None:
            found["probe"] = (self.probe, self.probe.completion_mask_BT.bool())
        return found

    def _entropies(self) -> dict[str, float | None]:
        self.model.eval()
        return {"probe": None, **{k: self._mean_entropy(*v) for k, v in self._measured().items()}}

    def _linear(self, what: str, moved: Mapping[str, Tensor]) -> float:
        if what not in self._slopes:
            self.model.eval()
            self._mean_entropy(*self._measured()[what], backward=True)
            self._slopes[what] = {n: p.grad.clone() for n, p in self._named.items() if p.grad is not None}
            self._restore()
        return sum(float((slope.double() * moved[n].double()).sum()) for n, slope in self._slopes[what].items())


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _trainable(model: Any, state: StepState) -> dict[str, torch.nn.Parameter]:
    """The model's parameters that the state has, with gradients on and all others off."""
    parameters = dict(model.named_parameters())
    unknown = sorted(state.parameters.keys() - parameters.keys())
    if unknown:
        raise ValueError(
            f"the logged state has {len(unknown)} parameters the recipe's model lacks, such as {unknown[0]!r}; the "
            "recipe in the run folder must be the one that was trained (model.path and lora)"
        )
    shapes = [n for n, value in state.parameters.items() if value.shape != parameters[n].shape]
    if shapes:
        raise ValueError(f"{shapes[0]!r} has another shape in the logged state than in the recipe's model")
    for name, p in parameters.items():
        p.requires_grad_(name in state.parameters)
    return {name: parameters[name] for name in state.parameters}


def _optimizer(named: Mapping[str, torch.nn.Parameter], state: StepState) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, state.optimizer_class, None)
    if kind is None:
        raise ValueError(
            f"optimiser {state.optimizer_class!r} is not one of torch.optim, so its step cannot be taken here; train "
            "with trainer.optim: adamw_torch (or sgd) where the step is to be replayed"
        )
    groups = [{"params": [named[n] for n in names]} for names in state.optimizer_names]
    optimizer = kind(groups, lr=state.learning_rate)
    # Copied: torch keeps the tensors it is given where device and type fit, and a step writes into them.
    optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))
    return optimizer
