"""Attention over shared prompts is attention with the tree mask, in values and gradients."""

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from training_fakes import make_group
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from configs.schema import AlgoConfig, ModelConfig
from rollout.records import REFINE, TRACE
from train.batch.collate import collate
from train.batch.packing import separate
from train.batch.rows import RowShape
from train.loss.credit import credit
from train.model.attention import attend
from train.model.policy import PolicyModel, has_full_attention, load_model

ROWS = (RowShape(5, (3, 1, 4)), RowShape(2, (6,)), RowShape(1, (2, 2)))
LENGTH = 14


def _tree_mask(row: RowShape) -> Tensor:
    """Query sees key if that is not later and of the prompt or of the same completion."""
    segment = torch.full((LENGTH,), -1)
    segment[: row.prompt] = 0
    start = row.prompt
    for number, length in enumerate(row.completions, start=1):
        segment[start : start + length] = number
        start += length
    query, key = segment[:, None], segment[None, :]
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & ((query == key) | (key == 0))


def _inputs(heads: int, key_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(ROWS), h, LENGTH, 8) for h in (heads, key_heads, key_heads)]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_attention_with_a_tree_mask(heads: int, key_heads: int, scaling: float | None):
    query, key, value = _inputs(heads, key_heads)
    mask = torch.stack([_tree_mask(row) for row in ROWS])[:, None]
    is_token = torch.tensor([[i < row.prompt + sum(row.completions) for i in range(LENGTH)] for row in ROWS])
    weights = torch.randn(len(ROWS), LENGTH, heads, 8, dtype=torch.float64) * is_token[:, :, None, None]

    ours, none = attend(torch.nn.Identity(), query, key, value, None, rows=ROWS, scaling=scaling)
    assert none is None
    assert torch.isfinite(ours).all()
    our_gradients = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    plain = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(heads // key_heads, 1),
        value.repeat_interleave(heads // key_heads, 1),
        attn_mask=mask,
        scale=scaling,
    ).transpose(1, 2)
    gradients = torch.autograd.grad((plain * weights).sum(), (query, key, value))
    torch.testing.assert_close(ours[is_token], plain[is_token])
    for mine, theirs in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_it_does_not_have_is_refused():
    query, key, value = _inputs(4, 2)
    with pytest.raises(ValueError, match="Identity needs softcap"):
        attend(torch.nn.Identity(), query, key, value, None, rows=ROWS, softcap=30.0)


SIZES = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen3Config(**SIZES), MistralConfig(**SIZES)])
def test_a_model_has_the_logprobs_of_transformers_own_attention(config, tmp_path):
    """Shared or not, padded or not; whether it takes our attention or keeps its own."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(ModelConfig(path=str(tmp_path), dtype="float32"))
    assert (model.config._attn_implementation == "shared_prompt") == has_full_attention(config)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    rng = random.Random(3)
    groups = [make_group(rng, role=role, prompt=9, lengths=[4, 7, 2]) for role in (TRACE, REFINE)]
    rows = credit(groups, AlgoConfig())
    batches = [collate(separate(rows), roles=[TRACE, REFINE])]
    if has_full_attention(config):
        batches.append(collate(rows, roles=[TRACE, REFINE]))
    expected = []
    for group in groups:
        for sample in group.samples:
            ids = torch.tensor([[*sample.call.prompt_ids, *sample.call.completion_ids]])
            logprobs = plain(ids).logits[0].log_softmax(-1)
            prompt = len(sample.call.prompt_ids)
            expected += [logprobs[i - 1, ids[0, i]] for i in range(prompt, ids.shape[1])]
    for batch in batches:
        torch.testing.assert_close(
            PolicyModel(model, temperature=1.0)(batch)[0], torch.stack(expected), atol=1e-5, rtol=1e-5
        )


def test_rows_that_share_a_prompt_are_refused_by_other_attention(tiny_policy):
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    group = make_group(random.Random(0), role=REFINE, prompt=9, lengths=[4, 7])
    with pytest.raises(ValueError, match=r"share prompts, but the model's attention is 'sdpa'"):
        PolicyModel(model, temperature=1.0)(collate(credit([group], AlgoConfig()), roles=[REFINE]))


def test_families_say_in_their_own_way_that_they_look_at_a_window():
    assert has_full_attention(LlamaConfig(**SIZES))
    assert has_full_attention(MistralConfig(**SIZES, sliding_window=None))
    assert not has_full_attention(MistralConfig(**SIZES, sliding_window=16))
