"""FLOPs of one step of training."""

from configs.schema import JobConfig
from launch.plan.architecture import Architecture
from launch.plan.memory import ALONE, Companions
from launch.plan.workload import Workload, adapters_of, companions_of


def step_flops(config: JobConfig, model: Architecture, work: Workload) -> float:
    """Returns ``training_flops`` of one step with the models and adapters that the config names."""
    return training_flops(
        model,
        work,
        recomputes=config.model.gradient_checkpointing,
        companions=companions_of(config),
        adapters=adapters_of(config, model),
        iterations=config.algo.num_iterations,
        evaluates_first=config.algo.updates_per_batch > 1 or config.algo.critic_is_head,
    )


def training_flops(
    model: Architecture,
    work: Workload,
    *,
    recomputes: str,
    companions: Companions = ALONE,
    adapters: int = 0,
    iterations: int = 1,
    evaluates_first: bool = False,
) -> float:
    """Returns the FLOPs of one step's forward and backward passes on all ranks.

    ``recomputes`` is ``model.gradient_checkpointing``, ``iterations`` the number of passes over the batch.
    With ``evaluates_first`` the policy's log-probs or values before the updates take one forward pass more.

    The product of a token with a matrix of P parameters takes 2P FLOPs forward and 4P backward, and 2P more
    if the forward pass of its part of a layer is recomputed. Attending from a query to ``context`` keys takes
    4 * width * context FLOPs forward; the mean context of a completion is its prompt and half of itself. The
    LM head runs on trained tokens only and is counted as recomputed, which holds except for the last chunk of
    each micro-batch. A critic costs as much as a policy and a forward pass for its values before the
    updates, a reference one forward pass. Weights that LoRA freezes have no gradient, which saves 2P;
    ``adapters`` is the number of parameters that are trained instead.
    """
    products = 2 * model.layers * model.layer_matrices * work.forwarded
    attention = 0.0
    for calls in work.trained:
        in_completions = calls.decoded * (calls.prompt + calls.completion / 2)
        in_prompts = (calls.forwarded - calls.decoded) * calls.prompt / 2
        attention += 4 * model.layers * model.query * (in_completions + in_prompts)
    head = 2 * model.embedding * work.trained_tokens
    again = {
        "none": 0.0,
        "attention": products * model.attention_matrices / model.layer_matrices + attention,
        "full": products + attention,
    }[recomputes]
    # In units of the forward pass: forward 1, backward 2, for the head also recomputation 1.
    whole = 3 * (products + attention) + again + 4 * head
    own = whole
    if adapters:
        # Adapters add their passes; the frozen matrices and head lose one unit each, their gradients.
        passes = 3 + again / (products + attention)
        own += 2 * passes * adapters * work.forwarded - products - head
    once = (products + attention + head) * (evaluates_first + companions.critic + companions.reference)
    return iterations * (own + whole * companions.critic) + once
