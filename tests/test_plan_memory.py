"""entrl.runs.plan.memory: held to what torch really allocates on small models."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from entrl.models.shape import ModelShape, cache_bytes, model_shape
from entrl.runs.plan.memory import (
    ACTIVATIONS,
    GIB,
    Training,
    activation_bytes,
    optimiser_bytes,
    per_layer,
    training_peak,
    training_peaks,
)
from entrl.runs.plan.sampling import Engine, generating_terms, sync_bytes

TOKENS = 64


def config(layers: int = 2, **changes: int) -> Qwen3Config:
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    sizes |= {"intermediate_size": 384, "num_hidden_layers": layers, "vocab_size": 64}
    return Qwen3Config(**{**sizes, **changes}, attn_implementation="sdpa", pad_token_id=0)


def shape(layers: int = 2, **changes: int) -> ModelShape:
    model = Qwen3ForCausalLM(config(layers, **changes))
    total = model.num_parameters()
    return model_shape(model.config, parameters=total, trained=total)


def run(**changes) -> Training:
    settings = {"dtype": "float32", "autocast": False, "lora": False, "optimiser": "adamw_torch", "rows": 4}
    settings |= {"tokens": TOKENS, "checkpointing": False, "processes": 1, "sharding": "none"}
    return Training(**{**settings, **changes})


def terms(moment: str, of: ModelShape, settings: Training) -> dict[str, float]:
    (found,) = (one for one in training_peaks(of, settings) if one.moment == moment)
    return {term.name: term.size for term in found.terms}


def kept_by_autograd(layers: int, rows: int, *, dtype: str, autocast: bool, lora: bool, checkpointing: bool) -> int:
    """Bytes of all storages that a forward pass of the decoder saves, parameters left out."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(layers)).to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    decoder = model.model
    if lora:
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        adapted.enable_input_require_grads()
        decoder = adapted.base_model.model.model
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor is kept so that no address comes twice
        return tensor

    ids = torch.randint(0, 64, (rows, TOKENS))
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype: str, autocast: bool, lora: bool):
    """Per layer and row: differences of four passes, so that what does not grow with either drops out."""
    kinds = {"dtype": dtype, "autocast": autocast, "lora": lora, "checkpointing": False}
    kept = {(n, b): kept_by_autograd(n, b, **kinds) for n in (1, 2) for b in (2, 4)}
    measured = (kept[2, 4] - kept[1, 4] - kept[2, 2] + kept[1, 2]) / 2
    expected = activation_bytes(shape(1), run(rows=1, **kinds))
    assert measured == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_keeps_each_layers_input(dtype: str):
    kinds = {"dtype": dtype, "autocast": False, "lora": False, "checkpointing": True}
    measured = (kept_by_autograd(3, 4, **kinds) - kept_by_autograd(1, 4, **kinds)) / 2
    three, one = (terms("layers", shape(n), run(**kinds)) for n in (3, 1))
    assert measured == pytest.approx((three["activations"] - one["activations"]) / 2, rel=0.05)
    assert three["the recomputed layer"] == one["the recomputed layer"]
    assert one["the recomputed layer"] == pytest.approx(4 * TOKENS * per_layer(shape(1), run(**kinds)))


def test_every_kind_of_run_has_coefficients():
    kinds = {
        (dtype, cast, lora) for dtype in ("float32", "bfloat16") for cast in (False, True) for lora in (False, True)
    }
    assert set(ACTIVATIONS) == kinds


