"""The runs on which the diagnosis is set and judged, with what each was built to show. Frozen before any threshold.

A run is a shipped recipe, made short, with one thing changed. `shows`: symptoms it is built to show; a diagnosis that
does not name one of them misses. `may`: further ones that follow from the same fault, counted neither way. Healthy runs
are shipped recipes as they are, made short: any symptom named there is a false alarm.

What was built need not come out: a run that was meant to surge and did not stays in the list as it was labelled.

The split: within the runs of one label (the first of `shows`, or healthy) in the order of the SHA-256 of their names,
every other one sets thresholds, beginning with the first; the rest judges.
"""

import hashlib
from typing import NamedTuple

SYMPTOMS = (
    "not a number",
    "no reward",
    "rewards equal",
    "truncated",
    "tags never seen",
    "gradient zero",
    "entropy collapsed",
    "entropy surged",
    "ratio exploding",
)
HEALTHY = "healthy"
SAME = {"groups flat": "rewards equal"}  # two degrees of one symptom

# What a policy that was broken by its updates may show besides.
BROKEN = ("not a number", "no reward", "rewards equal", "truncated", "tags never seen", "thinking not closed",
          "gradient zero", "entropy collapsed", "entropy surged", "ratio exploding")  # fmt: skip
CUT = ("no reward", "rewards equal", "thinking not closed", "tags never seen", "gradient zero")


class Run(NamedTuple):
    name: str
    recipe: str  # below recipes/
    shows: tuple[str, ...]
    change: tuple[str, ...]  # overrides
    may: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.shows[0] if self.shows else HEALTHY


def reward(name: str) -> str:
    return f"rewards=[{{use: '../../benchmarks/diagnosis_rewards.py:{name}'}}]"


TINY, OVER, PEAR = "tiny-reasoner/grpo", "overthinker/grpo", "tiny-reasoner/pear"
OVER_PEAR, ASKING = "overthinker/pear", "twenty-questions/outcome"
NAN, ZERO, EQUAL, LONG, TAGS, STILL, LESS, MORE, FAR = ((symptom,) for symptom in SYMPTOMS)
STEPS_8 = ("trainer.per_device_train_batch_size=16", "trainer.steps_per_generation=8")  # updates of one rollout
FEW, MANY = "trainer.max_steps=12", "trainer.max_steps=30"
ENDS = ("gradient zero",)

