"""STAT: train on the skills that are missing, each in proportion to the difficult questions that miss it.

    difficult(r_1..r_t)   r_t <= tau1, or mean(r) <= tau1, or some r_i <= tau2 with i < t
    profile               difficult question -> skills it misses
    draws                 for each pair (question, missing skill) `per_skill` training questions with that skill

As a rule for prompts, a prompt i with the skills S_i (a column of lists) is drawn as often as those draws pick it:

    w_i = sum over s in S_i of (difficult prompts with s) / (prompts with s)

Source:  STAT, arXiv 2510.10023, section 2, Eq. 1, appendix B.1 and B.2: tau1 0.85, tau2 0.7, 5 draws (Algorithm 1: 3)
Differs: with rewards of steps everything is the paper's. In RL the verifier takes the reward model's place (a prompt
         that was tried is difficult when its smoothed pass rate is at most `difficult_at`) and the teacher's: all
         skills of such a prompt count as missing. A skill with fewer questions than draws repeats them, at most
         `most_repeats` times each. Of the synthesiser only its rule of agreement is here. `give_up` is ours: a prompt
         that never passes, such as one with a wrong gold, would have its skills asked for without end
Needs:   a column that lists the skills of each prompt
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from entrl.curriculum.rules import Floats, Prompts, Rule

Profile = dict[str, list[str]]  # question -> missing skills


def is_difficult(step_rewards: Sequence[float], *, tau1: float = 0.85, tau2: float = 0.7) -> bool:
    """Whether an answer whose T steps have these rewards shows its question to be difficult (the paper's R = 0)."""
    if not step_rewards:
        raise ValueError("an answer has at least one step; leave questions without an answer out")
    mean = sum(step_rewards) / len(step_rewards)
    low = mean <= tau1 or math.isclose(mean, tau1, rel_tol=1e-12)  # of 0.8 and 0.9 it is 0.8500000000000001
    return step_rewards[-1] <= tau1 or low or any(r <= tau2 for r in step_rewards[:-1])


class Missing(NamedTuple):
    profile: Profile
    unknown: int  # skills the teacher named that are not on the list, dropped


def missing_skills(
    answers: Mapping[str, str], *, teacher: Callable[[str, str], Iterable[str]], skills: Iterable[str]
) -> Missing:
    """The profile of difficult questions; question -> the student's answer in.

    teacher: question and answer -> names of skills, asked once for each question; what is not in `skills` is dropped.
    """
    known = set(skills)
    named = {question: list(dict.fromkeys(teacher(question, answer))) for question, answer in answers.items()}
    profile = {question: [skill for skill in found if skill in known] for question, found in named.items()}
    return Missing(profile, sum(len(named[question]) - len(profile[question]) for question in named))


def skill_counts(profile: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Skill -> difficult questions that miss it; one with an empty list adds nothing."""
    return dict(Counter(skill for missing in profile.values() for skill in missing))


def draw_questions(
    profile: Mapping[str, Sequence[str]],
    questions: Mapping[str, Sequence[str]],
    *,
    per_skill: int = 5,
    most_repeats: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Training questions, `per_skill` for each pair of difficult question and missing skill, repeats meant as weights.

    questions: skill -> its training questions; a skill without any gives none. most_repeats: of one question.
    """
    rng = np.random.default_rng(seed)
    drawn: list[str] = []
    for skill in (skill for missing in profile.values() for skill in missing):
        linked = list(questions.get(skill, ()))
        if linked:
            picks = rng.choice(len(linked), size=per_skill, replace=len(linked) < per_skill)
            drawn += [linked[i] for i in picks]
    if most_repeats is None:
        return drawn
    seen: Counter[str] = Counter()
    return [q for q in drawn if not seen.update([q]) and seen[q] <= most_repeats]


def agreeing(answers: Sequence[str], *, least: int = 2) -> list[int]:
    """Which solutions of a new question to keep: those with the most common answer, none where fewer than `least`."""
    if not answers:
        return []
    answer, count = Counter(answers).most_common(1)[0]
    return [i for i, a in enumerate(answers) if a == answer] if count >= least else []


@dataclass(kw_only=True)
class Skills(Rule):
    name: ClassVar[str] = "skills"
    by_prompt: ClassVar[bool] = False

    column: str = "skills"  # of the data set: a list of names for each prompt
    difficult_at: float = 0.5  # smoothed pass rate up to which a prompt that was tried is difficult
    give_up: int = 128  # trials in a row without a pass, after which a prompt's skills are not missed by it; 0: never

    def __post_init__(self) -> None:
        if not 0 < self.difficult_at < 1:
            raise ValueError(f"skills: difficult_at is a pass rate inside (0, 1), got {self.difficult_at}")
        if self.give_up < 0:
            raise ValueError(f"skills: give_up counts trials, 0 for never; got {self.give_up}")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def weights(self, prompts: Prompts) -> Floats | None:
        """None while no prompt is difficult."""
        skills_P = prompts.columns[self.column]
        if wrong := next((repr(skills) for skills in skills_P if not isinstance(skills, (list, tuple))), None):
            raise ValueError(
                f"skills: the column {self.column!r} holds {wrong}; it lists each prompt's skills, [] for none"
            )
        difficult_P = (prompts.trials_P > 0) & (prompts.pass_rate_P <= self.difficult_at)
        if self.give_up:
            difficult_P &= prompts.failed_P < self.give_up
        missed = Counter(skill for i in np.flatnonzero(difficult_P).tolist() for skill in set(skills_P[i]))
        if not missed:
            return None
        linked = Counter(skill for skills in skills_P for skill in set(skills))
        return np.array([sum(missed[s] / linked[s] for s in sorted(set(skills))) for skills in skills_P], dtype=float)


rule = Skills()
