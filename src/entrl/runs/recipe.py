"""A recipe: strict YAML -> typed options -> the objects a run needs.

    model:  {path, dtype, attn_implementation, revision, trust_remote_code, tokenizer}
    data:   {task, split, train_size, seed, args}, or
            {mixture: [{task, weight, split, train_size, args}], train_size, seed}
    rewards:      [{use, weight, args}]
    controllers:  [{use, args}]
    curriculum: {use, args, file, reward, pass_above, decay, floor}, or null: TRL's order
    lora:   peft.LoraConfig fields verbatim, or null
    eval:   {task, split, size, samples, k, temperature, top_p, max_new_tokens, batch_size, seed, before, at, args},
            or null
    launch: {world_size, backend}, refused when the real ones differ; {device_memory_gib, rates}, for `entrl plan`
    trainer: EntropyGRPOConfig (hence TRL GRPOConfig) fields verbatim
    doctor: off, warn or strict
    reward_trial_s: seconds

Nothing is read from the environment but `~` and `$NAME` in paths (entrl.settings.paths). A key that is not known, is
written twice or was removed from TRL stops the recipe with the next move. YAML is read as YAML 1.2 reads scalars:
`1e-4` is a number, `no` is the word "no".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from entrl.runs.curriculum import CurriculumSpec
from entrl.runs.removed_keys import OTHER_TRAINER_KEYS, OWNED_TRAINER_KEYS, REMOVED_TRAINER_KEYS, ours
from entrl.runs.specs import (
    ControllerSpec,
    DataSpec,
    EnvironmentSpec,
    EvalSpec,
    LaunchSpec,
    ModelSpec,
    Parts,
    RewardSpec,
    checked_lora,
    load_mixture,
    load_reward,
    load_rows,
)
from entrl.settings.groups import SettingsFile, check, config_group, content_hash, field_hints
from entrl.settings.names import Loaded
from entrl.settings.secrets import mask

DOCTOR = ("off", "warn", "strict")
NEVER = 10**9  # steps; beyond every run
UNDECIDING = (("trainer", "output_dir"), *(("launch", name) for name in LaunchSpec.PLANNED))
SERVERS = ("vllm_replicas", "vllm_server_base_url", "vllm_server_host", "vllm_server_port")
LONGEST_TRIAL_S = 86400  # what the system waits has an end, which a value of 1e18 is beyond
ADDRESSES = (*(("trainer", name) for name in SERVERS), ("eval", "servers"))


@dataclass(frozen=True, kw_only=True)
class Recipe(SettingsFile, Parts):
    """Everything a run is made of."""

    WHAT: ClassVar[str] = "recipe"
    DOCS: ClassVar[str] = "recipes/README.md"

    model: ModelSpec
    data: DataSpec
    rewards: list[RewardSpec]
    controllers: list[ControllerSpec] = field(default_factory=list)
    curriculum: CurriculumSpec | None = None
    environment: EnvironmentSpec | None = None
    lora: dict[str, Any] | None = None
    eval: EvalSpec | None = None
    launch: LaunchSpec = field(default_factory=LaunchSpec)
    trainer: dict[str, Any] = field(default_factory=dict)
    doctor: str = "off"  # or warn, strict: a few prompts are answered and looked at before the first step
    # Seconds for each reward of one's own to be loaded, and to be called on trial, before training; 0: no trial. Our
    # choice: short beside any run, long for a dozen short completions.
    reward_trial_s: float = 60.0

    def __post_init__(self) -> None:
        check(bool(self.rewards), "rewards is empty; name at least one")
        check(self.doctor in DOCTOR, f"doctor must be one of {', '.join(DOCTOR)}, got {self.doctor!r}")
        check(
            0 <= self.reward_trial_s <= LONGEST_TRIAL_S,
            f"reward_trial_s must be a number of seconds up to {LONGEST_TRIAL_S} (a day), 0 for no trial call, "
            f"got {self.reward_trial_s!r}",
        )
        check(bool(self.trainer.get("output_dir", True)), "trainer.output_dir is empty; name a folder, or leave it out")

    @classmethod
    def elsewhere(cls, key: str) -> str:
        if key in ("arms", "seeds", "recipe"):
            return " This looks like a study, which `entrl replicate` runs."
        if key in ("answers", "sft", "curation"):
            return " This looks like a cold start, which `entrl cold-start` makes."
        if key in ("method", "candidates", "held_out"):
            return " This looks like offline teaching, which `entrl offline` does."
        if key == "sandbox":
            return " It is a word of the command line alone: sandbox=unsafe."
        return f" Did you mean 'trainer.{key}'?" if key in trainer_fields() else ""

    @classmethod
    def prepared(cls, groups: dict[str, Any], *, name: str, base: Path) -> dict[str, Any]:
        """With our defaults: every step logged, nobody else's tracker, run folder by recipe name."""
        defaults = {"output_dir": f"runs/{name}", "logging_steps": 1, "report_to": "none", "disable_tqdm": True}
        trainer = config_group(
            groups.get("trainer", {}),
            trainer_fields(),
            "trainer",
            defaults=defaults,
            removed=REMOVED_TRAINER_KEYS,
            owned=OWNED_TRAINER_KEYS,
            elsewhere=lambda key: ours(key, OTHER_TRAINER_KEYS),
        )
        return {**groups, "lora": checked_lora(groups.get("lora")), "trainer": trainer}

    @property
    def run_dir(self) -> Path:
        return Path(self.trainer["output_dir"])

    def config_hash(self) -> str:
        """Of `deciding` alone."""
        return content_hash(deciding(mask(self.resolved())))

    def build_rewards(self) -> list[Loaded]:
        return [load_reward(r.use, r.args, base=self.base) for r in self.rewards]

    def build_curriculum(self) -> Loaded | None:
        """A fresh `entrl.curriculum.course.Course`, or None."""
        return None if self.curriculum is None else self.curriculum.load(self.base, self.run_dir)

    def build_environment(self) -> Callable[[], Any] | None:
        """TRL's `environment_factory`, or None."""
        return None if self.environment is None else self.environment.load(self.base)

    def trainer_kwargs(self) -> dict[str, Any]:
        """The keywords of EntropyGRPOConfig: the `trainer` group plus what other groups decide."""
        dense: dict[str, Any] = {}
        if self.eval is not None and self.eval.at is not None and self.trainer.get("eval_strategy", "no") == "no":
            # TRL must know that evaluations will come, to check batches and rewards; `eval.at` alone says when.
            dense = {"eval_strategy": "steps", "eval_delay": NEVER, "eval_steps": 1}
        return {
            **self.trainer,
            **dense,
            "output_dir": str(self.run_dir / "checkpoints"),
            "run_name": self.trainer.get("run_name") or self.run_dir.name,  # what trackers call it
            "reward_weights": [r.weight for r in self.rewards],
            "expected_world_size": self.launch.world_size,
            "expected_backend": self.launch.backend,
        }

    def load_data(self, *, size: int | None = None) -> Any:
        """The training set (datasets.Dataset); `size` overrides train_size, to look at a few rows."""
        size = self.data.train_size if size is None else size
        if self.data.mixture is not None:
            return load_mixture(self.data, size=size, base=self.base)
        return load_rows(str(self.data.task), self.data, size=size, base=self.base)

    def load_eval_data(self) -> Any:
        """Of the `eval` group; with several tasks, of the first."""
        assert self.eval is not None
        spec = next(iter(self.eval.parts.values()))
        return load_rows(spec.task, spec, size=spec.size, base=self.base)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides, check everything that needs no model."""
    return Recipe.read(path, overrides)


make_recipe = Recipe.make


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a resolved recipe, masked, what decides the numbers: not where it is written or fits, nor where its servers
    listen, which a cluster decides anew at each start. Whether there are servers stays."""
    content = {group: dict(value) if isinstance(value, Mapping) else value for group, value in settings.items()}
    for name in ("doctor", "reward_trial_s"):
        content.pop(name, None)
    if content.get("curriculum") is None:
        content.pop("curriculum", None)  # which older runs do not know
    for group, name in UNDECIDING:
        (content.get(group) or {}).pop(name, None)
    for group, name in ADDRESSES:
        if (content.get(group) or {}).get(name):
            content[group][name] = "somewhere"
    return content


def trainer_fields() -> dict[str, Any]:
    """Field name -> annotation of the trainer's config."""
    from entrl.trainers.config import EntropyGRPOConfig  # brings torch and trl

    return field_hints(EntropyGRPOConfig)
