"""The policy: an HF causal LM, the log-probs of given tokens, and its weights as an HF folder."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from configs.schema import ModelConfig
from train.batch.collate import MicroBatch
from train.model.attention_choice import choose_attention
from train.model.backbone import predictor_states
from train.model.buffers import recompute_buffers
from train.model.critic import ValueHead
from train.model.fused_kernels import apply_fused_kernels
from train.model.head import TokenHead
from train.model.logprobs import HeadOptions
from train.model.recompute import recompute_activations
from train.model.weights import PolicyWeights
from train.sharding import Sharding


def load_model(config: ModelConfig) -> PreTrainedModel:
    """Loads the HF model of ``model.path``.

    Under ZeRO-3, create the ``Accelerator`` first: the weights are then sharded while they load.

    Raises:
        ValueError: If the folder or name cannot be loaded as a causal LM, or ``model.attention``,
            ``model.use_liger_kernel`` or ``model.gradient_checkpointing`` cannot be had with it here.
    """
    options = {"trust_remote_code": config.trust_remote_code}
    on_gpu = torch.cuda.is_available()
    try:
        settings = AutoConfig.from_pretrained(config.path, **options)
    except (OSError, ValueError) as error:
        raise _does_not_load(config.path, error) from error
    attention = _attention(config, settings, on_gpu=on_gpu)
    apply_fused_kernels(config, settings.model_type, on_gpu=on_gpu)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.path,
            config=settings,
            dtype=getattr(torch, config.dtype),
            attn_implementation=attention,
            **options,
        )
    except (OSError, ValueError) as error:
        raise _does_not_load(config.path, error) from error
    recompute_buffers(model)
    model.config.use_cache = False
    recompute_activations(model, config.gradient_checkpointing)
    return model


def _does_not_load(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"model.path is {path!r}, which does not load as a causal language model: {error} "
        "It must be an HF folder (config.json, *.safetensors) or the name of a model on the hub."
    )


def _attention(config: ModelConfig, settings: PreTrainedConfig, *, on_gpu: bool) -> str:
    """Returns the ``attn_implementation``: attention over shared prompts if the model supports it."""
    if has_full_attention(settings):
        return choose_attention(config, settings, on_gpu=on_gpu)
    return "sdpa"


def require_finite(model: PreTrainedModel, sharding: Sharding, path: str) -> None:
    """Checks, in one pass over the weights, that none is NaN or infinite. Every rank must call it.

    Raises:
        ValueError: If one is, on every rank: a policy like that answers nothing, and no update mends it.
    """
    for name, parameter in model.named_parameters():
        with sharding.gathered([parameter]):
            # Both are NaN if any element is.
            low, high = torch.aminmax(parameter.detach())
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(
                    f"model.path is {path!r}, whose weight {name} is not finite (NaN or infinite). The "
                    "model is broken; use a sound copy or an earlier checkpoint."
                )


def has_full_attention(config: PreTrainedConfig) -> bool:
    """True if every layer of a model attends to its whole context by content and rotary position alone.

    Only then may ``train.model.attention`` replace the model's own attention. Families older than
    ``layer_types`` declare other kinds of attention through other options.
    """
    text = config.get_text_config()
    if (layers := getattr(text, "layer_types", None)) is not None:
        return set(layers) == {"full_attention"}
    other = ("sliding_window", "attention_chunk_size", "alibi", "use_alibi")
    return bool(getattr(text, "rope_parameters", None)) and not any(
        getattr(text, name, None) for name in other
    )


class PolicyModel(nn.Module):
    """Computes log-probs, entropies and, with a value head, values of a micro-batch's trained tokens.

    It is a module, so that DeepSpeed sees a single forward pass: the backbone, then the LM head on the
    trained positions only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        entropy_has_gradient: bool = False,
        has_value_head: bool = False,
        fp32_head: bool = False,
    ) -> None:
        """Wraps ``model``.

        Args:
            model: The policy, with its adapters if it has any.
            temperature: Temperature of the sampler: log-probs describe the distribution it sampled from.
                ``MicroBatch.temperatures`` replaces it.
            entropy_has_gradient: True makes the entropies differentiable, for an entropy bonus.
            has_value_head: True adds the head of a critic to the policy's trunk.
            fp32_head: True does not round the logits to the dtype of the weights.
        """
        super().__init__()
        self.model = model
        self.head = TokenHead(
            model,
            HeadOptions(
                temperature=temperature, in_fp32=fp32_head, entropy_has_gradient=entropy_has_gradient
            ),
        )
        self.value_head = ValueHead(model) if has_value_head else None

    def forward(
        self, batch: MicroBatch, *, only_values_learn: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns log-probs, entropies and values (None without a value head), all fp32, shape ``(N,)``.

        With ``only_values_learn`` the gradient of the values stops at the value head.
        """
        hidden = predictor_states(self.model.base_model, batch)
        logprobs, entropies = self.head(hidden, batch.targets, batch.temperatures)
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden.detach() if only_values_learn else hidden)
        return logprobs, entropies, values


def save_weights(model: PreTrainedModel, sharding: Sharding, directory: Path, *, is_main: bool) -> None:
    """Gathers the weights and writes them as an HF folder on rank 0. Every rank must call it."""
    _save(PolicyWeights(model, sharding), directory, is_main=is_main)


def save_adapter(
    model: PreTrainedModel, sharding: Sharding, directory: Path, *, base: str, is_main: bool
) -> None:
    """Writes the adapters alone, in peft's format, on rank 0. Every rank must call it.

    ``base`` is the name of the adapted model.
    """
    _save(PolicyWeights(model, sharding, adapter_of=base), directory, is_main=is_main)


def _save(weights: PolicyWeights, directory: Path, *, is_main: bool) -> None:
    if is_main:
        weights.to_host().save(directory)
    else:
        weights.finish()
