"""A replayed step is the trainer's own: parameters, entropies of the window's states and of the probe."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from rounding import gradient_gap, log_prob_gap, mean_gap, parameter_gap
from tiny_model import parameters, saved_model, tiny_model, trainer
from transformers import TrainerCallback

from entrl.cli.main import main
from entrl.controllers.clip_cov import ClipCov
from entrl.controllers.cw_grpo import CWGRPO
from entrl.controllers.kl_cov import KLCov
from entrl.controllers.steer import Steer
from entrl.runs.recipe import make_recipe
from entrl.runs.train import train
from entrl.trainers.grpo.window_log import LoggedWindow, joined, load_step
from entrl_lab.replay import RealStep, Setting, StepState
from entrl_lab.replay.real_step import load_probe, load_state

PLAIN = Setting(label="none")
STEPS = 3
ROWS, TOKENS = 16, 20  # of a step: two micro-batches of eight rows, at most 8 tokens of prompt and 12 of completion
RATE = 1e-3


class After(TrainerCallback):
    """The parameters after each step, and the largest element of the gradient it took (clipped)."""

    def __init__(self):
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.largest: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        assert model is not None
        self.largest.append(max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert model is not None
        self.parameters.append({n: p.detach().clone() for n, p in model.named_parameters()})


def logged_run(folder: Path, controllers: tuple = (), **kwargs) -> tuple[Path, After]:
    """Three steps, the second of a rollout's two not fresh; windows, states and probe of each."""
    run = trainer(
        folder,
        controllers=controllers,
        **{
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
            "max_steps": STEPS,
            "learning_rate": RATE,
            # Adam divides by sqrt(v) + epsilon, so where a gradient is 0 round-off comes out lr / epsilon times as
            # large, and where it is large the step is lr whatever the gradient. Gradients are of size 1e-3 to 1e-2.
            "adam_epsilon": 1e-3,
            "log_windows": list(range(STEPS)),
            "log_window_state": True,
            "probe_every": 1,
            "probe_rows": 6,
            **kwargs,
        },
    )
    after = After()
    run.add_callback(after)
    run.train()
    return Path(run.args.output_dir), after


def assert_same_parameters(found: dict, after: After, step: int, *, slope: float) -> None:
    gradient = gradient_gap(tiny_model(), TOKENS, ROWS) * after.largest[step]
    expected = after.parameters[step]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        allowed = parameter_gap(gradient, expected[name], slope=slope)
        off = (value - expected[name]).abs()
        assert (off <= allowed).all(), f"{name}: {float((off / allowed).max()):.2f} times what round-off explains"


def change_gap(count: int) -> float:
    """Nats, of a mean entropy after a step less that before it, over `count` tokens."""
    return 2**0.5 * mean_gap(log_prob_gap(tiny_model(), TOKENS), count)


def replayed(out: Path, step: int) -> tuple[RealStep, LoggedWindow]:
    window = joined(load_step(out, step))
    # Another seed: every weight that matters comes from the file.
    return RealStep(tiny_model(seed=9), window, load_state(out, step), probe=load_probe(out)), window


CASES = {
    "none": (),
    "clip_cov": (ClipCov(fraction=0.05, lower=0.05, upper=50.0),),
    "kl_cov": (KLCov(fraction=0.05),),
    "cw_grpo": (CWGRPO(),),
    "steer": (Steer(w_min=0.7),),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_real_step_is_the_trainers(tmp_path: Path, kind: str):
    out, after = logged_run(tmp_path, CASES[kind])
    setting = Setting(label=kind, controllers=CASES[kind])
    for step in range(STEPS):
        real, window = replayed(out, step)
        assert window.options.fresh == (step != 1)
        found = real.parameters_after(setting)
        assert_same_parameters(found, after, step, slope=2 * RATE / 1e-3)
        moved = max(float((value - real.state.parameters[n]).abs().max()) for n, value in found.items())
        assert moved > 1e-4  # the agreement above is not of two steps that did nothing
        outcome, mask = real.take(setting), window.rows.mask_BT
        assert window.entropies_after_BT is not None
        measured = float((window.entropies_after_BT - window.entropies_BT)[mask].mean())
        assert outcome.within == pytest.approx(measured, abs=change_gap(int(mask.sum())))
        assert outcome.probe is not None
        assert real.probe is not None
        assert window.probe_entropy_after is not None
        assert window.probe_entropy_before is not None
        measured = window.probe_entropy_after - window.probe_entropy_before
        tokens = int(real.probe.completion_mask_BT.sum())
        assert outcome.probe == pytest.approx(measured, abs=change_gap(tokens))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"loss_type": "grpo", "temperature": 0.7},
        {"loss_type": "bnpo", "max_grad_norm": 0.05},
        {"loss_type": "dr_grpo", "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.1},
    ],
    ids=lambda k: "-".join(str(v) for v in k.values()),
)
def test_other_losses_and_optimisers(tmp_path: Path, kwargs: dict):
    out, after = logged_run(tmp_path, **kwargs)
    for step in range(STEPS):
        found = replayed(out, step)[0].parameters_after(PLAIN)
        slope = kwargs["learning_rate"] if "optim" in kwargs else 2 * RATE / 1e-3
        assert_same_parameters(found, after, step, slope=slope)


def test_settings_differ_and_leave_no_trace(tmp_path: Path):
    out, _ = logged_run(tmp_path)
    real, _ = replayed(out, 1)
    first = real.take(PLAIN, linear=True)
    other = real.take(Setting(label="clip_cov", controllers=CASES["clip_cov"]), linear=True)
    assert other.within != first.within
    assert real.take(PLAIN, linear=True) == first  # neither parameters nor optimiser state were written to
    for name, p in real.model.named_parameters():
        assert torch.equal(p, real.state.parameters[name])
    assert first.grad_norm > 0


