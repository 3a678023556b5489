"""Memory of one trainer rank and of one worker, part by part.

Counts the tensors that are alive at the peak of a step, as torch, transformers and DeepSpeed allocate them
for a dense decoder with train/model/attention.py; ``tests/bench/plan_memory.py`` measures the same.
Not counted: the interpreter with its libraries, the CUDA context and memory the allocator cannot use
(covered by ``plan.runtime_gib``), NCCL, and rank 0's copy of the weights in host memory while it writes
a folder.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from configs.schema import HEAD_CHUNK_BYTES
from launch.plan.architecture import Architecture

LOGIT_COPIES = {4: 1.0, 2: 1.5}
"""Number of fp32 arrays of the size of a chunk's logits that are alive at once, by bytes of a weight: the
logits, which are overwritten by probabilities and gradient, and for bfloat16 weights the product that they
were converted from (half the size)."""
ZERO_BUCKET = 500_000_000
"""Elements of DeepSpeed's bucket for reduced gradients (DeepSpeed's default)."""
ZERO3_LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered for reuse (DeepSpeed's default)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How the trainer's state is sharded. ``zero_stage`` 0 is one process without DeepSpeed."""

    zero_stage: int
    ranks: int
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    on_cpu: bool = False
    """On CPU, memory is occupied only once it is written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Models of the policy's size that share the trainer's device."""

    critic: bool = False
    """PPO's critic with its own backbone, trained as the policy is."""
    reference: bool = False
    """Frozen reference of the KL term; with LoRA the policy without its adapters serves instead."""


ALONE = Companions()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchSize:
    """Tokens in one forward pass of one rank."""

    tokens: int
    """Tokens with padding."""
    repeated: int = 0
    """Prompt tokens whose keys and values attention repeats for the completions that share the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerMemory:
    """Bytes of one rank on its device. Not all are alive at the same time: see ``peak``."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 master weights and two AdamW moments."""
    critic: float
    """Weights, gradients and optimizer of PPO's critic."""
    reference: float
    """Weights of the frozen reference of the KL term."""
    gathered: float
    """Weights that ZeRO-3 holds unsharded."""
    activations: float
    """Activations kept for the backward pass."""
    logits: float
    """Logits of one chunk through the LM head."""
    recompute: float
    """Working memory of one layer's backward pass, with its recomputed activations."""
    step: float
    """Temporaries of the optimizer step, after the activations are freed."""

    @property
    def static(self) -> float:
        """Bytes held all the time."""
        return self.weights + self.gradients + self.optimizer + self.critic + self.reference

    @property
    def passing(self) -> float:
        """Largest number of bytes that a forward and backward pass adds."""
        # The head and the layers run backward one after the other: only the larger one counts.
        return self.gathered + self.activations + max(self.logits, self.recompute)

    @property
    def peak(self) -> float:
        """Bytes at the worst moment of a step."""
        return self.static + max(self.passing, self.step)


def trainer_memory(
    model: Architecture,
    sharding: ShardLayout,
    micro: MicroBatchSize,
    *,
    bytes_per_value: int,
    recomputes: str,
    companions: Companions = ALONE,
    adapters: int = 0,
) -> TrainerMemory:
    """Returns the memory of one rank.

    Args:
        model: The policy.
        sharding: ZeRO stage, ranks, offload.
        micro: The largest micro-batch.
        bytes_per_value: 2 for bfloat16, 4 for float32.
        recomputes: ``model.gradient_checkpointing``.
        companions: Models beside the policy. Their passes follow the policy's and need no more memory.
        adapters: Parameters of LoRA adapters; if not 0, nothing else of the policy is trained.
    """
    size = bytes_per_value
    attention, others = _attention_bytes(model, size, micro), micro.tokens * _others_bytes(model, size)
    # Kept of each layer, and recomputed of one at a time. In full, a layer keeps its (tokens, hidden) input.
    # The input of attention is also the output of a norm, which ``others`` holds.
    layer, again = {
        "none": (attention + others, 0.0),
        "attention": (others, attention),
        "full": (micro.tokens * model.hidden * size, attention + others),
    }[recomputes]
    kept = model.layers * layer + micro.tokens * _final_bytes(model, size)
    working = micro.tokens * _backward_bytes(model, size) + again
    # The critic trains all its weights, whether or not the policy has adapters.
    state = _state(model, sharding, size, adapters)
    whole = _state(model, sharding, size, 0)
    return TrainerMemory(
        **state,
        critic=whole["weights"] + whole["gradients"] + whole["optimizer"] if companions.critic else 0.0,
        reference=size * model.parameters / _weight_parts(sharding) if companions.reference else 0.0,
        activations=kept,
        logits=LOGIT_COPIES[size] * min(HEAD_CHUNK_BYTES, 4 * micro.tokens * model.vocab),
        recompute=working,
    )


