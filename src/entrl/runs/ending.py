"""How a run that is asked to end ends: SIGTERM, SIGUSR1 (Slurm's, as launch/slurm.sh asks for it) and Ctrl-C wait for
the optimiser step under way, which is then saved.

The first signal is remembered; at the next step's end (or the end of an evaluation between steps) all ranks agree, a
checkpoint is written and training stops. From the last step until the model is saved a signal waits as well: without
checkpoints (`save_strategy: "no"`) the model is all that a run leaves. Outside of that there is nothing to lose and the
run ends at once, as it does on a second signal, and when the wait is longer than twice the longest step so far.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from entrl.errors import RunStopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LEAST_WAIT_S = 60.0  # seconds a step may take after a signal, however short the steps were
ECHO_S = 1.0  # a terminal and a launcher both hand a signal on: within this time it is the same one
GO_ON = "the same command with resume=true (and without overwrite=true) goes on"


def launcher_patience() -> str | None:
    """What cuts that short: torch's launcher, which accelerate uses, kills its ranks 30 s after a signal."""
    seconds = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not seconds.isdigit() or int(seconds) >= LEAST_WAIT_S:
        return None
    return (
        f"a signal leaves {seconds} s for the step under way and its checkpoint, then the launcher kills the ranks; "
        "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=3600 before it (launch/trainers.sh does) where steps take longer"
    )


class Ending(TrainerCallback):
    """Listens for signals inside `listening`; a callback of the trainer."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal
        self.saved: int | None = None  # the step whose checkpoint was written for it
        self._training = False
        self._since = 0.0
        self._began = 0.0
        self._longest = 0.0
        self._owner = os.getpid()
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the `with`, where they are not ignored; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if os.getpid() != self._owner:  # a forked worker: it ends as if nobody listened
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.asked is not None:
            if now - self._since >= ECHO_S:
                raise self._stopped("in the middle of a step, which is lost")
            return
        self.asked, self._since = number, now
        if not self._training:
            raise self._stopped("outside of training")
        wait = max(LEAST_WAIT_S, 2 * self._longest)
        if os.environ.get("RANK", "0") == "0":
            text = f"{self._name}: the step under way is finished and saved, for {wait:.0f} s at most; again: at once"
            os.write(2, f"\n{text}\n".encode())  # print could be what the signal interrupted
        self._timer = threading.Timer(wait, os.kill, (self._owner, number))
        self._timer.daemon = True
        self._timer.start()

    @property
    def _name(self) -> str:
        return signal.Signals(self.asked or signal.SIGTERM).name

    def _stopped(self, where: str) -> RunStopped:
        return RunStopped(
            f"stopped by {self._name} {where}; {GO_ON} from the last whole checkpoint",
            128 + (self.asked or signal.SIGTERM),
        )

    def raise_if_asked(self) -> None:
        """RunStopped once training has stopped for a signal."""
        if self.asked is None:
            return
        if self.saved is None:
            raise RunStopped(f"stopped by {self._name} after the last step, model saved; {GO_ON}", 128 + self.asked)
        raise self._stopped(f"after step {self.saved}, saved in checkpoint-{self.saved}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._training, self._began = True, time.monotonic()

    def saved_model(self) -> None:
        """Nothing is lost any more by ending at once; RunStopped where a signal has waited for this."""
        self._training = False
        self.raise_if_asked()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self._longest, self._began = max(self._longest, now - self._began), now
        self._agree(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._training and state.global_step:  # before the first step there is nothing to save
            self._agree(args, state, control)

    def _agree(self, args: Any, state: Any, control: Any) -> None:
        number = self.asked or 0
        if args.world_size > 1:
            every = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MAX)
            number = int(every)
        if not number:
            return
        if self.asked is None:  # another rank was asked
            self.asked, self._since = number, time.monotonic()
        self.saved = state.global_step
        args.save_only_model = False  # what is saved now must be enough to go on from
        control.should_training_stop = control.should_save = True
