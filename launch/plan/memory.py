"""Memory of one trainer rank and of one worker, part by part.

Counted are the tensors that live at the peak of a step, as torch, transformers and DeepSpeed allocate them
for a dense decoder with train/model/attention.py. ``tests/bench/plan_memory.py`` measures the same.
Left out: the interpreter with its libraries, the CUDA context and what the allocator cannot use
(``plan.runtime_gib`` stands for them), NCCL, and rank 0's copy of the weights in host memory at publishing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from configs.schema import HEAD_CHUNK_BYTES
from launch.plan.architecture import Architecture

LOGIT_COPIES = {4: 1.0, 2: 1.5}
"""fp32 arrays of the size of a chunk's logits that live at once, by bytes of a weight: the logits, which
become probabilities and gradient in their place, and the bfloat16 product that they were made of."""
ZERO_BUCKET = 500_000_000
"""Elements of DeepSpeed's bucket for reduced gradients; its default."""
ZERO3_LIVE = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered for reuse; its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How a trainer's state is spread. ``zero_stage`` 0 is one process without DeepSpeed."""

    zero_stage: int
    ranks: int
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    on_cpu: bool = False
    """Memory that is not written to is then not taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Models of the policy's size that are on the trainer's device, too."""

    critic: bool = False
    """Trained as the policy is: PPO's, if it has a backbone of its own."""
    reference: bool = False
    """Frozen: of the KL term, if no adapters can be switched off for it."""


ALONE = Companions()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchSize:
    """One forward pass of one rank."""

    tokens: int
    """With padding."""
    repeated: int = 0
    """Prompt tokens whose keys and values attention repeats for the completions that share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerMemory:
    """Bytes of one rank on its device. Fields of one line live at different times."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 master weights and two moments."""
    critic: float
    """PPO's: its weights, gradients and optimizer."""
    reference: float
    """Weights of the frozen policy of the KL term."""
    gathered: float
    """Weights that ZeRO-3 holds whole."""
    activations: float
    """Kept for the backward pass."""
    logits: float
    """One chunk through the LM head."""
    recompute: float
    """One layer in the backward pass."""
    step: float
    """Temporaries of the optimizer step, when the activations are gone."""

    @property
    def static(self) -> float:
        """Held all the time."""
        return self.weights + self.gradients + self.optimizer + self.critic + self.reference

    @property
    def passing(self) -> float:
        """The most that a forward and backward pass adds."""
        return self.gathered + self.activations + max(self.logits, self.recompute)

    @property
    def peak(self) -> float:
        """At the worst moment of a step."""
        return self.static + max(self.passing, self.step)


def trainer_memory(
    model: Architecture,
    sharding: ShardLayout,
    micro: MicroBatchSize,
    *,
    bytes_per_value: int,
    checkpointing: bool,
    companions: Companions = ALONE,
    adapters: int = 0,
) -> TrainerMemory:
    """Memory of one rank.

    Args:
        model: The policy.
        sharding: ZeRO stage, ranks, offload.
        micro: The largest micro-batch.
        bytes_per_value: 2 for bfloat16, 4 for float32.
        checkpointing: Whether a layer's activations are recomputed.
        companions: Models beside the policy. Their passes follow the policy's and need no more than it.
        adapters: Parameters of LoRA adapters, which are then all that is trained of the policy.
    """
    size = bytes_per_value
    layer = _layer_bytes(model, size, micro)
    residual = micro.tokens * model.hidden * size
    kept = model.layers * (residual if checkpointing else layer) + micro.tokens * _final_bytes(model, size)
    working = micro.tokens * _backward_bytes(model, size) + (layer if checkpointing else 0)
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
    """Weights, gradients, optimizer and the step's temporaries, by ZeRO stage.

    ZeRO (Rajbhandari et al., 2020): stage 2 splits gradients and optimizer over ranks, stage 3 the weights,
    too. The optimizer holds an fp32 master copy whatever the dtype of the weights.
    """
    total, ranks, stage = model.parameters + adapters, sharding.ranks, sharding.zero_stage
    trained = adapters or model.parameters
    if stage == 0:
        # AdamW goes parameter by parameter: its temporaries are those of the largest one.
        return {
            "weights": size * total,
            "gradients": size * trained,
            "optimizer": 8 * trained,
            "gathered": 0.0,
            "step": 2 * 4 * min(model.embedding, trained),
        }
    part = trained / ranks
    gathered = min(total, ZERO3_LIVE) * size if stage == 3 else 0.0
    bucket = min(trained, ZERO_BUCKET) * size
    # The gradient in fp32, and two temporaries of AdamW, each of the rank's whole part.
    step = 0.0 if sharding.offloads_optimizer else 3 * 4 * part
    if sharding.on_cpu:  # the bucket is written as the activations go
        step, gradients = max(step, bucket), part * size
    else:
        gradients = part * size + bucket
    return {
        "weights": 0.0 if sharding.offloads_weights else size * total / _weight_parts(sharding),
        "gradients": bucket if sharding.offloads_optimizer else gradients,
        "optimizer": 0.0 if sharding.offloads_optimizer else 12 * part,
        "gathered": gathered,
        "step": step,
    }


def _weight_parts(sharding: ShardLayout) -> int:
    return sharding.ranks if sharding.zero_stage == 3 else 1


def _layer_bytes(model: Architecture, size: int, micro: MicroBatchSize) -> float:
    """Bytes that one layer keeps for its backward pass."""
    norms = 2 * _norm_bytes(model.hidden, size) + 2 * size * model.hidden  # and what each reads out
    queries = 2 * size * model.query  # rotated queries, attention's output
    if model.qk_norm:
        queries += _norm_bytes(model.query, size) + _norm_bytes(model.key, size)
    keys = 2 * size * model.key
    if micro.repeated:
        queries += size * model.query  # the output of each part, beside the whole
    mlp = 4 * size * model.intermediate  # gate, its activation, up, their product
    return micro.tokens * (norms + queries + keys + mlp) + micro.repeated * keys


def _norm_bytes(width: int, size: int) -> int:
    """RMSNorm keeps its input in fp32 and the normalised values in the weights' dtype."""
    return (4 + size) * width


def _final_bytes(model: Architecture, size: int) -> int:
    """After the last layer: the norm and its output, taken at the trained positions."""
    return _norm_bytes(model.hidden, size) + 2 * size * model.hidden


def _backward_bytes(model: Architecture, size: int) -> int:
    """Gradients in flight within one layer: of the MLP's three inner arrays and the residual stream."""
    return 3 * size * model.intermediate + 2 * size * model.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMemory:
    """Bytes of one GPU of a vLLM worker."""

    weights: float
    activations: float
    cache: float
    """What is left for the KV cache; below 0 if nothing is."""
    cache_per_token: int

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return max(0, math.floor(self.cache / self.cache_per_token))


def worker_memory(
    model: Architecture, *, available: float, activations: float, bytes_per_value: int
) -> WorkerMemory:
    """Memory of one worker that may take ``available`` bytes."""
    weights = model.parameters * bytes_per_value
    return WorkerMemory(
        weights=weights,
        activations=activations,
        cache=available - weights - activations,
        cache_per_token=model.kv_bytes(bytes_per_value),
    )


def largest(parts: Iterable[TrainerMemory]) -> TrainerMemory:
    """The one with the highest peak."""
    return max(parts, key=lambda memory: memory.peak)
