"""Where a run executes code that its model wrote: in its manifest, at its start, and why it cannot start."""

from collections.abc import Sequence
from typing import Any

from entrl.errors import SandboxError
from entrl.sandbox import open_sandbox, unsafe_is_permitted

UNSAFE = "warning: sandbox=unsafe: code of the model runs with all your rights, and may read, change and send anything"


def sandbox_note(rewards: Sequence[Any], *, rows_ask: bool = False) -> dict[str, str]:
    """The manifest's entry `sandbox`, none where no code is run. SandboxError where some is and nothing is safe.

    rows_ask: whether rows of training or evaluation have a verifier of kind `code`, by which `accuracy` and everything
    that judges through it runs code as well.
    """
    own = [reward for reward in rewards if getattr(reward, "judges", None) == "code"]
    named = [getattr(reward, "tier", None) for reward in own] + [None] * rows_ask
    tiers = sorted({open_sandbox(tier=tier).tier for tier in named})
    if tiers or unsafe_is_permitted():
        return {"sandbox": ", ".join(tiers) or open_sandbox().tier}
    return {}


def missing_sandbox(rewards: Sequence[Any], *, rows_ask: bool = False) -> list[str]:
    try:
        sandbox_note(rewards, rows_ask=rows_ask)
    except SandboxError as error:
        return [str(error)]
    return []
