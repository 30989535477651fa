"""Every command of README, docs, recipes and launch that trains or plans passes `plan`, with the launcher it names.

Its hardware is what the recipe says (`launch.device_memory_gib`, `launch.world_size`). Commands with a placeholder
(RECIPE, <address>, ...) are no commands yet. Hub models are known by their published shapes alone (hub_cache.py).
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_cache import use_hub_configs

from entrl.models.packaged import fetch
from entrl.runs.plan import Plan, plan
from entrl.runs.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "recipes/**/*.md",
    "launch/*.md",
    "recipes/**/*.yaml",
    "launch/*.*",
)
STARTS = r"accelerate launch |entrl \w|bash launch/trainers\.sh |sbatch [^`\n]*launch/slurm\.sh "
COMMAND = re.compile(rf"(?:{STARTS})[^`\n|]*")
PLACEHOLDER = re.compile(r"[<>]|\.\.\.|\b[A-Z]{4,}\b|\bX\.yaml")
ABOUT_THE_RUN = ("resume=true", "overwrite=true")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is started. launcher: an accelerate file; processes: where a command says so otherwise, or is one."""

    text: str
    recipe: str
    words: tuple[str, ...]
    launcher: str | None = None
    processes: int | None = None

    def planned(self) -> Plan:
        words = [w for w in self.words if w not in ABOUT_THE_RUN]
        recipe = load_recipe(ROOT / self.recipe, words)
        if recipe.model.path.startswith("runs/"):  # what a command before it leaves: a model of this shape
            recipe = load_recipe(ROOT / self.recipe, [*words, "model.path=tiny-reasoner"])
        file = None if self.launcher is None else ROOT / self.launcher
        return plan(recipe, self.processes, accelerate_config=file)


def written() -> dict[str, str]:
    """Command -> the first file that has it; continued lines are one, comments behind a command are off."""
    found: dict[str, str] = {}
    for pattern in FILES:
        for file in sorted(ROOT.glob(pattern)):
            text = re.sub(r"\\\n#?\s*", "", file.read_text(encoding="utf-8"))
            for match in COMMAND.finditer(text):
                command = re.split(r"\s#| && | \$\{|\s\"\$@", match[0])[0].rstrip(" .,;:)&")
                command = command.rpartition('"')[0] if command.count('"') % 2 else command  # of an `echo`
                quoted = command.count("'") % 2 == 0  # else it is part of a sentence
                if not PLACEHOLDER.search(command) and (quoted or "recipes/" in command):
                    found.setdefault(command, str(file.relative_to(ROOT)))
    return found


def read(text: str) -> Command | None:
    """A command that trains or plans; None for others."""
    parts = [p for p in shlex.split(text) if p not in ("bash", "sbatch")]
    if not any(p.startswith("recipes/") for p in parts):  # a word of a sentence, or a recipe of the reader's own
        return None
    launcher, processes = None, None
    if "launch/trainers.sh" in parts:
        launcher, rest = parts[1], parts[2:]
    elif "launch/slurm.sh" in parts:  # what it adds where nothing else is said: the last machine serves with 8 engines
        nodes = next(int(p.partition("=")[2]) for p in parts if p.startswith("--nodes="))
        launcher, processes, rest = (
            "launch/multi_gpu.yaml",
            8 * (nodes - 1),
            parts[parts.index("launch/slurm.sh") + 1 :],
        )
        servers = ",".join(f"http://host:{8000 + i}" for i in range(8))
        rest += ["trainer.vllm_mode=server", f"trainer.vllm_replicas=[{servers}]", f"launch.world_size={processes}"]
    elif parts[0] == "accelerate":
        if parts[parts.index("-m") + 1 :][:2] != ["entrl", "train"]:
            return None
        launcher, rest = parts[parts.index("--config_file") + 1], parts[parts.index("-m") + 3 :]
    elif parts[1:2] in (["train"], ["plan"]):
        rest = parts[2:]
        processes = 1 if parts[1] == "train" else None
    else:
        return None
    if "--accelerate-config" in rest:
        at = rest.index("--accelerate-config")
        launcher, rest = rest[at + 1], [*rest[:at], *rest[at + 2 :]]
    return Command(
        text=text,
        recipe=next(p for p in rest if p.startswith("recipes/")),
        words=tuple(p for p in rest if "=" in p and not p.startswith("-")),
        launcher=launcher,
        processes=processes,
    )


COMMANDS = [command for text in written() if (command := read(text)) is not None]
FLAGSHIP = ("qwen3", "r1-distill")
LARGE = [c for c in COMMANDS if c.recipe.split("/")[1] in FLAGSHIP and c.launcher is not None]
SMALL = [c for c in COMMANDS if c not in LARGE]


def test_commands_are_found():
    texts = written()
    assert "entrl train recipes/tiny-reasoner/pear.yaml" in texts
    assert "accelerate launch --config_file launch/zero3.yaml -m entrl train recipes/qwen3/pear-kl-cov.yaml" in texts
    assert len(SMALL) > 15
    # every recipe of a real model is started somewhere, with a launcher
    flagship = {str(file.relative_to(ROOT)) for name in FLAGSHIP for file in (ROOT / "recipes" / name).glob("*.yaml")}
    assert {c.recipe for c in LARGE} == flagship


def test_files_that_commands_name_are_there():
    for text, file in written().items():
        for part in shlex.split(text):
            if re.match(r"(recipes|launch|benchmarks|docs|tests)/", part) and "*" not in part:
                assert (ROOT / part).exists(), f"{file}: {text}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        use_hub_configs(tmp_path_factory.mktemp("hub"), patch)
        yield


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTRL_MODELS", str(tmp_path_factory.mktemp("models")))
        fetch("smollm2-135m-instruct")
        yield


@pytest.mark.parametrize("command", LARGE, ids=lambda c: c.text)
def test_a_command_with_a_launcher_passes_plan(command: Command, hub: None):
    found = command.planned()
    assert found.ok, found.render()
    assert not found.unjudged, found.render()  # its memory was held against that of its device
    assert "launch.device_memory_gib" in dict(found.rows)["device memory"]


@pytest.mark.slow
@pytest.mark.parametrize("command", SMALL, ids=lambda c: c.text)
def test_a_command_passes_plan(command: Command, hub: None, request: pytest.FixtureRequest):
    if command.recipe.startswith("recipes/smollm2/"):
        request.getfixturevalue("smollm2")  # only where these tests run: it is downloaded
    found = command.planned()
    assert found.ok, found.render()


def test_the_launch_that_does_not_fit_is_refused(hub: None):
    """Case B4: all weights of 4B whole on each of eight GPUs of 80 GB."""
    recipe = load_recipe(ROOT / "recipes" / "qwen3" / "pear-kl-cov.yaml")
    found = plan(recipe, accelerate_config=ROOT / "launch" / "multi_gpu.yaml")
    short = [p.partition(" needs about ")[0] for p in found.problems if "a process has 79 GiB" in p]
    assert {"rollout", "training (layers)"} <= set(short)
