"""TRL's own adaptive entropy bonus against Skywork's `EntController`, by training a policy of a chosen entropy.

Nothing of TRL's rule is written here. A real `EntropyGRPOTrainer` trains with `use_adaptive_entropy`; before each step
a callback sets the policy's head so that its entropy, in every state, is the next number of the sequence. Rewards are
all alike, so the policy term is 0 and the logged loss is -(applied coefficient) * entropy: what the trainer logs is
enough to read coefficient, entropy and whether the bonus acted.

Where the two rules differ, which the vector cannot show:
    entropy exactly on target   TRL raises the coefficient and applies it (<=); Skywork lowers it and does not (<)
    which entropy               TRL: token mean of the whole optimiser step; Skywork: what its caller hands over
    first step                  TRL applies nothing before it has measured once; Skywork depends on its caller
"""

import math
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from entrl_lab.conformance.comparison import Case, Comparison

FLOAT32_ENTROPY = (1e-4, 1e-6)  # rtol, atol of what the float32 policy is measured to have
VOCABULARY = 4  # ids: two to write, one end, one padding


@dataclass(frozen=True, kw_only=True)
class AdaptiveTrace:
    """One entry per number of the sequence.

    entropy: nats, as the trainer measured it in that step
    coefficient: after that step
    applied: the coefficient that multiplied the entropy in the step that followed
    """

    entropy: list[float]
    coefficient: list[float]
    applied: list[float]


def peak_logit(entropy: float, vocabulary: int = VOCABULARY) -> float:
    """The logit of one token, the others at 0, whose softmax has this entropy (nats); bisection in float64."""
    if not 0 < entropy < math.log(vocabulary):
        limit = math.log(vocabulary)
        raise ValueError(
            f"entropy {entropy} nats: a policy over {vocabulary} tokens has one in (0, {limit:.3f}); ask for one there"
        )

    def entropy_of(logit: float) -> float:
        top = 1 / (1 + (vocabulary - 1) * math.exp(-logit))
        rest = (1 - top) / (vocabulary - 1)
        return -top * math.log(top) - (vocabulary - 1) * rest * math.log(rest)

    low, high = 0.0, 30.0  # entropy falls with the logit; at 30 it is below 1e-11
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy_of(middle) > entropy else (low, middle)
    return (low + high) / 2


def _flat_policy() -> Any:
    """The smallest Qwen3 whose logits are the sum of its head's rows, whatever it reads.

    Every embedding is 1 and the blocks add 0, so the normalised hidden state is 1 everywhere.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=2,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
    return model


def _two_letters() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<end>": 2, "<pad>": 3}, unk_token="b"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>", padding_side="left")


def _no_reward(completions: list, **_: object) -> list[float]:
    return [0.0] * len(completions)


def train_through(sequence: list[float], **options: Any) -> AdaptiveTrace:
    """Train one step at each entropy (nats) of the sequence, with `options` of `trl.GRPOConfig`; seconds on a CPU.

    ValueError if an entropy is not one a policy over four tokens can have.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig

    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer  # brings trl, which other vectors do without

    logits = [peak_logit(h) for h in (*sequence, sequence[-1])]  # one more step shows what the last update applies

    class SetEntropy(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                kwargs["model"].lm_head.weight[0] = logits[state.global_step] / 2  # two hidden units, each 1

    with tempfile.TemporaryDirectory() as folder:
        trainer = EntropyGRPOTrainer(
            _flat_policy(),
            _no_reward,
            GRPOConfig(
                output_dir=folder,
                max_steps=len(logits),
                learning_rate=0.0,
                per_device_train_batch_size=2,
                num_generations=2,
                max_completion_length=4,
                logging_steps=1,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a b"] * 8}),
            processing_class=_two_letters(),
            callbacks=[SetEntropy()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "entropy_coef" in entry]
    return AdaptiveTrace(
        entropy=[s["entropy"] for s in steps[:-1]],
        coefficient=[s["entropy_coef"] for s in steps[:-1]],
        applied=[-s["loss"] / s["entropy"] for s in steps[1:]],
    )


def adaptive_entropy_case(case: Case, check: Comparison) -> str:
    params, sequence = case["params"], case["inputs"]["entropy_sequence"]
    want = case["outputs"]["state_after_each_update"]
    if params["target"] in sequence:
        check.wrong.append("an entropy equals the target, where TRL's rule (<=) and Skywork's (<) differ by design")
    got = train_through(
        sequence,
        use_adaptive_entropy=True,
        entropy_coef=params["init"],
        entropy_coef_min=params["min"],
        entropy_coef_max=params["max"],
        entropy_coef_delta=params["delta"],
        entropy_target=params["target"],
    )
    rtol, atol = FLOAT32_ENTROPY
    check.close("entropy", got.entropy, sequence, rtol=rtol, atol=atol)
    check.close("coef", got.coefficient, [state["coef"] for state in want])
    check.close("applied", got.applied, [state["coef"] * state["enabled"] for state in want], rtol=rtol, atol=1e-9)
    check.same("enabled", [int(applied > 0) for applied in got.applied], [state["enabled"] for state in want])
    return "TRL's own, through real training steps; the rules differ only where entropy equals the target"