def test_state_is_what_adamw_allocates():
    model = Qwen3ForCausalLM(config())
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimiser.step()
    found = terms("optimiser step", shape(), run())
    assert found["weights"] == sum(p.nbytes for p in model.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [s[name] for s in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found["optimiser"] == sum(one.nbytes for one in moments)
    assert "DDP buckets" not in found


def test_optimisers():
    assert optimiser_bytes("adamw_torch_fused", 4) == 8
    assert optimiser_bytes("adamw_torch", 2) == 4
    assert optimiser_bytes("paged_adamw_8bit", 4) == 2
    assert optimiser_bytes("sgd", 4) == optimiser_bytes("adafactor", 4) == 0
    assert optimiser_bytes("muon", 4) == 4


@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_sharding_divides_the_state_and_gathers_layers(sharding):
    alone, divided = (terms("layers", shape(), r) for r in (run(), run(processes=4, sharding=sharding)))
    for name in ("weights", "gradients", "optimiser"):
        assert divided[name] == alone[name] / 4
    # everything, since two of two layers and the embedding are live at a time; the final norm's 128 aside
    assert divided["gathered layers"] == pytest.approx(alone["weights"], rel=0.05)
    assert divided["activations"] == alone["activations"]


def test_data_parallel_adds_buckets_and_autocast_a_copy():
    found = terms("forward", shape(), run(processes=2, autocast=True))
    assert found["DDP buckets"] == found["gradients"] == found["weights"]
    layers = (shape().parameters - 2 * 64 * 128) // 2 * 2  # embedding and output layer are made in tiles
    assert found["16-bit copies"] == layers * 2
    frozen = run(lora=True, autocast=True, checkpointing=True)
    assert "16-bit copies" not in terms("forward", shape(), frozen)  # nothing keeps them


def test_gradients_are_there_before_the_forward_pass_of_a_later_micro_step():
    assert terms("head", shape(), run())["gradients"] == terms("layers", shape(), run())["gradients"]
    assert "gradients" not in terms("head", shape(), run(accumulates=False))


def test_a_tied_embedding_has_three_gradients_at_the_end():
    tied, untied = (shape(tie_word_embeddings=tie) for tie in (True, False))
    assert (tied.tied, untied.tied) == (True, False)
    assert (
        tied.layer
        == untied.layer
        == sum(p.numel() for p in Qwen3ForCausalLM(config(1)).model.layers[0].parameters()) + 64
    )
    one = 64 * 128 * 4
    assert terms("embedding", tied, run())["gradient of the embedding"] == 3 * one
    assert terms("embedding", untied, run())["gradient of the embedding"] == one
    assert terms("layers", tied, run())["gradient of the embedding"] == one
    assert "gradient of the embedding" not in terms("layers", untied, run())


def test_a_reference_model_is_counted():
    found = terms("layers", shape(), run(reference=True))
    assert found["reference model"] == found["weights"]
    assert (
        terms("layers", shape(), run(reference=True, processes=2, sharding="fsdp2"))["reference model"] * 2
        == (found["weights"])
    )


def test_the_largest_moment_is_the_peak():
    found = training_peaks(shape(), run())
    assert training_peak(shape(), run()).size == max(one.size for one in found)
    assert {one.moment for one in found} == {"forward", "head", "layers", "embedding", "optimiser step"}
    assert training_peak(shape(), run()).largest.size == max(t.size for t in training_peak(shape(), run()).terms)


def test_an_adapter_is_float32_but_under_zero3():
    small = ModelShape(
        parameters=1000, trained=10, vocabulary=10, layers=1, hidden=4, heads=1, query=4, key_value=4, intermediate=8
    )
    found = terms("layers", small, run(dtype="bfloat16", lora=True))
    assert (found["weights"], found["gradients"], found["optimiser"]) == (2040, 40, 80)
    found = terms("layers", small, run(dtype="bfloat16", lora=True, processes=2, sharding="zero3"))
    assert (found["weights"], found["gradients"], found["optimiser"]) == (1010, 10, 20)


def test_cache_by_hand():
    # 2 layers x (key and value) x 2 heads of 32 x 2 bytes
    assert cache_bytes(shape()) == 2 * 2 * 64 * 2
    model = Qwen3ForCausalLM(config()).eval()
    cache = model(input_ids=torch.ones(1, 10, dtype=torch.long)).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 10 * cache_bytes(shape(), item=4)


def test_a_cache_has_the_data_type_of_the_weights_under_autocast_too():
    for dtype, item in ((torch.float32, 4), (torch.bfloat16, 2)):
        model = Qwen3ForCausalLM(config()).to(dtype).eval()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            cache = model(input_ids=torch.ones(3, 10, dtype=torch.long)).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == generating_terms(shape(), rows=3, tokens=10, item=item)[0].size


def test_the_evaluation_that_took_144_gib():
    """Case B3: Qwen3-4B, 32 rows of 16,384 tokens, the cache in float32."""
    qwen3_4b = ModelShape(
        parameters=4_022_468_096,
        trained=4_022_468_096,
        vocabulary=151_936,
        layers=36,
        hidden=2560,
        heads=32,
        query=4096,
        key_value=1024,
        intermediate=9728,
    )
    cache, _ = generating_terms(qwen3_4b, rows=32, tokens=16_384, item=4)
    assert cache.size == 144 * GIB
    assert cache.formula == "32 rows x 16,384 tokens x 294,912 bytes (36 layers x 2 x 1024 x 4)"


def test_engine_room_by_hand():
    small = ModelShape(
        parameters=GIB, trained=0, vocabulary=10, layers=1, hidden=4, heads=1, query=4, key_value=256, intermediate=8
    )
    # 0.5 x 8 GiB less 2 GiB of weights, 1 KiB a token
    assert Engine(device=8 * GIB, share=0.5).cached_tokens(small) == 2 * 2**20
    # on two devices: 2 x (4 - 1) GiB
    assert Engine(device=8 * GIB, share=0.5, parallel=2).cached_tokens(small) == 6 * 2**20
    assert Engine(device=2 * GIB, share=0.5).cached_tokens(small) < 0


def test_bytes_of_a_sync():
    small = ModelShape(
        parameters=1000, trained=10, vocabulary=10, layers=1, hidden=4, heads=1, query=4, key_value=4, intermediate=8
    )
    assert sync_bytes(small, dtype="bfloat16", lora=True) == {"full weights": 2000, "adapter alone": 40}
    assert sync_bytes(small, dtype="float32", lora=False) == {"full weights": 4000}


def test_shape_of_experts_counts_those_a_token_visits():
    from transformers import Qwen3MoeConfig

    moe = Qwen3MoeConfig(hidden_size=64, num_experts_per_tok=2, moe_intermediate_size=96, num_experts=8)
    assert model_shape(moe, parameters=10**6, trained=10**6).intermediate == 192
