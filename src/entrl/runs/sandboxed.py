"""Where a run executes code that its model wrote: in its manifest, at its start, and why it cannot start."""

from collections.abc import Sequence
from typing import Any

from entrl.errors import SandboxError
from entrl.sandbox import open_sandbox, unsafe_is_permitted

UNSAFE = "warning: sandbox=unsafe: code of the model runs with all your rights, and may read, change and send anything"


def sandbox_note(rewards: Sequence[Any]) -> dict[str, str]:
    """The manifest's entry `sandbox`, none where no reward runs code. SandboxError where one does and nothing is safe.

    `accuracy` over rows that ask for code counts as one that may: its tier is noted where a person chose unsafe.
    """
    own = [reward for reward in rewards if getattr(reward, "judges", None) == "code"]
    tiers = sorted({open_sandbox(tier=getattr(reward, "tier", None)).tier for reward in own})
    if tiers or unsafe_is_permitted():
        return {"sandbox": ", ".join(tiers) or open_sandbox().tier}
    return {}


def missing_sandbox(rewards: Sequence[Any]) -> list[str]:
    try:
        sandbox_note(rewards)
    except SandboxError as error:
        return [str(error)]
    return []
