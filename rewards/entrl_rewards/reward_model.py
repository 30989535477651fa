"""Reward model: the first logit of a sequence-classification model for prompt and completion together.

    r(x, y) = (f(x y)_0 - shift) / scale

Source:  TRL 1.16, `GRPOTrainer._calculate_rewards` for models (same text, same padding; a test compares the numbers)
Differs: in batches of `batch_size` rows, and loaded when it is first called; TRL scores all rows in one pass. A text
    over the model's context raises instead of running past its positions
Needs:   transformers; a folder or hub id that AutoModelForSequenceClassification reads, with its tokenizer
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from entrl_rewards.options import check_choices, check_ranges


@dataclass(kw_only=True)
class RewardModelState:
    model: Any = None
    tokenizer: Any = None


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A model of somebody's, by path; each process holds one."""

    __name__: ClassVar[str] = "reward_model"

    path: str = ""  # folder or hub id
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None  # None: the accelerator where there is one, else the CPU
    batch_size: int = 16  # rows of a pass
    shift: float = 0.0  # raw scores have any scale: subtract ...
    scale: float = 1.0  # ... and divide, for instance by mean and spread on the first rollouts

    _state: RewardModelState = field(default_factory=RewardModelState, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(
            self,
            {
                "batch_size": (self.batch_size >= 1, "at least 1"),
                "shift": (math.isfinite(self.shift), "finite"),
                "scale": (0 < self.scale < math.inf, "above 0 and finite"),
            },
        )

    def __call__(self, *, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        self._load()
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike ones together: less padding
        scores = [0.0] * len(texts)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            for i, score in zip(part, self._scores([texts[i] for i in part]), strict=True):
                scores[i] = (score - self.shift) / self.scale
        return scores

    def _load(self) -> None:
        if self._state.model is not None:
            return
        if not self.path:
            raise ValueError("reward_model needs a path: the folder or hub id of a sequence-classification model")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        kind = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            self.path, num_labels=1, dtype=kind, revision=self.revision, output_loading_info=True
        )
        if lacking := sorted(loaded["missing_keys"]):
            raise ValueError(
                f"reward_model: {self.path} has no {', '.join(lacking[:3])}, which would be random numbers; name a "
                "model that was trained to score (a sequence-classification one)"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.get_text_config().pad_token_id = (
            tokenizer.pad_token_id
        )  # it scores the last token that is no padding
        where = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self._state.tokenizer, self._state.model = tokenizer, model.to(self.device or where).eval()

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return self._state.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)

    def _scores(self, texts: list[str]) -> list[float]:
        import torch

        model = self._state.model
        batch = self._state.tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and batch["input_ids"].size(1) > limit:
            raise ValueError(
                f"a text of {batch['input_ids'].size(1)} tokens is beyond the context of {limit} of the reward model "
                f"{self.path}; take one of a longer context, or lower trainer.max_completion_length"
            )
        with torch.inference_mode():
            return model(**batch.to(model.device)).logits[:, 0].float().tolist()


reward = RewardModel()