SICK = (
    # not a number
    Run("nan-float16-weights", TINY, NAN, ("model.dtype=float16", "trainer.learning_rate=1e-3", FEW), BROKEN),
    Run("nan-adam-epsilon-0", TINY, NAN, ("trainer.adam_epsilon=0", FEW, *STEPS_8), BROKEN),
    Run("nan-learning-rate-1e30", TINY, NAN, ("trainer.learning_rate=1e30", FEW, *STEPS_8), BROKEN),
    Run("nan-lora-1e30", "tiny-reasoner/lora", NAN, ("trainer.learning_rate=1e30", FEW, *STEPS_8), BROKEN),
    Run("nan-reward-3e38", TINY, NAN, (reward("enormous"), FEW, *STEPS_8), BROKEN),
    Run("nan-pear-1e35", PEAR, NAN, ("trainer.learning_rate=1e35", FEW, *STEPS_8), BROKEN),
    # no reward
    Run("zero-never", TINY, ZERO, (reward("never"), FEW), ENDS),
    Run("zero-never-asking", ASKING, ZERO, (reward("never"), FEW), ENDS),
    Run("zero-other-golds", TINY, ZERO, (reward("off_by_thousand"), FEW), ENDS),
    Run("zero-other-golds-overthinker", OVER, ZERO, (reward("off_by_thousand"), FEW), ENDS),
    Run("zero-two-tokens", TINY, ("no reward", "truncated"), ("trainer.max_completion_length=2", FEW), CUT),
    Run("zero-format-other-tag", TINY, ("no reward", "tags never seen"),
        ("rewards=[{use: think_format}]", "trainer.think_close='</end>'", FEW), ENDS),
    # rewards equal
    Run("equal-constant", TINY, EQUAL, (reward("constant"), FEW), ENDS),
    Run("equal-constant-asking", ASKING, EQUAL, (reward("constant"), FEW), ENDS),
    Run("equal-charge-overthinker", OVER, EQUAL, (reward("charge"), FEW), ENDS),
    Run("equal-always-right", OVER, EQUAL, (FEW,), ENDS),
    Run("equal-cold-sampling", TINY, EQUAL, ("trainer.temperature=0.01", FEW), (*ENDS, "no reward")),
    Run("equal-cold-sampling-pear", OVER_PEAR, EQUAL, ("trainer.temperature=0.01", FEW), ENDS),
    # truncated
    Run("cut-12", TINY, LONG, ("trainer.max_completion_length=12", FEW), CUT),
    Run("cut-20", TINY, LONG, ("trainer.max_completion_length=20", FEW), CUT),
    Run("cut-24", "tiny-reasoner/clip-cov", LONG, ("trainer.max_completion_length=24", FEW), CUT),
    Run("cut-overthinker-40", OVER, LONG, ("trainer.max_completion_length=40", FEW), CUT),
    Run("cut-overthinker-60", OVER, LONG, ("trainer.max_completion_length=60", FEW), CUT),
    Run("cut-pear-20", PEAR, LONG, ("trainer.max_completion_length=20", FEW), CUT),
    # tags never seen
    Run("tags-accuracy", TINY, TAGS, ("trainer.think_close='</end>'", FEW)),
    Run("tags-laser", "tiny-reasoner/laser-d", TAGS, ("trainer.think_close='</end>'", FEW)),
    Run("tags-pear", PEAR, TAGS, ("trainer.think_open='<t>'", "trainer.think_close='</t>'", FEW),
        ("no reward", "rewards equal", "thinking not closed", "gradient zero")),
    Run("tags-overthinker-pear", OVER_PEAR, TAGS, ("trainer.think_close='</thought>'", FEW),
        ("no reward", "rewards equal", "thinking not closed", "gradient zero")),
    Run("tags-overthinker", OVER, ("tags never seen", "rewards equal"), ("trainer.think_close='</thought>'", FEW),
        ("no reward", "gradient zero")),
    Run("tags-kl-cov", "tiny-reasoner/kl-cov", TAGS, ("trainer.think_close='[/THINK]'", FEW)),
    # gradient zero
    Run("still-masked", TINY, ("gradient zero", "truncated"),
        (reward("digits"), "trainer.mask_truncated_completions=true", "trainer.max_completion_length=4", FEW), CUT),
    Run("still-masked-overthinker", OVER, ("gradient zero", "truncated"),
        (reward("digits"), "trainer.mask_truncated_completions=true", "trainer.max_completion_length=8", FEW), CUT),
    Run("still-masked-pear", PEAR, ("gradient zero", "truncated"),
        (reward("digits"), "trainer.mask_truncated_completions=true", "trainer.max_completion_length=6", FEW), CUT),
    Run("still-lora-alpha-0", "tiny-reasoner/lora", STILL, ("lora.lora_alpha=0", FEW)),
    Run("still-lora-alpha-0-accuracy", TINY, STILL, ("lora={r: 4, lora_alpha: 0, target_modules: all-linear}", FEW)),
    Run("still-lora-alpha-0-overthinker", OVER_PEAR, STILL,
        ("lora={r: 4, lora_alpha: 0, target_modules: all-linear}", FEW)),
    # entropy collapsed
    Run("calm", TINY, LESS, (reward("calm"), "trainer.learning_rate=1e-3", MANY), BROKEN),
    Run("calm-overthinker", OVER, LESS, (reward("calm"), "trainer.learning_rate=1e-3", MANY), BROKEN),
    Run("calm-ones", TINY, LESS, (reward("ones"), "trainer.learning_rate=1e-3", MANY), BROKEN),
    Run("calm-ones-overthinker", OVER, LESS, (reward("ones"), "trainer.learning_rate=1e-3", MANY), BROKEN),
    Run("calm-short", TINY, LESS, (reward("short"), "trainer.learning_rate=1e-3", MANY), BROKEN),
    Run("calm-accuracy-1e-3", TINY, LESS, ("trainer.learning_rate=1e-3", MANY), BROKEN),
    # entropy surged
    Run("restless", TINY, MORE, (reward("restless"), "trainer.learning_rate=5e-4", MANY), BROKEN),
    Run("restless-overthinker", OVER, MORE, (reward("restless"), "trainer.learning_rate=5e-4", MANY), BROKEN),
    Run("restless-bonus", TINY, MORE, ("trainer.entropy_coef=1.0", "trainer.learning_rate=5e-4", MANY), BROKEN),
    Run("restless-bonus-pear", OVER_PEAR, MORE,
        ("trainer.entropy_coef=1.0", "trainer.learning_rate=5e-4", MANY), BROKEN),
    Run("restless-noise-1e-2", TINY, MORE, (reward("noise"), "trainer.learning_rate=1e-2", MANY), BROKEN),
    Run("restless-accuracy-3e-2", TINY, MORE, ("trainer.learning_rate=3e-2", MANY), BROKEN),
    # ratio exploding
    Run("far-3e-3", TINY, FAR, ("trainer.learning_rate=3e-3", "trainer.max_steps=24", *STEPS_8), BROKEN),
    Run("far-1e-2", TINY, FAR, ("trainer.learning_rate=1e-2", "trainer.max_steps=24", *STEPS_8), BROKEN),
    Run("far-pear-5e-3", PEAR, FAR, ("trainer.learning_rate=5e-3", "trainer.max_steps=24", *STEPS_8), BROKEN),
    Run("far-overthinker-5e-3", OVER_PEAR, FAR,
        ("trainer.learning_rate=5e-3", "trainer.max_steps=24", *STEPS_8), BROKEN),
    Run("far-iterations", TINY, FAR,
        ("trainer.learning_rate=3e-3", "trainer.num_iterations=8", "trainer.max_steps=24"), BROKEN),
    Run("far-lora-1e-1", "tiny-reasoner/lora", FAR,
        ("trainer.learning_rate=0.1", "trainer.max_steps=24", *STEPS_8), BROKEN),
)  # fmt: skip

