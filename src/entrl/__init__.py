"""entrl: entropy-aware rewards and entropy controllers for RL post-training, on TRL.

    from entrl import ClipCov, EntropyGRPOConfig, EntropyGRPOTrainer, load_task

Every name of `entrl.__all__` is imported when it is first asked for, so `import entrl` costs nothing. What is promised
about these names, and that nothing is about others, stands in docs/stability.md.
"""

# ruff: noqa: I001  (isort would give every such name an import statement of its own)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from entrl.version import __version__ as __version__

# Module -> its public names. Type checkers read the same list as imports, below; a test compares the two.
_PUBLIC = {
    # trainers
    "entrl.trainers.async_grpo.config": "EntropyAsyncGRPOConfig",
    "entrl.trainers.async_grpo.trainer": "EntropyAsyncGRPOTrainer",
    "entrl.trainers.config": "EntropyGRPOConfig",
    "entrl.trainers.grpo.trainer": "EntropyGRPOTrainer",
    # controllers, and what one is made of
    "entrl.controllers.ce_gppo": "CEGPPO",
    "entrl.controllers.clip_cov": "ClipCov",
    "entrl.controllers.cw_grpo": "CWGRPO",
    "entrl.controllers.dynamic_kl": "DynamicKL",
    "entrl.controllers.guard": "Guard",
    "entrl.controllers.hooks": "Controller LossSettings LossTerms LossView OneRank Ranks Rows StepFeedback Window",
    "entrl.controllers.kl_cov": "KLCov",
    "entrl.controllers.std_floor": "StdFloor",
    "entrl.controllers.steer": "Steer",
    "entrl.controllers.w_reinforce": "WReinforce",
    # phases and signals
    "entrl.maths.phases": "ThinkTags answer_text phase_masks phase_spans",
    "entrl.maths.signals": "entropy_from_logits entropy_from_topk masked_mean pad_rows",
    # tasks and environments
    "entrl.environments.diagram": "DiagramSpecification",
    "entrl.environments.events": "InquiryEnv",
    "entrl.environments.loader": "load_environment",
    "entrl.environments.model_policy": "ModelPolicy",
    "entrl.environments.play": "play",
    "entrl.environments.twenty_questions": "TwentyQuestions",
    "entrl.tasks": "load_task task_names",
    # beliefs
    "entrl.beliefs.answer_model": "AnswerModel",
    "entrl.beliefs.belief": "Belief",
    "entrl.beliefs.estimators": "ExactBayes",
    "entrl.beliefs.factored": "FactoredBelief",
    # runs
    "entrl.runs.plan": "Measured plan",
    "entrl.runs.recipe": "Recipe load_recipe",
    "entrl.runs.train": "RunResult train",
    # judging what came out
    "entrl.evaluation.answers": "evaluate",
    "entrl.evaluation.dialogues": "evaluate_dialogues",
    "entrl.evaluation.scores": "pass_at_k",
    "entrl.report": "write_report",
    "entrl.report.compare": "compare_runs",
    "entrl.report.read": "read_run",
    "entrl.stats.law": "fit_law",
    # models and data to start from
    "entrl.models.load": "load_model load_policy",
    "entrl.models.merge": "merge_adapter",
    "entrl.teach.cold_start": "cold_start load_cold_start",
    "entrl.teach.curation": "CurationSpec curate",
    "entrl.teach.offline.run": "offline",
    "entrl.teach.offline.spec": "load_offline",
    # the command line, and errors a program may want to catch
    "entrl.cli.parsers": "Command",
    "entrl.engines.faults": "RolloutError",
    "entrl.errors": "CannotWrite RunStopped UnsupportedTRL",
    "entrl.trainers.shared.rewards": "RewardError",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

if TYPE_CHECKING:  # "X as X" is how a checker knows that a name is handed on
    from entrl.beliefs.answer_model import AnswerModel as AnswerModel
    from entrl.beliefs.belief import Belief as Belief
    from entrl.beliefs.estimators import ExactBayes as ExactBayes
    from entrl.beliefs.factored import FactoredBelief as FactoredBelief
    from entrl.cli.parsers import Command as Command
    from entrl.controllers.ce_gppo import CEGPPO as CEGPPO
    from entrl.controllers.clip_cov import ClipCov as ClipCov
    from entrl.controllers.cw_grpo import CWGRPO as CWGRPO
    from entrl.controllers.dynamic_kl import DynamicKL as DynamicKL
    from entrl.controllers.guard import Guard as Guard
    from entrl.controllers.hooks import (
        Controller as Controller,
        LossSettings as LossSettings,
        LossTerms as LossTerms,
        LossView as LossView,
        OneRank as OneRank,
        Ranks as Ranks,
        Rows as Rows,
        StepFeedback as StepFeedback,
        Window as Window,
    )
    from entrl.controllers.kl_cov import KLCov as KLCov
    from entrl.controllers.std_floor import StdFloor as StdFloor
    from entrl.controllers.steer import Steer as Steer
    from entrl.controllers.w_reinforce import WReinforce as WReinforce
    from entrl.engines.faults import RolloutError as RolloutError
    from entrl.environments.diagram import DiagramSpecification as DiagramSpecification
    from entrl.environments.events import InquiryEnv as InquiryEnv
    from entrl.environments.loader import load_environment as load_environment
    from entrl.environments.model_policy import ModelPolicy as ModelPolicy
    from entrl.environments.play import play as play
    from entrl.environments.twenty_questions import TwentyQuestions as TwentyQuestions
    from entrl.errors import CannotWrite as CannotWrite, RunStopped as RunStopped, UnsupportedTRL as UnsupportedTRL
    from entrl.evaluation.answers import evaluate as evaluate
    from entrl.evaluation.dialogues import evaluate_dialogues as evaluate_dialogues
    from entrl.evaluation.scores import pass_at_k as pass_at_k
    from entrl.maths.phases import (
        ThinkTags as ThinkTags,
        answer_text as answer_text,
        phase_masks as phase_masks,
        phase_spans as phase_spans,
    )
    from entrl.maths.signals import (
        entropy_from_logits as entropy_from_logits,
        entropy_from_topk as entropy_from_topk,
        masked_mean as masked_mean,
        pad_rows as pad_rows,
    )
    from entrl.models.load import load_model as load_model, load_policy as load_policy
    from entrl.models.merge import merge_adapter as merge_adapter
    from entrl.report import write_report as write_report
    from entrl.report.compare import compare_runs as compare_runs
    from entrl.report.read import read_run as read_run
    from entrl.runs.plan import Measured as Measured, plan as plan
    from entrl.runs.recipe import Recipe as Recipe, load_recipe as load_recipe
    from entrl.runs.train import RunResult as RunResult, train as train
    from entrl.stats.law import fit_law as fit_law
    from entrl.tasks import load_task as load_task, task_names as task_names
    from entrl.teach.cold_start import cold_start as cold_start, load_cold_start as load_cold_start
    from entrl.teach.curation import CurationSpec as CurationSpec, curate as curate
    from entrl.teach.offline.run import offline as offline
    from entrl.teach.offline.spec import load_offline as load_offline
    from entrl.trainers.async_grpo.config import EntropyAsyncGRPOConfig as EntropyAsyncGRPOConfig
    from entrl.trainers.async_grpo.trainer import EntropyAsyncGRPOTrainer as EntropyAsyncGRPOTrainer
    from entrl.trainers.config import EntropyGRPOConfig as EntropyGRPOConfig
    from entrl.trainers.grpo.trainer import EntropyGRPOTrainer as EntropyGRPOTrainer
    from entrl.trainers.shared.rewards import RewardError as RewardError
else:
    __all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'entrl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
