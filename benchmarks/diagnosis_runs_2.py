"""The second round: fresh runs that judge, written down with their labels before one of them was run.

In the first round (`diagnosis_runs.py`) two runs were told `no reward` where their labels did not allow for it and
every reward was 0 all the same. Here `may` says beforehand what a fault rightly brings with it, by these rules:

- a closing tag that never comes leaves no answer: a reward that reads the answer pays nothing (`UNREAD`), one that
  reads the whole text goes on paying, and then nothing but the tag may be named
- completions cut before their answer earn nothing, hold no closing tag, and are alike (`CUT`)
- rewards that are all 0, or equal, give no gradient; equal ones may all be 0 where the model is never right
- a policy that its updates broke may show whatever it likes (`BROKEN`)
- a healthy run may show nothing

Names, seeds and faults are new; healthy runs have other seeds, and some another value within what is published. All
runs of the first round set thresholds from now on; none was changed between the two rounds. All of this one judge.
They are recorded in the order of the list: one of each label and four healthy ones, three times over.
"""

from diagnosis_runs import (
    ASKING,
    BROKEN,
    DULL,
    ENDS,
    EQUAL,
    FAR,
    FEW,
    FLAT,
    LESS,
    LONG,
    MANY,
    MORE,
    NAN,
    OPEN,
    OVER,
    OVER_PEAR,
    PEAR,
    SMALL,
    STEPS_8,
    TAGS,
    TINY,
    ZERO,
    Run,
    reward,
)
from diagnosis_runs import CUT as FIRST_CUT

DIAGRAM = "diagram/outcome"
CUT = (*FIRST_CUT, "groups flat")
UNREAD = ("no reward", "rewards equal", "groups flat", "gradient zero", "thinking not closed")
HALF_OPEN = ("no reward", "rewards equal", "groups flat", "gradient zero", "tags never seen")
SHORT = (SMALL, FEW)


def seed(number: int) -> tuple[str, str]:
    return f"trainer.seed={number}", f"data.seed={number}"


def well(name: str, recipe: str, number: int, *change: str) -> Run:
    return Run(f"2-well-{name}", recipe, (), (*seed(number), SMALL, "trainer.max_steps=12", *change))


FIRST = (
    Run("2-nan-float16-clip-cov", "tiny-reasoner/clip-cov", NAN,
        ("model.dtype=float16", "trainer.learning_rate=2e-3", *seed(31), *SHORT), BROKEN),
    Run("2-zero-boxed-kl-cov", "tiny-reasoner/kl-cov", ZERO, (reward("boxed"), *seed(32), *SHORT), DULL),
    Run("2-equal-of-the-prompt", "tiny-reasoner/clip-cov", EQUAL,
        (reward("of_the_prompt"), *seed(33), *SHORT), ENDS),
    Run("2-cut-16-steer", "tiny-reasoner/steer", LONG,
        ("trainer.max_completion_length=16", *seed(34), *SHORT), CUT),
    Run("2-tags-steer", "tiny-reasoner/steer", TAGS, ("trainer.think_close='</done>'", *seed(35), *SHORT), UNREAD),
    Run("2-still-masked-clip-cov", "tiny-reasoner/clip-cov", ("gradient zero", "truncated"),
        (reward("digits"), "trainer.mask_truncated_completions=true", "trainer.max_completion_length=5", *seed(36),
         *SHORT), CUT),
    Run("2-fall-uniform", TINY, LESS,
        (reward("uniform"), "trainer.learning_rate=3e-3", *seed(37), SMALL, MANY), BROKEN),
    Run("2-rise-restless-5e-3", TINY, MORE,
        (reward("restless"), "trainer.learning_rate=5e-3", *seed(38), SMALL, MANY), BROKEN),
    Run("2-far-clip-cov-5e-3", "tiny-reasoner/clip-cov", FAR,
        ("trainer.learning_rate=5e-3", "trainer.max_steps=16", *seed(39), *STEPS_8), BROKEN),
    Run("2-flat-rarely-right", TINY, FLAT, (reward("rarely_right"), *seed(40), *SHORT), (*DULL, "no reward")),
    Run("2-open-12-pear", PEAR, OPEN, ("trainer.think_close='12'", *seed(41), *SHORT), HALF_OPEN),
    well("grpo-half-rate", TINY, 42, "trainer.learning_rate=5e-5"),
    well("pear", PEAR, 43),
    well("overthinker-pear", OVER_PEAR, 44),
    well("kl-cov-cooler", "tiny-reasoner/kl-cov", 45, "trainer.temperature=0.9"),
)  # fmt: skip

