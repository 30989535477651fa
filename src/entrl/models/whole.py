"""A model that is one process's own, where the launcher divides those that are trained.

Under ZeRO-3 transformers divides every model it loads or builds over the ranks, and its `generate` runs in step with
theirs; under FSDP with `cpu_ram_efficient_loading` the ranks but the first of a machine are given no weights at all,
for the trainer to send. Whoever evaluates what was saved wants neither.
"""

import contextlib
import os
from collections.abc import Iterator

RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # where accelerate leaves the option, read by transformers


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """Inside, models are loaded whole on each process that asks, and generate without the others."""
    from transformers.integrations import deepspeed  # heavy

    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = None if reference is None else reference()
    efficient = os.environ.pop(RAM_EFFICIENT, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if efficient is not None:
            os.environ[RAM_EFFICIENT] = efficient
