"""Making a rollout: generation, scores, rewards, advantages, and the entries that go with each row to the loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entrl.engines.top_h import TopHLogitsProcessor, generating_through
from entrl.maths.branching import tree_advantages
from entrl.trainers.grpo.branching import BranchedRollout, Branching
from entrl.trainers.grpo.continuations import sampler_of
from entrl.trainers.grpo.curriculum import TrainedCourse
from entrl.trainers.grpo.facts import Facts
from entrl.trainers.grpo.group_filter import GroupFiltering
from entrl.trainers.grpo.reward_signals import RewardSignals, weighted_rewards
from entrl.trainers.grpo.rollout_report import TASK, RolloutReport
from entrl.trainers.grpo.scoring import Scoring
from entrl.trainers.grpo.splice import Batch
from entrl.trainers.grpo.turn_rounds import TurnRounds, generates_together
from entrl.trainers.grpo.turns import TurnCredit, turn_options
from entrl.trainers.shared import row_columns
from entrl.trainers.shared.observation import Observation
from entrl.trainers.shared.rollout import Rollout

Draw = Callable[[list[dict[str, Any]]], dict[str, Any]]  # TRL's own, from rows of the data set to its row tensors


class Rollouts:
    """From the rows of the data set to the rows of the loss, around TRL's own methods.

    windows: whether windows are logged, which want to know the rows' old scores
    """

    def __init__(
        self,
        facts: Facts,
        *,
        scoring: Scoring,
        signals: RewardSignals,
        report: RolloutReport,
        observation: Observation,
        branching: Branching | None,
        filtering: GroupFiltering | None,
        windows: bool,
        course: TrainedCourse | None = None,
    ) -> None:
        self.facts, self.trl, self.controls = facts, facts.trl, facts.controls
        self.log, self.ranks = facts.log, facts.ranks
        self.scoring, self.signals, self.report, self.observation = scoring, signals, report, observation
        self.branching, self.filtering, self.windows = branching, filtering, windows
        self.course = course
        self.turn_credit = turn_options(facts.trl.args)
        together, alike = generates_together(facts.trl)
        self.rounds = TurnRounds(facts.ranks, on=together, fill=alike)
        self.current: Rollout | None = None  # in the making
        self.branched: BranchedRollout | None = None  # of the generation in hand
        self.rewards_NF: Tensor | None = None  # of all ranks' rows, by reward function; NaN where one did not apply

    def make(self, inputs: list[dict[str, Any]], draw: Draw) -> dict[str, Any]:
        """TRL's row tensors for these rows, with what ours adds to them."""
        batch, training = self._draw(inputs, draw), self.trl.model.training
        if training and self.filtering is not None:
            batch = self._filtered(self.filtering, batch, draw)
        output, rollout = batch.output, batch.rollout
        if self._own_scoring_needed and not rollout.scored:
            self.scoring.score(rollout)
        if not training:
            return output
        assert self.rewards_NF is not None
        rewards_N = weighted_rewards(self.rewards_NF, self.trl.reward_weights)
        self.report.generated(batch, rewards_N, self.rewards_NF)
        advantages_N, replaced = self._replaced_advantages(output, rollout, rewards_N)
        if self.turn_credit is not None:
            advantages_N, replaced = self._with_turn_credit(self.turn_credit, output, rollout, advantages_N), True
        if self.controls.on_loss or self.observation.monitor is not None or self.windows:
            self._attach(output, rollout, advantages_N, replaced=replaced)
        self.report.finished(output, rollout, self.rewards_NF)
        return output

    # Within TRL's generation

    def single_turn(self, given: tuple[Any, ...], options: dict[str, Any], generate: Callable[..., Any]) -> Any:
        """generate: TRL's `_generate_single_turn`, called with `given` and `options`, or for branches."""
        if self.rounds.playing:
            return self.rounds.turn(lambda *a, **o: self._truncated(generate, *a, **o), *given, **options)
        if self.branching is None or not self.trl.model.training:
            return self._truncated(generate, *given, **options)
        prompt_ids, images = given[:2]
        if images is not None:
            raise ValueError("branch_roots continues token prefixes, which prompts with images are not; remove it")
        self.branched = self.branching.rollout(
            prompt_ids,
            self.trl.num_generations,
            generate=sampler_of(self.trl, lambda *a: self._truncated(generate, *a)),
            entropies=self.scoring.of_drafts,
            max_new_tokens=self.trl.max_completion_length,
            end_ids=self.trl.eos_token_ids,
            ranks=self.ranks,
            device=self.trl.accelerator.device,
        )
        return self.branched.completion_ids, self.branched.logprobs

    def turns(self, given: tuple[Any, ...], loop: Callable[..., Any], generate: Callable[..., Any]) -> Any:
        """loop: TRL's `_tool_call_loop`, called with `given`; generate: its `_generate_single_turn`."""
        return self.rounds.play(lambda: loop(*given), given[1], lambda *a: self._truncated(generate, *a))

    def _truncated(self, generate: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Under Top-H where transformers writes; in an engine the plugin truncates."""
        trl, alpha = self.trl, self.trl.args.top_h
        if alpha is None or trl.use_vllm:
            return generate(*given, **options)
        processor = TopHLogitsProcessor(alpha, temperature=float(trl.temperature), rule=trl.args.top_h_rule)
        with generating_through(trl.accelerator.unwrap_model(trl.model), [processor]):
            return generate(*given, **options)

    def keep(self, generated: tuple[Any, ...]) -> None:
        """What TRL's `_generate` returned: prompt ids, ids, tool mask, completions, log-probs, ..."""
        prompt_ids, completion_ids, tool_mask = generated[:3]
        self.current = rollout = Rollout(prompt_ids=prompt_ids, completion_ids=completion_ids, tool_mask=tool_mask)
        branched, self.branched = self.branched, None
        rows = getattr(self.trl.vllm_generation, "rows", None) if self.trl.use_vllm else None
        if branched is not None:
            rows = branched.records
            rollout.columns |= {name: column.tolist() for name, column in branched.columns.items()}
            self.log.add(branched.metrics)
        if rows is not None:
            rollout.sampler_log_probs = generated[4]
            rollout.take_sampled(rows)
        if self.trl.model.training:
            written = sum(len(i) for i in completion_ids) if tool_mask is None else sum(sum(m) for m in tool_mask)
            written = written if branched is None else branched.generated_tokens  # a prefix is written once
            self.observation.tally.add({"completion_tokens": torch.tensor(float(written))})

    def rewarded(self, rewards_NF: Tensor, inputs: list[dict[str, Any]]) -> None:
        """What TRL's `_calculate_rewards` returned for these rows, and what rewards publish of each."""
        self.rewards_NF = rewards_NF
        assert self.current is not None
        if self.report.tasks and self.trl.model.training:
            self.current.columns[TASK] = [self.report.tasks.index(row[TASK]) for row in inputs]
        if self.course is not None and self.trl.model.training:
            self.log.add(self.course.record(inputs, rewards_NF))
        for reward in self.trl.reward_funcs:
            self.current.columns.update(getattr(reward, "row_columns", {}))

    # The parts of `make`

    @property
    def _own_scoring_needed(self) -> bool:
        """True where somebody needs scores of the rollout and TRL will not compute them."""
        selecting = self.controls.selecting and self.trl.model.training
        rewarded = self.signals.scored and not self.signals.from_sampler
        return (rewarded or selecting) and not self.facts.schedule.trl_scores_rollouts

    def _draw(self, inputs: list[dict[str, Any]], draw: Draw) -> Batch:
        """One generation with its rewards and TRL's advantages."""
        self.current = None
        output = draw(inputs)
        rollout, self.current = self.current, None
        assert rollout is not None
        assert self.rewards_NF is not None
        return Batch(output=output, rollout=rollout, rewards_NF=self.rewards_NF[self.facts.mine(len(rollout))])

    def _filtered(self, filtering: GroupFiltering, first: Batch, draw: Draw) -> Batch:
        """A rollout of groups that pass, with further generations where it takes them."""
        batch = filtering.fill(first, lambda rows: self._draw(rows, draw))
        self.rewards_NF = self.ranks.gather(batch.rewards_NF)  # of what is trained on, over all ranks
        self.log.add(filtering.metrics)
        for text in filtering.notes:
            self.log.warn_once(text)
        return batch

    def _replaced_advantages(self, output: dict[str, Any], rollout: Rollout, rewards_N: Tensor) -> tuple[Tensor, bool]:
        """Let branching and controllers replace the advantages; returns those of all ranks, and whether any did."""
        advantages_N, replaced = self.ranks.gather(output["advantages"]), False
        groups_N = torch.arange(rewards_N.numel(), device=rewards_N.device) // self.trl.num_generations
        if "branch_root" in rollout.columns:
            tree = (rollout.column(name, 0).to(rewards_N.device) for name in ("branch_root", "branch_weight"))
            roots_N, weights_N = (self.ranks.gather(column) for column in tree)
            advantages_N = tree_advantages(rewards_N, groups_N, roots_N, weights_N, scale=self.trl.scale_rewards)
            advantages_N, replaced = advantages_N.float(), True
        for controller in self.controls.all:
            changed_N = controller.on_rollout(rewards_N, groups_N, advantages_N)
            advantages_N, replaced = (advantages_N, replaced) if changed_N is None else (changed_N, True)
        if replaced:
            output["advantages"] = advantages_N[self.facts.mine(len(rollout))]
        return advantages_N, replaced

    def _with_turn_credit(
        self, credit: TurnCredit, output: dict[str, Any], rollout: Rollout, advantages_N: Tensor
    ) -> Tensor:
        """Make this rank's advantages (B, T); returns, of all ranks' rows, one that is 0 only where all turns' are."""
        output["advantages"], credit_NS, metrics = credit.advantages(
            rollout,
            output["advantages"],
            width=output["completion_ids"].size(1),
            group_size=self.trl.num_generations,
            ranks=self.ranks,
        )
        self.log.add(metrics)
        return advantages_N.abs() + credit_NS.abs().amax(1)

    def _attach(self, output: dict[str, Any], rollout: Rollout, advantages_N: Tensor, *, replaced: bool) -> None:
        """Entries that must follow each row through TRL's shuffle and split; `advantages_N` are those of all ranks."""
        width, size = output["completion_ids"].size(1), self.trl.num_generations
        tags = self.facts.tags if self.observation.monitor is not None else None
        acting = bool(self.controls.on_loss)
        row_columns.attach(
            output,
            first=self.facts.mine(len(rollout)).start,
            informative_N=row_columns.informative(advantages_N, group_size=size, replaced=replaced),
            phase_BT=None if tags is None else rollout.phases(tags, width),
            columns={name: rollout.column(name, width) for name in self.controls.columns},
            entropies_BT=_cut(rollout.entropies_BT, width) if acting or self.windows else None,
            log_probs_BT=_cut(rollout.log_probs_BT, width) if acting else None,
        )


def _cut(scores_BT: Tensor | None, width: int) -> Tensor | None:
    return None if scores_BT is None else scores_BT[:, :width]
