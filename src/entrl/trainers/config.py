"""Options of `EntropyGRPOTrainer` beyond TRL's own; everything else is `trl.GRPOConfig` verbatim."""

import math
from dataclasses import dataclass, field

from trl import GRPOConfig

from entrl.maths.turn_credit import ESTIMATORS, WITHOUT_SUMS
from entrl.trainers.shared.options import SharedOptions


@dataclass
class EntropyGRPOConfig(SharedOptions, GRPOConfig):
    """`GRPOConfig` plus our options, those of both trainers (`SharedOptions`) among them. A plain `GRPOConfig` works
    too and gets the defaults.

    log_diversity: distinct n-grams and edit distance between the completions of a group, once per rollout.
    probe_every: score fixed prefixes (rows of the first rollout) every so many optimiser steps; 0 = never. Each is one
        extra no-grad pass over `probe_rows` rows (over all ranks).
    log_windows: optimiser steps, counted from 0, whose windows are written under `output_dir/windows` for
        `entrl replay`; each costs one extra no-grad pass after the step.
    log_window_state: write parameters and optimiser with each logged window, so that replay can really take the step.
    entropy_source: where rewards get entropies from. `scoring`: a no-grad pass of the trainer (TRL's own where it runs
        one). `sampler`: the vLLM engine's, recorded while it generated; no pass is needed for them.
    top_h, top_h_rule: Top-H truncation of rollouts (arXiv 2509.02510): alpha in (0, 1], and which rule; see
        `entrl.maths.truncation`.
    truncation_correction: what is done about a sampler that truncates (top_p, top_k, top_h) under vLLM, whose log-probs
        are then those of the truncated distribution q = p / G. `restore` adds log G to them, so that the importance
        ratio compares trainer and engine only; `weigh` leaves the ratio p / q = G <= 1 as each token's weight.
    branch_roots: completions of each prompt that are written whole; the others continue their prefixes from
        high-entropy windows on (`entrl.maths.branching`). None: every completion is written whole.
    branch_at: fork at the first token of a window (`window_start`) or at its last (`window_end`).
    branch_window: tokens of a window. branch_quantile: of a root's window means, which sets the threshold.
    branch_attempts: draws of a fork's window before its root stays whole.
    branch_token_budget: generated tokens per prompt to stay within on average; None: no limit.
    filter_on: train only on prompts whose completions differ, and draw new prompts in the place of the others:
        `accuracy` keeps groups with filter_low < mean score < filter_high, `reward` those whose rewards' standard
        deviation exceeds filter_min_std (`entrl.maths.group_filter`). None: every prompt is trained on.
    filter_max_tries: generations per rollout, the first included. filter_exhausted: what happens then, `keep` trains
        on what there is, `error` stops.
    turn_credit: how the rewards of a dialogue's turns become advantages of their tokens (`entrl.maths.turn_credit`):
        `return_to_go` (unbiased), or one of the published estimators. None: one advantage for each completion.
    turn_credit_weight: of the turns' advantages beside the episode's. turn_credit_discount: of later turns' rewards,
        None = 1 (0.5 for first_turn_norm).
    turn_length_weighting: every turn of a completion weighs the same, however long it is.
    vllm_engine_dtype: what a colocated engine computes in; None = vLLM's choice, which is bfloat16 for a float32 model.
    vllm_replicas: vLLM servers started by `entrl serve`; LoRA runs send them the adapter alone. Instead of TRL's one
        server with full weights over NCCL.
    vllm_adapter_dir: a folder that trainer and servers share; None = adapters are sent over HTTP.
    vllm_api_key_env: the environment variable with the servers' key.
    vllm_request_timeout: seconds; an answer that takes longer is not waited for, the prompt goes to another server.
    vllm_retries: failures in a row, with doubling pauses from one second, after which a server is given up.
    vllm_gap_alarm: warn once the mean |log-prob of the trainer - log-prob of the sampler| of a rollout exceeds this.
    """

    log_diversity: bool = field(default=True, metadata={"help": "Log how much a group's completions differ."})
    probe_every: int = field(default=0, metadata={"help": "Score fixed prefixes every so many steps; 0 = never."})
    probe_rows: int = field(default=64, metadata={"help": "Fixed prefixes, over all ranks."})
    log_windows: list[int] | None = field(default=None, metadata={"help": "Steps whose windows are written."})
    log_window_state: bool = field(default=False, metadata={"help": "Write parameters and optimiser with them."})
    entropy_source: str = field(default="scoring", metadata={"help": "scoring or sampler."})
    top_h: float | None = field(default=None, metadata={"help": "Top-H alpha of rollouts."})
    top_h_rule: str = field(default="paper", metadata={"help": "paper or reference."})
    truncation_correction: str | None = field(default=None, metadata={"help": "restore, weigh, or null."})
    branch_roots: int | None = field(default=None, metadata={"help": "Completions of a prompt that are written whole."})
    branch_at: str = field(default="window_start", metadata={"help": "window_start or window_end."})
    branch_window: int = field(default=4, metadata={"help": "Tokens of a high-entropy window."})
    branch_quantile: float = field(default=0.95, metadata={"help": "Of a root's window means: the threshold."})
    branch_attempts: int = field(default=3, metadata={"help": "Draws of a fork's window."})
    branch_token_budget: int | None = field(default=None, metadata={"help": "Generated tokens per prompt."})
    filter_on: str | None = field(default=None, metadata={"help": "accuracy, reward, or null."})
    filter_low: float = field(default=0.01, metadata={"help": "Mean score of a group that is too hard."})
    filter_high: float = field(default=0.99, metadata={"help": "Mean score of a group that is too easy."})
    filter_min_std: float = field(default=0.0, metadata={"help": "Spread of rewards at which a group is flat."})
    filter_max_tries: int = field(default=20, metadata={"help": "Generations per rollout."})
    filter_exhausted: str = field(default="keep", metadata={"help": "keep or error."})
    turn_credit: str | None = field(default=None, metadata={"help": "Advantages per turn: the estimator."})
    turn_credit_weight: float = field(default=1.0, metadata={"help": "Of the turns' advantages."})
    turn_credit_discount: float | None = field(default=None, metadata={"help": "Of later turns' rewards."})
    turn_length_weighting: bool = field(default=False, metadata={"help": "Turns weigh the same at any length."})
    vllm_engine_dtype: str | None = field(default=None, metadata={"help": "Precision of a colocated engine."})
    vllm_replicas: list[str] | None = field(default=None, metadata={"help": "URLs of `entrl serve` servers."})
    vllm_adapter_dir: str | None = field(default=None, metadata={"help": "Folder shared with the servers."})
    vllm_api_key_env: str = field(default="ENTRL_VLLM_API_KEY", metadata={"help": "Variable with the servers' key."})
    vllm_request_timeout: float = field(default=600.0, metadata={"help": "Seconds for one request to a server."})
    vllm_retries: int = field(default=6, metadata={"help": "Failures in a row before a server is given up."})
    vllm_gap_alarm: float = field(default=0.02, metadata={"help": "Mean log-prob gap that raises the alarm, nats."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_every < 0:
            raise ValueError(f"probe_every must be >= 0 optimiser steps (0 = no probe), got {self.probe_every}")
        if self.probe_rows < 1:
            raise ValueError(f"probe_rows must be >= 1, got {self.probe_rows}; probe_every: 0 switches the probe off")
        steps = self.log_windows or []
        if any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in steps):
            raise ValueError(f"log_windows lists optimiser steps counted from 0, such as [0, 10, 20]; got {steps}")
        if self.log_window_state and not steps:
            raise ValueError("log_window_state writes a state beside each logged window; set log_windows as well")
        choices: dict[str, tuple[str | None, ...]] = {
            "entropy_source": ("scoring", "sampler"),
            "top_h_rule": ("paper", "reference"),
        }
        choices["vllm_engine_dtype"] = (None, "float32", "bfloat16", "float16")
        choices["truncation_correction"] = (None, "restore", "weigh")
        choices["turn_credit"] = (None, *ESTIMATORS)
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {getattr(self, name)!r}")
        if self.turn_credit_discount is not None:
            if self.turn_credit in WITHOUT_SUMS:
                raise ValueError(f"turn_credit_discount: {self.turn_credit} sums nothing over turns; leave it out")
            if not 0 <= self.turn_credit_discount <= 1:
                raise ValueError(f"turn_credit_discount must be in [0, 1], got {self.turn_credit_discount}")
        if not math.isfinite(self.turn_credit_weight) or self.turn_credit_weight < 0:
            raise ValueError(f"turn_credit_weight must be finite and >= 0, got {self.turn_credit_weight}")
        if self.top_h is not None and not 0 < self.top_h <= 1:
            raise ValueError(f"top_h is the share of the entropy that may be kept, in (0, 1]; got {self.top_h}")
        if self.vllm_retries < 0:
            raise ValueError(f"vllm_retries must be >= 0, got {self.vllm_retries}")
        for name in ("vllm_request_timeout", "vllm_gap_alarm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