WELL = (
    *(Run(f"well-{name}", f"tiny-reasoner/{name}", (), ("trainer.max_steps=20",))
      for name in ("grpo", "pear", "clip-cov", "kl-cov", "ce-gppo", "cw-grpo", "laser-d", "lora", "mixture", "steer",
                   "pear-kl-cov", "w-reinforce", "guard", "guard-fixed")),
    Run("well-grpo-seed-1", TINY, (), ("trainer.max_steps=40", "trainer.seed=1", "data.seed=1")),
    Run("well-overthinker-pear", OVER_PEAR, (), ("trainer.max_steps=20",)),
    Run("well-asking", ASKING, (), ("trainer.max_steps=12",)),
    Run("well-asking-turn", "twenty-questions/turn", (), ("trainer.max_steps=12",)),
    Run("well-entropy-mechanism", "entropy-mechanism/base", (),
        ("trainer.max_steps=20", "trainer.probe_every=0", "trainer.log_windows=null")),
)  # fmt: skip
RUNS = (*SICK, *WELL)


def judges() -> set[str]:
    """Names of the runs that judge."""
    held: set[str] = set()
    for label in (*SYMPTOMS, HEALTHY):
        names = sorted((r.name for r in RUNS if r.label == label), key=lambda n: hashlib.sha256(n.encode()).hexdigest())
        held.update(names[1::2])
    return held