def test_the_linear_part_is_the_limit_of_a_small_step(tmp_path: Path):
    """With the step a hundred times smaller, first order is all there is."""
    out, _ = logged_run(tmp_path, learning_rate=1e-5, adam_epsilon=1e-3)
    found = replayed(out, 1)[0].take(PLAIN, linear=True)
    assert found.linear_within == pytest.approx(found.within, rel=0.05)
    assert found.linear_probe == pytest.approx(found.probe, rel=0.05)


def test_without_a_probe(tmp_path: Path):
    out, _ = logged_run(tmp_path, probe_every=0)
    assert load_probe(out) is None
    outcome = replayed(out, 0)[0].take(PLAIN, linear=True)
    assert outcome.probe is None
    assert outcome.linear_probe is None


def test_states_that_do_not_fit(tmp_path: Path):
    out, _ = logged_run(tmp_path)
    window, state = joined(load_step(out, 0)), load_state(out, 0)
    with pytest.raises(ValueError, match="has another shape"):
        RealStep(tiny_model(hidden=48), window, state)
    extra = dataclasses.replace(state, parameters={**state.parameters, "lora_A": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 parameters the recipe's model lacks, such as 'lora_A'"):
        RealStep(tiny_model(), window, extra)
    odd = dataclasses.replace(state, optimizer_class="AdamW8bit")
    with pytest.raises(ValueError, match=r"'AdamW8bit' is not one of torch\.optim"):
        RealStep(tiny_model(), window, odd).take(PLAIN)
    holes = {n: torch.full_like(p, torch.nan) for n, p in state.parameters.items()}
    with pytest.raises(ValueError, match="the gradient of 'none' in step 0 is nan"):
        RealStep(tiny_model(), window, dataclasses.replace(state, parameters=holes)).take(PLAIN)
    with pytest.raises(FileNotFoundError, match="log_window_state: true"):
        load_state(out, 7)
    torch.save({"parameters": {}}, out / "windows" / "step-000000" / "state.pt")
    with pytest.raises(ValueError, match="has no learning_rate"):
        load_state(out, 0)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `entrl train` with an adapter, as `entrl replay` finds it."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "rows.jsonl"
    rows = Dataset.from_dict({"prompt": [f"{i}+{i}=" for i in range(32)], "answer": [str(2 * i) for i in range(32)]})
    rows.to_json(data)
    (folder / "rewards.py").write_text(
        "def digits(completions, **_):\n"
        "    texts = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
        "    return [float(sum(ch.isdigit() for ch in t)) for t in texts]\n"
    )
    content = {
        "model": {"path": saved_model(folder / "model")},
        "data": {"task": f"jsonl:{data}"},
        "rewards": [{"use": f"{folder / 'rewards.py'}:digits"}],
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
        "trainer": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 8,
            "steps_per_generation": 2,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "log_windows": [0, 1, 2, 3],
            "log_window_state": True,
            "probe_every": 1,
        },
    }
    train(make_recipe(content, name="replayed", base=folder))
    return folder / "run"


def test_the_command_validates_an_adapter_run(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["clip_cov:lower=0.05,upper=50,fraction=0.05", "kl_cov:fraction=0.05", "cw_grpo", "steer"]
    words = ["replay", str(run_folder), "--controllers", *asked, "--exact-gradient", "--target", "50%"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["settings"]) == 5
    assert {"within", "probe"} == found["agreement"].keys()
    for estimators in found["agreement"].values():
        assert -1 <= estimators["natural"]["spearman_of_means"]["value"] <= 1
        assert len(estimators["natural"]["spearman_per_window"]) == 4
        assert estimators.keys() == {"natural", "policy_gradient", "pooled", "exact_gradient"}
    for w in found["windows"]:
        assert all(o["linear_within"] is not None for o in w["outcomes"])
    # What the run itself did is the plain step, taken again.
    for step in range(4):
        window = joined(load_step(run_folder / "checkpoints", step))
        assert window.entropies_after_BT is not None
        measured = float((window.entropies_after_BT - window.entropies_BT)[window.rows.mask_BT].mean())
        allowed = change_gap(int(window.rows.mask_BT.sum()))
        assert found["windows"][step]["outcomes"][0]["within"] == pytest.approx(measured, abs=allowed)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "predicted against measured" in text
    assert "recommended:" in text


def test_training_refuses_what_replay_is_asked(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", str(run_folder), "--controllers", "ce_gppo+steer"]) == 2
    assert "cannot be combined" in capsys.readouterr().err


def test_terms_that_replay_leaves_out(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "windows").symlink_to(run_folder / "checkpoints" / "windows")
    recipe = (run_folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("trainer:\n", "trainer:\n  entropy_coef: 0.01\n"))
    assert main(["replay", str(folder), "--controllers", "steer"]) == 0
    assert "entropy_coef=0.01 (the entropy bonus)" in capsys.readouterr().out
    assert main(["replay", str(folder), "--controllers", "steer", "--validate"]) == 2
    assert "would not take this run's steps" in capsys.readouterr().err


def test_a_model_as_the_recipe_has_it_is_left_alone():
    """`tiny_model` seeds differ, or the tests above would compare a model with itself."""

    class Holder:
        def __init__(self, model):
            self.model = model

    a, b = (parameters(Holder(tiny_model(seed=s))) for s in (0, 9))
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_a_state_is_what_the_recorder_writes(tmp_path: Path):
    out, _ = logged_run(tmp_path)
    assert {f.name for f in dataclasses.fields(StepState)} <= torch.load(
        out / "windows" / "step-000000" / "state.pt", weights_only=True
    ).keys()