SECOND = (
    Run("2-nan-rarely-enormous-kl-cov", "tiny-reasoner/kl-cov", NAN,
        (reward("rarely_enormous"), "trainer.scale_rewards=none", *seed(51), *SHORT), BROKEN),
    Run("2-zero-four-digits", TINY, ZERO,
        ("data.args={min_digits: 4, max_digits: 4}", *seed(52), *SHORT), (*DULL, "truncated", "tags never seen")),
    Run("2-equal-always-right-cooler", OVER, EQUAL, ("trainer.temperature=0.8", *seed(53), *SHORT), ENDS),
    Run("2-cut-30-overthinker-pear", OVER_PEAR, LONG,
        ("trainer.max_completion_length=30", *seed(54), *SHORT), CUT),
    Run("2-tags-digits-clip-cov", "tiny-reasoner/clip-cov", TAGS,
        (reward("digits"), "trainer.think_close='</scratch>'", *seed(55), *SHORT)),
    Run("2-still-no-tokens", TINY, ("gradient zero",), ("trainer.top_entropy_quantile=0.0", *seed(56), *SHORT)),
    Run("2-fall-fined", TINY, LESS,
        ("trainer.entropy_coef=-0.5", "trainer.learning_rate=3e-3", *seed(57), SMALL, MANY), BROKEN),
    Run("2-rise-bonus-overthinker", OVER_PEAR, MORE,
        ("trainer.entropy_coef=2.0", "trainer.learning_rate=5e-3", *seed(58), SMALL, MANY), BROKEN),
    Run("2-far-laser-d-8e-3", "tiny-reasoner/laser-d", FAR,
        ("trainer.learning_rate=8e-3", "trainer.max_steps=16", *seed(59), *STEPS_8), BROKEN),
    Run("2-flat-one-in-ten-steer", "tiny-reasoner/steer", FLAT, (reward("one_in_ten"), *seed(60), *SHORT), DULL),
    Run("2-open-50-overthinker-pear", OVER_PEAR, OPEN, ("trainer.think_close='50'", *seed(61), *SHORT), HALF_OPEN),
    well("clip-cov", "tiny-reasoner/clip-cov", 62),
    well("laser-d", "tiny-reasoner/laser-d", 63),
    well("asking-turn", "twenty-questions/turn", 64),
    well("grpo-sixteen", TINY, 65, "trainer.num_generations=16"),
)  # fmt: skip

THIRD = (
    Run("2-nan-weight-lora", "tiny-reasoner/lora", NAN,
        ("rewards=[{use: accuracy, weight: 3e38}]", "trainer.scale_rewards=none", *seed(71), *SHORT), BROKEN),
    Run("2-zero-never-diagram", DIAGRAM, ZERO, (reward("never"), "trainer.seed=72", *SHORT), DULL),
    Run("2-equal-answered-steer", "tiny-reasoner/steer", EQUAL, (reward("answered"), *seed(73), *SHORT), ENDS),
    Run("2-cut-40-asking", ASKING, LONG, ("trainer.max_completion_length=40", "trainer.seed=74", *SHORT), CUT),
    Run("2-tags-overthinker-pear", OVER_PEAR, TAGS,
        ("trainer.think_open='<thinking>'", "trainer.think_close='</thinking>'", *seed(75), *SHORT), UNREAD),
    Run("2-still-lora-alpha-0", "tiny-reasoner/lora", ("gradient zero",),
        ("lora.lora_alpha=0", reward("digits"), *seed(76), *SHORT)),
    Run("2-fall-ones-overthinker", OVER, LESS,
        (reward("ones"), "trainer.learning_rate=3e-3", *seed(77), SMALL, MANY), BROKEN),
    Run("2-rise-varied-1e-2", TINY, MORE,
        (reward("varied"), "trainer.learning_rate=1e-2", *seed(78), SMALL, MANY), BROKEN),
    Run("2-far-iterations-overthinker", OVER_PEAR, FAR,
        ("trainer.learning_rate=5e-3", "trainer.num_iterations=6", "trainer.max_steps=24", SMALL, *seed(79)), BROKEN),
    Run("2-flat-rare-bonus-overthinker", OVER, FLAT, (reward("rare_bonus"), *seed(80), *SHORT), DULL),
    Run("2-open-35-pear-kl-cov", "tiny-reasoner/pear-kl-cov", OPEN,
        ("trainer.think_close='35'", *seed(81), *SHORT), HALF_OPEN),
    well("steer", "tiny-reasoner/steer", 82),
    well("mixture", "tiny-reasoner/mixture", 83),
    well("diagram", DIAGRAM, 84),
    well("cw-grpo", "tiny-reasoner/cw-grpo", 85),
)  # fmt: skip

RUNS = (*FIRST, *SECOND, *THIRD)
