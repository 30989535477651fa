"""The runs on which the diagnosis is set and judged, with what each was built to show. Frozen before any threshold.

A run is a shipped recipe, made short, with one thing changed. `shows`: symptoms it is built to show; a diagnosis that
does not name one of them misses. `may`: further ones that follow from the same fault, counted neither way. Healthy runs
are shipped recipes as they are, made short: any symptom named there is a false alarm.

What was built need not come out: a run that was meant to surge and did not stays in the list as it was labelled. Four
of the first list are gone, before any threshold was chosen: a learning rate of 1e30 or more, which is now refused
before training (`nan-learning-rate-1e30`, `nan-lora-1e30`, `nan-pear-1e35`), and `nan-adam-epsilon-0`, in which no
number was ever none.

The list was changed a second time, before any threshold was chosen, when nine runs of the setting half had been seen
and none of the judging half: `calm` and its like moved entropy by less than half at a learning rate of 1e-3 (now
`fall-*`, `rise-*`, at 3e-3 and more), `still-masked-pear` cut a third of its completions and not all, and
`tags-overthinker` earns nothing where it was labelled as always right. What had been seen sets thresholds, whatever its
hash says (`SEEN`).

The setting half then moved three things, committed before the judging half was judged: surge 3 to 2 times the start;
ratio 30 to 10 % over the newest rows, and the log ratio of losses that do not clip; tags that only the tokenizer knows
are not looked for where a model speaks with tools or an environment (`well-asking`), so the four runs of that game, one
of them in the judging half, were recorded anew.

Added on 2026-11-29, when all thresholds stood and were not touched: six runs each for `groups flat` and `thinking not
closed`, which had none. They were written down before any of them was run.

The machine is shared and slow, so that three runs of every label and ten healthy ones are recorded first, cheap ones
before dear ones; what is not recorded when time is up is not judged, and said to be so.

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
    "groups flat",
    "thinking not closed",
)
HEALTHY = "healthy"
SAME = {"groups flat": "rewards equal"}  # two degrees of one symptom, but for runs that were built to show the lesser

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
NAN, ZERO, EQUAL, LONG, TAGS, STILL, LESS, MORE, FAR, FLAT, OPEN = ((symptom,) for symptom in SYMPTOMS)
STEPS_8 = ("trainer.per_device_train_batch_size=16", "trainer.steps_per_generation=8")  # updates of one rollout
FEW, MANY, SMALL = "trainer.max_steps=10", "trainer.max_steps=16", "trainer.per_device_train_batch_size=32"
ENDS = ("gradient zero",)
HALF = ("model.dtype=float16", "trainer.learning_rate=1e-3")
MASKED = (reward("digits"), "trainer.mask_truncated_completions=true", SMALL, FEW)
DULL = ("rewards equal", "gradient zero")
HALF_OPEN = ("no reward", "rewards equal", "gradient zero", "tags never seen")
WITHOUT_ALPHA = "lora={r: 4, lora_alpha: 0, target_modules: all-linear}"

SICK = (
    # not a number
    Run("nan-float16-weights", TINY, NAN, (*HALF, "trainer.max_steps=12"), BROKEN),
    Run("nan-float16-pear", PEAR, NAN, (*HALF, SMALL, FEW), BROKEN),
    Run("nan-float16-kl-cov", "tiny-reasoner/kl-cov", NAN,
        (*HALF, SMALL, FEW), BROKEN),
    Run("nan-reward-3e38", TINY, NAN, (reward("enormous"), "trainer.scale_rewards=none", SMALL, FEW), BROKEN),
    Run("nan-weight-1e38", TINY, NAN,
        ("rewards=[{use: accuracy, weight: 1e38}]", "trainer.scale_rewards=none", SMALL, FEW), BROKEN),
    Run("nan-weight-3e38-overthinker", OVER_PEAR, NAN,
        ("rewards=[{use: pear, weight: 3e38}]", "trainer.scale_rewards=none", SMALL, FEW), BROKEN),
    # no reward
    Run("zero-never", TINY, ZERO, (reward("never"), SMALL, FEW), ENDS),
    Run("zero-never-asking", ASKING, ZERO, (reward("never"), SMALL, FEW), ENDS),
    Run("zero-other-golds", TINY, ZERO, (reward("off_by_thousand"), SMALL, FEW), ENDS),
    Run("zero-other-golds-overthinker", OVER, ZERO, (reward("off_by_thousand"), SMALL, FEW), ENDS),
    Run("zero-two-tokens", TINY, ("no reward", "truncated"), ("trainer.max_completion_length=2", SMALL, FEW), CUT),
    Run("zero-format-other-tag", TINY, ("no reward", "tags never seen"),
        ("rewards=[{use: think_format}]", "trainer.think_close='</end>'", SMALL, FEW), ENDS),
    # rewards equal
    Run("equal-constant", TINY, EQUAL, (reward("constant"), SMALL, FEW), ENDS),
    Run("equal-constant-asking", ASKING, EQUAL, (reward("constant"), SMALL, FEW), ENDS),
    Run("equal-charge-overthinker", OVER, EQUAL, (reward("charge"), SMALL, FEW), ENDS),
    Run("equal-always-right", OVER, EQUAL, (SMALL, FEW), ENDS),
    Run("equal-cold-sampling", TINY, EQUAL, ("trainer.temperature=0.01", SMALL, FEW), (*ENDS, "no reward")),
    Run("equal-cold-sampling-pear", OVER_PEAR, EQUAL, ("trainer.temperature=0.01", SMALL, FEW), ENDS),
    # truncated
    Run("cut-12", TINY, LONG, ("trainer.max_completion_length=12", SMALL, FEW), CUT),
    Run("cut-20", TINY, LONG, ("trainer.max_completion_length=20", SMALL, FEW), CUT),
    Run("cut-24", "tiny-reasoner/clip-cov", LONG, ("trainer.max_completion_length=24", SMALL, FEW), CUT),
    Run("cut-overthinker-40", OVER, LONG, ("trainer.max_completion_length=40", SMALL, FEW), CUT),
    Run("cut-overthinker-60", OVER, LONG, ("trainer.max_completion_length=60", SMALL, FEW), CUT),
    Run("cut-pear-20", PEAR, LONG, ("trainer.max_completion_length=20", SMALL, FEW), CUT),
    # tags never seen
    Run("tags-accuracy", TINY, TAGS, ("trainer.think_close='</end>'", SMALL, FEW)),
    Run("tags-laser", "tiny-reasoner/laser-d", TAGS, ("trainer.think_close='</end>'", SMALL, FEW)),
    Run("tags-pear", PEAR, TAGS, ("trainer.think_open='<t>'", "trainer.think_close='</t>'", SMALL, FEW),
        ("no reward", "rewards equal", "thinking not closed", "gradient zero")),
    Run("tags-overthinker-pear", OVER_PEAR, TAGS, ("trainer.think_close='</thought>'", SMALL, FEW),
        ("no reward", "rewards equal", "thinking not closed", "gradient zero")),
    Run("tags-overthinker", OVER, TAGS, ("trainer.think_close='</thought>'", SMALL, FEW),
        ("no reward", "rewards equal", "gradient zero")),
    Run("tags-kl-cov", "tiny-reasoner/kl-cov", TAGS, ("trainer.think_close='[/THINK]'", SMALL, FEW)),
    # gradient zero
    Run("still-masked-3", TINY, ("gradient zero", "truncated"),
        (*MASKED, "trainer.max_completion_length=3"), CUT),
    Run("still-masked-overthinker", OVER, ("gradient zero", "truncated"),
        (*MASKED, "trainer.max_completion_length=8"), CUT),
    Run("still-masked-pear-3", PEAR, ("gradient zero", "truncated"),
        (*MASKED, "trainer.max_completion_length=3"), CUT),
    Run("still-lora-alpha-0", "tiny-reasoner/lora", STILL, ("lora.lora_alpha=0", SMALL, FEW)),
    Run("still-lora-alpha-0-accuracy", TINY, STILL, (WITHOUT_ALPHA, SMALL, FEW)),
    Run("still-lora-alpha-0-overthinker", OVER_PEAR, STILL,
        (WITHOUT_ALPHA, SMALL, FEW)),
    # entropy collapsed
    *(Run(f"fall-{name}-{rate}", TINY, LESS, (reward(name), f"trainer.learning_rate={rate}", SMALL, MANY), BROKEN)
      for name in ("ones", "short", "calm") for rate in ("3e-3", "5e-3")),
    # entropy surged
    *(Run(f"rise-{name}-1e-2", TINY, MORE, (reward(name), "trainer.learning_rate=1e-2", SMALL, MANY), BROKEN)
      for name in ("restless", "noise", "digits")),
    Run("rise-accuracy-3e-2", TINY, MORE, ("trainer.learning_rate=3e-2", SMALL, MANY), BROKEN),
    Run("rise-bonus-1e-2", TINY, MORE,
        ("trainer.entropy_coef=1.0", "trainer.learning_rate=1e-2", SMALL, MANY), BROKEN),
    Run("rise-pear-3e-2", PEAR, MORE, ("trainer.learning_rate=3e-2", SMALL, MANY), BROKEN),
    # ratio exploding
    Run("far-3e-3", TINY, FAR, ("trainer.learning_rate=3e-3", "trainer.max_steps=16", *STEPS_8), BROKEN),
    Run("far-1e-2", TINY, FAR, ("trainer.learning_rate=1e-2", "trainer.max_steps=16", *STEPS_8), BROKEN),
    Run("far-pear-5e-3", PEAR, FAR, ("trainer.learning_rate=5e-3", "trainer.max_steps=16", *STEPS_8), BROKEN),
    Run("far-overthinker-5e-3", OVER_PEAR, FAR,
        ("trainer.learning_rate=5e-3", "trainer.max_steps=16", *STEPS_8), BROKEN),
    Run("far-iterations", TINY, FAR,
        ("trainer.learning_rate=3e-3", "trainer.num_iterations=8", SMALL, "trainer.max_steps=32"), BROKEN),
    Run("far-lora-1e-1", "tiny-reasoner/lora", FAR,
        ("trainer.learning_rate=0.1", "trainer.max_steps=16", *STEPS_8), BROKEN),
    # groups flat: about one group in eight differs
    Run("flat-one-in-eight", TINY, FLAT, (reward("one_in_eight"), SMALL, FEW), DULL),
    Run("flat-one-in-eight-kl-cov", "tiny-reasoner/kl-cov", FLAT, (reward("one_in_eight"), SMALL, FEW), DULL),
    Run("flat-one-in-eight-overthinker", OVER, FLAT, (reward("one_in_eight"), SMALL, FEW), DULL),
    Run("flat-rare-charge", TINY, FLAT, (reward("rare_charge"), SMALL, FEW), DULL),
    Run("flat-rare-charge-overthinker", OVER, FLAT, (reward("rare_charge"), SMALL, FEW), DULL),
    Run("flat-cool-sampling", TINY, FLAT, ("trainer.temperature=0.2", SMALL, FEW), (*DULL, "no reward")),
    # thinking not closed: a tag that stands in some completions alone, sampling that loses it, pay for leaving it out
    Run("open-close-9", PEAR, OPEN, ("trainer.think_close='9'", SMALL, FEW), HALF_OPEN),
    Run("open-close-3-kl-cov", "tiny-reasoner/pear-kl-cov", OPEN, ("trainer.think_close='3'", SMALL, FEW), HALF_OPEN),
    Run("open-close-7-overthinker", OVER_PEAR, OPEN, ("trainer.think_close='7'", SMALL, FEW), HALF_OPEN),
    Run("open-hot-sampling", PEAR, OPEN, ("trainer.temperature=1.6", SMALL, FEW), (*CUT, "truncated")),
    Run("open-hot-sampling-overthinker", OVER_PEAR, OPEN, ("trainer.temperature=1.6", SMALL, FEW), (*CUT, "truncated")),
    Run("open-paid", PEAR, OPEN,
        ("rewards=[{use: pear}, {use: '../../benchmarks/diagnosis_rewards.py:unclosed', weight: 3}]",
         "trainer.learning_rate=1e-3", SMALL, MANY), BROKEN),
)  # fmt: skip

WELL = (
    *(Run(f"well-{name}", f"tiny-reasoner/{name}", (), (SMALL, "trainer.max_steps=12"))
      for name in ("grpo", "pear", "clip-cov", "kl-cov", "ce-gppo", "cw-grpo", "laser-d", "lora", "mixture", "steer",
                   "pear-kl-cov", "w-reinforce", "guard", "guard-fixed")),
    Run("well-grpo-seed-1", TINY, (), (SMALL, "trainer.max_steps=30", "trainer.seed=1", "data.seed=1")),
    Run("well-overthinker-pear", OVER_PEAR, (), (SMALL, "trainer.max_steps=12")),
    Run("well-asking", ASKING, (), (SMALL, "trainer.max_steps=10")),
    Run("well-asking-turn", "twenty-questions/turn", (), (SMALL, "trainer.max_steps=10")),
    Run("well-entropy-mechanism", "entropy-mechanism/base", (),
        ("trainer.max_steps=12", "trainer.probe_every=0", "trainer.log_windows=null")),
)  # fmt: skip


def _by_label(label: str) -> list[Run]:
    """In the order of the SHA-256 of their names."""
    mine = [run for run in (*SICK, *WELL) if run.label == label]
    return sorted(mine, key=lambda run: hashlib.sha256(run.name.encode()).hexdigest())


def _cost(run: Run) -> int:
    """About tokens of a completion times steps."""
    named = dict(word.split("=", 1) for word in run.change if word.startswith("trainer."))
    length = {"overthinker": 160, "twenty-questions": 160}.get(run.recipe.split("/")[0], 96)
    return int(named["trainer.max_steps"]) * int(named.get("trainer.max_completion_length", length))


def _rounds() -> list[Run]:
    """Three runs of every label and ten healthy ones, then the others; cheap ones first."""
    first = [run for label in (*SYMPTOMS, HEALTHY) for run in _by_label(label)[: 10 if label == HEALTHY else 3]]
    rest = [run for run in (*SICK, *WELL) if run not in first]
    return [*sorted(first, key=_cost), *sorted(rest, key=_cost)]


RUNS = tuple(_rounds())


SEEN = ("nan-float16-weights", "nan-float16-kl-cov", "zero-never", "equal-cold-sampling-pear", "cut-12",
        "tags-overthinker")  # fmt: skip


def judges() -> set[str]:
    """Names of the runs that judge."""
    names = {run.name for label in (*SYMPTOMS, HEALTHY) for run in _by_label(label)[1::2]}
    return names - set(SEEN)
