"""A curriculum inside TRL's GRPO: its sampler in place of `RepeatSampler`'s order, and its verdicts after each rollout.

TRL asks `_get_train_sampler` for rows of the data set: B prompts, each `num_generations` times, all of that repeated
for every micro-step that uses the rollout. A curriculum changes which B prompts these are and nothing else, so groups,
ranks, repeats and the length of an epoch are TRL's.

Needs:   TRL 1.16's `RepeatSampler`: its attributes mini_repeat_count, batch_size, repeat_count, and the order above
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from entrl.curriculum.course import ID, Course
from entrl.trainers.grpo.facts import Facts
from entrl.trainers.shared.waiting import alone_on_main


class CurriculumSampler(Sampler[int]):
    """TRL's sampler with the prompts of each rollout chosen by a course. number: of the pass over the data, from 0."""

    def __init__(self, plain: Any, course: Course) -> None:
        self.plain, self.course, self.number = plain, course, 0

    def __len__(self) -> int:
        return len(self.plain)

    def __iter__(self) -> Iterator[int]:
        plain, rows = self.plain, iter(self.plain)
        rollout_rows = plain.batch_size * plain.mini_repeat_count
        self.course.start_pass(self.number)
        for rollout in itertools.count():
            block = list(itertools.islice(rows, rollout_rows * plain.repeat_count))
            if not block:
                return
            chosen = self.course.prompts_of(rollout, block[: rollout_rows : plain.mini_repeat_count])
            for _ in range(plain.repeat_count):
                for row in chosen:
                    yield from itertools.repeat(row, plain.mini_repeat_count)


class TrainedCourse:
    """A course at work in one trainer."""

    def __init__(self, course: Course, facts: Facts) -> None:
        self.course, self.facts = course, facts
        trl = facts.trl
        self.column = trl.reward_func_names.index(course.options.reward)
        course.bind(trl.train_dataset, seed=trl.args.seed)
        self.sampler: CurriculumSampler | None = None

    def sampler_of(self, plain: Any) -> CurriculumSampler:
        """At the start of training, on every rank: one reads what other runs found, for all."""
        file = self.course.file
        self.course.begin([] if file is None else alone_on_main(file.others, "curriculum"))
        self.sampler = CurriculumSampler(plain, self.course)
        return self.sampler

    def start_pass(self, number: int) -> None:
        if self.sampler is not None:
            self.sampler.number = number

    def record(self, inputs: list[dict[str, Any]], rewards_NF: Tensor) -> dict[str, float]:
        """inputs: this rank's rows of a rollout; rewards_NF: of all ranks' rows. Returns metrics."""
        trl = self.facts.trl
        codes = torch.tensor([self.course.code(row[ID]) for row in inputs], device=rewards_NF.device)
        self.course.record(
            self.facts.ranks.gather(codes).tolist(),
            rewards_NF[:, self.column].tolist(),
            group_size=trl.num_generations,
            write=trl.accelerator.is_main_process,
        )
        return self.course.metrics()
