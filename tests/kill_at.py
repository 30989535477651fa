"""`entrl` with a trace of the places a run passes, and a SIGKILL of itself at one of them.

    python tests/kill_at.py AT TRACE RANK train RECIPE key=value ...

Places are counted from 0 in the order the run passes them, on process RANK: before every file that is opened for
writing in the run folder, renamed or deleted, before, in the middle of and after every file of tensors, in every
forward pass (of generation, evaluation or loss), in every backward pass, around optimiser steps. AT: the place to die
at, -1 = never. TRACE: the file that gets one line per place, `-` = none.

The library knows nothing of this: the libraries' functions are wrapped before `entrl.cli.main.main` runs.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = "wax+"


class Places:
    """Counts places; dies at the wanted one."""

    def __init__(self, at: int, trace: str) -> None:
        self.at, self.count = at, 0
        self.trace = None if trace == "-" else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.root = ""  # of the run folder; places outside of it do not count
        self.inside = False  # the hook itself is at work
        self.doing = "start"

    def reach(self, name: str, last_deed: Callable[[], Any] = lambda: None) -> None:
        if self.trace is not None:
            os.write(self.trace, f"{self.doing}: {name}\n".encode())
        if self.count == self.at:
            self.inside = True
            last_deed()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def relative(self, path: Any) -> str | None:
        """The path within the run folder, None for another's."""
        if not isinstance(path, (str, os.PathLike)):
            return None
        full = os.path.abspath(os.fspath(path))
        return full[len(self.root) + 1 :] if self.root and full.startswith(self.root + os.sep) else None

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own writing: files opened for it, renamed, removed."""
        if self.inside or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not (arguments[1] and set(str(arguments[1])) & set(WRITING)):
            return
        name = self.relative(arguments[0])
        if event == "os.remove" and self.doing == "checkpoint" and arguments[1] != -1:  # by handle, as rmtree does
            name = f"{arguments[0]} of an old checkpoint"
        if name is not None:
            self.reach(f"before {event.removeprefix('os.')} {name}")

    def writing(self, function: Callable[..., Any], position: int) -> Callable[..., Any]:
        """A function that writes a file of tensors, which no audit event tells of."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            path = arguments[position] if len(arguments) > position else named.get("f", named.get("filename"))
            name = self.relative(path)
            if name is None:
                return function(*arguments, **named)
            self.reach(f"before {name}")
            outcome = function(*arguments, **named)
            self.reach(f"torn {name}", lambda: os.truncate(path, os.path.getsize(path) // 2))
            self.reach(f"after {name}")
            return outcome

        return wrapped

    def during(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Names what the run is at while the function runs."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            before, self.doing = self.doing, name
            try:
                return function(*arguments, **named)
            finally:
                self.doing = before

        return wrapped


def install(places: Places) -> None:
    """Wrap what a run passes. Imports everything heavy."""
    import accelerate
    import peft  # noqa: F401  (it holds the function that writes adapters)
    import safetensors.torch
    import torch
    import transformers

    import entrl.runs.log
    import entrl.runs.train
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

    torch.save = places.writing(torch.save, 1)
    plain_save, save_file = safetensors.torch.save_file, places.writing(safetensors.torch.save_file, 1)
    for module in list(sys.modules.values()):
        for name in [name for name, value in list(vars(module).items()) if value is plain_save]:
            setattr(module, name, save_file)
    sys.addaudithook(places.audit)

    plain_forward = torch.nn.Module.__call__

    def forward(module: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(module, transformers.PreTrainedModel) and hasattr(module, "lm_head"):
            places.reach("in a forward pass")
        return plain_forward(module, *arguments, **named)

    torch.nn.Module.__call__ = forward

    plain_backward = accelerate.Accelerator.backward

    def backward(self: Any, loss: Any, **named: Any) -> Any:
        def inside(gradient: Any) -> Any:
            places.reach("in a backward pass")
            return gradient

        loss.register_hook(inside)
        return plain_backward(self, loss, **named)

    accelerate.Accelerator.backward = backward
    plain_step = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        places.reach("before an optimiser step")
        outcome = plain_step(self, *arguments, **named)
        places.reach("after an optimiser step")
        return outcome

    torch.optim.AdamW.step = step

    plain_append = entrl.runs.log.append_lines

    def append(path: Path, rows: Any) -> None:
        rows = list(rows)
        if rows:
            half = repr(rows)[: len(repr(rows)) // 2]
            places.reach(f"torn {path.name}", lambda: path.open("a").write(half))
        plain_append(path, rows)

    entrl.runs.log.append_lines = append

    trainer = EntropyGRPOTrainer
    for cls, name, doing in (
        (trainer, "_generate", "generation"),
        (trainer, "_compute_loss", "loss"),
        (trainer, "evaluate", "evaluation in training"),
        (trainer, "_save_checkpoint", "checkpoint"),
        (trainer, "save_model", "save"),
        (entrl.runs.train, "train_model", "training"),
        (entrl.runs.train, "write_report", "report"),
    ):
        setattr(cls, name, places.during(getattr(cls, name), doing))
    plain_evaluate = entrl.runs.train.evaluate_into

    def evaluate_into(run: Any, load: Any, when: str, **how: Any) -> None:
        places.root = os.path.abspath(run.folder.path)
        places.during(plain_evaluate, f"evaluation {when}")(run, load, when, **how)

    entrl.runs.train.evaluate_into = evaluate_into


def main(words: list[str]) -> int:
    at, trace, rank, *command = words
    if int(os.environ.get("RANK", "0")) == int(rank):
        install(Places(int(at), trace))
    from entrl.cli.main import main as entrl

    return entrl(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
