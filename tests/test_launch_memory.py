"""The memory model against tensors that torch really keeps, and against the laws of ZeRO."""

from dataclasses import fields, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from configs.schema import RECOMPUTATIONS
from launch.plan.architecture import parse_architecture
from launch.plan.memory import MicroBatchSize, ShardLayout, trainer_memory, worker_memory
from train.batch.rows import RowShape
from train.model.attention import SHARED_PROMPT
from train.model.recompute import recompute_activations

MODEL = parse_architecture(
    {
        "model_type": "qwen3",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "test",
)
MICRO = MicroBatchSize(tokens=2048, repeated=512)


def _memory(stage: int = 2, ranks: int = 2, *, size: int = 4, recomputes: str = "none", micro=MICRO):
    sharding = ShardLayout(zero_stage=stage, ranks=ranks)
    return trainer_memory(MODEL, sharding, micro, bytes_per_value=size, recomputes=recomputes)


def _kept_bytes(config: PreTrainedConfig, rows: list[RowShape], recomputes: str) -> int:
    """Bytes of all tensors but parameters that a forward pass keeps for its backward pass."""
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation=SHARED_PROMPT).train()
    recompute_activations(whole, recomputes)
    model = whole.base_model
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    length = rows[0].prompt + sum(rows[0].completions)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.zeros(len(rows), length, dtype=torch.long), rows=rows, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("completions", [(56,), (14, 14, 14, 14)])
@pytest.mark.parametrize("recomputes", RECOMPUTATIONS)
def test_activations_are_what_a_forward_pass_keeps(
    kind: type[PreTrainedConfig], completions: tuple[int, ...], recomputes: str
):
    sizes = {
        "vocab_size": 300,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    config = kind(**sizes)
    model = parse_architecture(config.to_dict(), "test")
    rows = [RowShape(200, completions)] * 3
    repeated = 3 * 200 * len(completions) if len(completions) > 1 else 0
    micro = MicroBatchSize(tokens=3 * 256, repeated=repeated)
    memory = trainer_memory(
        model, ShardLayout(zero_stage=0, ranks=1), micro, bytes_per_value=4, recomputes=recomputes
    )
    # The backbone's output, and that of it which the head reads: this pass ends before it keeps them.
    for_head = 2 * 4 * micro.tokens * model.hidden
    assert memory.activations - for_head == pytest.approx(_kept_bytes(config, rows, recomputes), rel=0.1)


@pytest.mark.parametrize(("stage", "weights"), [(2, 1.0), (3, 0.125)])
def test_zero_spreads_optimizer_and_by_stage_weights_over_ranks(stage: int, weights: float):
    memory = _memory(stage, 8)
    assert memory.optimizer * 8 == 12 * MODEL.parameters
    assert memory.weights == 4 * MODEL.parameters * weights


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_gradients_are_summed_in_float32(stage: int):
    alone, four = (_memory(stage, ranks, size=2).gradients for ranks in (1, 4))
    assert alone - four == 4 * MODEL.parameters * 3 / 4


def test_a_cpu_takes_the_bucket_of_gradients_when_the_activations_are_gone():
    device, host = (ShardLayout(zero_stage=2, ranks=2, on_cpu=on_cpu) for on_cpu in (False, True))
    options = {"bytes_per_value": 4, "recomputes": "none"}
    at_once, later = (trainer_memory(MODEL, sharding, MICRO, **options) for sharding in (device, host))
    assert at_once.gradients - later.gradients == 4 * MODEL.parameters
    assert later.step >= 4 * MODEL.parameters
    assert later.peak < at_once.peak


def test_only_zero_3_gathers_weights_and_no_more_than_its_limit():
    assert _memory(2).gathered == 0
    assert _memory(3).gathered == 4 * MODEL.parameters
    large = replace(MODEL, layers=10**6)
    memory = trainer_memory(
        large, ShardLayout(zero_stage=3, ranks=8), MICRO, bytes_per_value=2, recomputes="full"
    )
    assert memory.gathered == 2 * 10**9


def test_half_the_bytes_halve_weights_but_not_the_optimizer():
    whole, half = _memory(size=4), _memory(size=2)
    assert half.weights * 2 == whole.weights
    assert half.optimizer == whole.optimizer


def test_checkpointing_keeps_one_array_a_layer_and_recomputes_one_layer():
    plain, saving = _memory(), _memory(recomputes="full")
    assert saving.activations < plain.activations / 5
    assert saving.recompute > plain.recompute
    assert saving.peak < plain.peak


def test_recomputed_attention_saves_its_own_part_and_recomputes_that_alone():
    none, attention, full = (_memory(recomputes=value) for value in RECOMPUTATIONS)
    assert full.activations < attention.activations < none.activations
    again = attention.recompute - none.recompute
    assert none.activations - attention.activations == MODEL.layers * again > 0
    assert full.recompute > attention.recompute


def test_activations_grow_with_tokens_and_with_what_is_repeated():
    assert _memory(micro=MicroBatchSize(tokens=4096, repeated=1024)).activations == 2 * _memory().activations
    assert _memory(micro=MicroBatchSize(tokens=2048)).activations < _memory().activations


def test_offloaded_state_takes_no_memory_of_the_device():
    sharding = ShardLayout(zero_stage=3, ranks=8, offloads_optimizer=True, offloads_weights=True)
    memory = trainer_memory(MODEL, sharding, MICRO, bytes_per_value=2, recomputes="full")
    assert memory.optimizer == memory.weights == memory.step == 0


def test_the_peak_is_the_worse_of_passing_and_stepping():
    memory = _memory()
    parts = {item.name: getattr(memory, item.name) for item in fields(memory)}
    assert memory.peak == memory.static + memory.passing
    stepping = replace(memory, step=10 * sum(parts.values()))
    assert stepping.peak == stepping.static + stepping.step


def test_a_worker_that_has_no_room_beside_its_weights_holds_no_token():
    small = worker_memory(MODEL, available=1000, activations=0, bytes_per_value=2)
    assert small.tokens == 0
    room = 10 * MODEL.kv_bytes(2)
    fits = worker_memory(MODEL, available=2 * MODEL.parameters + 7 + room, activations=7, bytes_per_value=2)
    assert fits.tokens == 10
