"""PEAR's expert options; each refusal with the value, the rule and the next move."""

from dataclasses import dataclass, replace
from typing import Literal

from entrl.maths.phases import ThinkTags, Which
from entrl_rewards.entropy_source import EntropyOptions
from entrl_rewards.options import check_ranges

NO_TOKEN = -1  # no tokenizer hands it out


@dataclass(frozen=True, kw_only=True)
class PearExpert(EntropyOptions):
    """Variants, controls and repairs of inputs; all off by default."""

    # Which tokens are of which phase
    which_close: Which = "first"
    count_open: bool = True  # whether an opening tag the model wrote counts as thinking
    exclude_ids: tuple[int, ...] = ()  # token ids in neither phase, e.g. EOS (default: EOS counts)
    close_ids: tuple[int, ...] | None = None  # closing tag, where the trainer's own tag is not the one meant
    # What is charged
    answer_baseline: Literal["sample", "group", "ema", "none"] = "sample"  # whose H_answer is the yardstick;
    # "group", "ema": vagueness unpaid
    ema_decay: float = 0.9  # per generation batch, for answer_baseline="ema"
    gate_solve_rate: float | None = None  # P only in groups solved at least this often: hard prompts may search
    alpha_start: float | None = None  # alpha moves linearly from here to `alpha` ...
    alpha_steps: int = 0  # ... over this many optimiser steps
    length_weight: float = 0.0  # a correct completion also pays length_weight * tokens / length_scale
    length_scale: int = 1000  # tokens
    # NEGATIVE CONTROL, not a method: each completion is charged the phase entropies of another one of its group with
    # the same verdict, so a group's rewards are the same numbers with the link between text and entropy cut.
    shuffle_entropies_in_group: bool = False
    shuffle_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "length_weight": (self.length_weight >= 0, ">= 0; a negative one would pay for length"),
            "length_scale": (self.length_scale >= 1, ">= 1 token"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "gate_solve_rate": (self.gate_solve_rate is None or 0 <= self.gate_solve_rate <= 1, "in [0, 1], or null"),
            "close_ids": (self.close_ids is None or len(self.close_ids) > 0, "one token id or more, or null"),
        }
        check_ranges(self, rules)
        if (self.alpha_start is None) != (self.alpha_steps == 0) or self.alpha_steps < 0:
            raise ValueError(
                f"alpha_start and alpha_steps > 0 go together, got alpha_start={self.alpha_start} and "
                f"alpha_steps={self.alpha_steps}; set both or neither"
            )

    @property
    def needs_whole_groups(self) -> bool:
        gated = self.gate_solve_rate is not None
        return gated or self.answer_baseline == "group" or self.shuffle_entropies_in_group

    def tags(self, tags: ThinkTags | None) -> ThinkTags:
        """The tags that cut the phases, from those the trainer delivers."""
        if self.close_ids is None:
            if tags is None:
                raise TypeError(
                    "pear got no think_tags; use EntropyGRPOTrainer with a think_close that its tokenizer can encode, "
                    "or set expert: {close_ids: [...]}"
                )
            return tags
        close_ids = tuple(self.close_ids)
        if tags is None:
            return ThinkTags(open_ids=(NO_TOKEN,), close_ids=close_ids)
        return replace(tags, close_ids=close_ids, close_text="", close_pieces={})
