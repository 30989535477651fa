"""With nothing switched on, EntropyGRPOTrainer is TRL's GRPOTrainer, bit for bit."""

import pytest
from peft import LoraConfig
from tiny_model import parameters, same, saved_model, trainer
from trl import GRPOTrainer

from entrl.trainers.grpo.trainer import EntropyGRPOTrainer

SCHEDULES = {
    "on_policy": {},
    "several_updates": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "iterations_and_reference": {"num_iterations": 2, "beta": 0.1},
    "masked_truncation": {"mask_truncated_completions": True, "num_iterations": 2, "max_completion_length": 64},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01},
    "cispo": {"loss_type": "cispo", "epsilon_high": 2.0, "num_iterations": 2},
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_parameters_equal_stock_trl_bit_for_bit_after_four_steps(tmp_path, schedule, lora):
    model = saved_model(tmp_path / "model")
    runs = []
    for cls, plain in ((GRPOTrainer, True), (EntropyGRPOTrainer, True), (EntropyGRPOTrainer, False)):
        peft_config = LoraConfig(r=4, target_modules="all-linear") if lora else None
        run = trainer(tmp_path, cls=cls, plain=plain, model=model, peft_config=peft_config, **SCHEDULES[schedule])
        before = parameters(run)
        run.train()
        assert run.state.global_step == 4
        assert not same(before, parameters(run)), "nothing was trained, the comparison would be empty"
        runs.append(parameters(run))
    assert same(runs[0], runs[1]), "a plain GRPOConfig trains differently from stock TRL"
    assert same(runs[0], runs[2]), "EntropyGRPOConfig trains differently from stock TRL"
