"""Dialogues on several processes, where a turn takes a call that all processes make together.

TRL's tool loop generates a turn for those of a rank's dialogues that go on, as often as the longest of them needs. The
ranks' longest dialogues differ. Where generating is a collective (servers that rank 0 talks to, an engine over several
GPUs, weights that are sharded) a rank whose dialogues are over would leave the others waiting for it for ever. So turns
are played in rounds: a rank with nothing left goes on taking part until no rank has anything.
"""

from collections.abc import Callable
from typing import Any

from entrl.controllers.hooks import Ranks

SingleTurn = Callable[..., tuple[list[list[int]], list[list[float]] | None]]  # TRL's `_generate_single_turn`


class TurnRounds:
    """on: generating is a collective. fill: and takes equally many rows of every rank; idle ones are written for
    nothing then.
    """

    def __init__(self, ranks: Ranks, *, on: bool, fill: bool) -> None:
        self.ranks, self.on, self.fill = ranks, on, fill
        self.playing = False
        self.filler: list[int] = []  # a prompt, for rows that nobody asked for

    def play(self, loop: Callable[[], Any], prompt_ids: list[list[int]], generate: SingleTurn) -> Any:
        """What `loop` returns, TRL's tool loop over these prompts; it comes back when every rank's dialogues are over.

        generate: for the rounds after this rank's last turn
        """
        if not self.on:
            return loop()
        self.playing, self.filler = True, prompt_ids[0]
        try:
            found = loop()
        finally:
            self.playing = False
        while count := self.ranks.max(0):
            generate([self.filler] * count if self.fill else [], None, {}, 1)
        return found

    def turn(self, generate: SingleTurn, prompt_ids: list[list[int]], images: Any, *given: Any, **options: Any) -> Any:
        """One turn of this rank's dialogues that go on, in a round with the other ranks'."""
        rows = len(prompt_ids)
        most = self.ranks.max(rows)  # ranks whose dialogues are over are asking as well
        idle = most - rows if self.fill else 0
        if images is not None:
            images = [*images, *[None] * idle]
        ids, log_probs = generate(prompt_ids + [self.filler] * idle, images, *given, **options)
        return ids[:rows], None if log_probs is None else log_probs[:rows]


def generates_together(trl: Any) -> tuple[bool, bool]:
    """(whether a call to generate is a collective, whether it takes equally many rows of every rank), of a trainer."""
    if trl.accelerator.num_processes == 1:
        return False, False
    replicas = bool(getattr(trl.args, "vllm_replicas", None))
    plugin = getattr(trl.accelerator.state, "deepspeed_plugin", None)
    sharded = trl.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
    if not trl.use_vllm:
        return sharded, sharded
    if trl.vllm_mode == "server":
        return True, not replicas
    parallel = trl.args.vllm_tensor_parallel_size > 1
    waking = sharded and trl.args.vllm_enable_sleep_mode  # an engine that wakes is sent the weights again
    return parallel or waking, parallel or waking
