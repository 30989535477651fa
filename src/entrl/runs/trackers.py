"""Trackers of transformers' (`trainer.report_to`): known, installed, told everything, and told before other listeners.

transformers finds an unknown or missing tracker only when the trainer is built, which is after the evaluation before
training.
"""

import importlib.util
from typing import Any

from entrl.settings.names import suggest

# Those of docs/trackers.md: what has to be installed for each, any one of the modules.
MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}


def unknown_trackers(args: Any) -> list[str]:
    """Names in `report_to` that transformers does not know.

    args: a trainer's config, whose `report_to` is a list by now (`none` is an empty one, `all` those installed)
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # brings every tracker's probe

    known = sorted(INTEGRATION_TO_CALLBACK)
    return [
        f"report_to: no tracker is called {name!r}.{suggest(name, known)} There are {', '.join(known)}, or none"
        for name in args.report_to
        if name not in INTEGRATION_TO_CALLBACK
    ]


def missing_trackers(args: Any) -> list[str]:
    """Those of `report_to` that are not installed here."""
    return [
        f"report_to: {name} is not installed here; pip install {name}, or take it out (metrics.jsonl and the report "
        "need none)"
        for name in args.report_to
        if name in MODULES and not any(importlib.util.find_spec(module) for module in MODULES[name])
    ]


def listen_first(trainer: Any, callback: Any) -> None:
    """Let a callback that adds to the logs come before the trackers, which transformers calls first."""
    callbacks = trainer.callback_handler.callbacks
    callbacks.remove(callback)
    callbacks.insert(0, callback)