def _state(model: Architecture, sharding: ShardLayout, size: int, adapters: int) -> dict[str, float]:
    """Returns bytes of weights, gradients, optimizer and the step's temporaries, by ZeRO stage.

    ZeRO (Rajbhandari et al., 2020): stage 2 shards gradients and optimizer over ranks, stage 3 also the
    weights. The optimizer holds an fp32 master copy for any dtype of the weights.
    """
    total, ranks, stage = model.parameters + adapters, sharding.ranks, sharding.zero_stage
    trained = adapters or model.parameters
    if stage == 0:
        # AdamW updates parameter by parameter: two fp32 temporaries of the largest one, the embedding.
        # Its state is two fp32 moments, 8 bytes a parameter; there is no master copy.
        return {
            "weights": size * total,
            "gradients": size * trained,
            "optimizer": 8 * trained,
            "gathered": 0.0,
            "step": 2 * 4 * min(model.embedding, trained),
        }
    part = trained / ranks
    gathered = min(total, ZERO3_LIVE) * size if stage == 3 else 0.0
    # Gradients are summed in fp32 (train.deepspeed_zero). ZeRO-2 fills its bucket from the sums, ZeRO-3 from
    # gradients in the dtype of the weights.
    bucket = min(trained, ZERO_BUCKET) * (size if stage == 3 else 4)
    # The gradient in fp32 and two temporaries of AdamW, each of the size of the rank's shard.
    step = 0.0 if sharding.offloads_optimizer else 3 * 4 * part
    if sharding.on_cpu:  # the bucket is written while activations are freed
        step, gradients = max(step, bucket), part * 4
    else:
        gradients = part * 4 + bucket
    # 12 bytes a parameter: fp32 master weight and two moments.
    return {
        "weights": 0.0 if sharding.offloads_weights else size * total / _weight_parts(sharding),
        "gradients": bucket if sharding.offloads_optimizer else gradients,
        "optimizer": 0.0 if sharding.offloads_optimizer else 12 * part,
        "gathered": gathered,
        "step": step,
    }


def _weight_parts(sharding: ShardLayout) -> int:
    """Returns the number of ranks that the weights are sharded over."""
    return sharding.ranks if sharding.zero_stage == 3 else 1


def _others_bytes(model: Architecture, size: int) -> int:
    """Returns the bytes per token that the norms and the MLP of one layer keep for their backward pass."""
    norms = 2 * _norm_bytes(model.hidden, size) + 2 * size * model.hidden  # and the output of each
    return norms + 4 * size * model.intermediate  # gate, its activation, up, their product


def _attention_bytes(model: Architecture, size: int, micro: MicroBatchSize) -> float:
    """Returns the bytes that the attention of one layer keeps for its backward pass, without its input."""
    queries = 2 * size * model.query  # rotated queries and the output of attention
    if model.qk_norm:
        queries += _norm_bytes(model.query, size) + _norm_bytes(model.key, size)
    keys = 2 * size * model.key
    if micro.repeated:
        queries += size * model.query  # the outputs of both parts, in addition to the whole
    return micro.tokens * (queries + keys) + micro.repeated * keys


def _norm_bytes(width: int, size: int) -> int:
    """Returns bytes per token that RMSNorm keeps: fp32 input, normalised values in the weights' dtype."""
    return (4 + size) * width


def _final_bytes(model: Architecture, size: int) -> int:
    """Returns bytes per token of the last norm and of its output, gathered at the trained positions."""
    return _norm_bytes(model.hidden, size) + 2 * size * model.hidden


def _backward_bytes(model: Architecture, size: int) -> int:
    """Returns bytes per token of a layer's gradients: three inner arrays of the MLP, the residual stream."""
    return 3 * size * model.intermediate + 2 * size * model.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMemory:
    """Bytes of one GPU of a vLLM worker."""

    weights: float
    activations: float
    cache: float
    """Bytes left for the KV cache; negative if the rest does not fit."""
    cache_per_token: int

    @property
    def tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return max(0, math.floor(self.cache / self.cache_per_token))


def worker_memory(
    model: Architecture, *, available: float, activations: float, bytes_per_value: int, gpus: int = 1
) -> WorkerMemory:
    """Returns the memory of one of a worker's ``gpus`` GPUs, of which it may use ``available`` bytes.

    Tensor parallelism splits weights and keys and values evenly; a KV head that is not split is repeated.
    """
    weights = model.parameters * bytes_per_value / gpus
    return WorkerMemory(
        weights=weights,
        activations=activations,
        cache=available - weights - activations,
        cache_per_token=model.kv_bytes(bytes_per_value) // min(gpus, model.kv_heads),
    )


def largest(parts: Iterable[TrainerMemory]) -> TrainerMemory:
    """Returns the memory with the highest peak."""
    return max(parts, key=lambda memory: memory.peak)
