"""The attentions for a GPU compute what the reference computes, in values and gradients."""

import logging
import random
from collections.abc import Iterator

import pytest
import torch
from training_fakes import make_group
from transformers import LlamaConfig

from configs.schema import RECOMPUTATIONS, AlgoConfig, ModelConfig
from rollout.records import REFINE
from train.batch.collate import collate
from train.batch.rows import RowShape
from train.loss.credit import credit
from train.model import attention_choice
from train.model.attention import SHARED_PROMPT
from train.model.attention_choice import SHARING, check_agreement, choose_attention, disagreement
from train.model.attention_flex import BLOCK, FLEX, flex_layout
from train.model.attention_varlen import VARLEN, varlen_layout
from train.model.policy import PolicyModel, load_model

CPU = torch.device("cpu")
SIZES = [(4, 4, 8), (4, 2, 8), (6, 1, 16)]
BATCHES = {
    "several": (RowShape(5, (3, 1, 4)), RowShape(2, (6,)), RowShape(1, (2, 2))),
    "one shared row": (RowShape(7, (4, 9)),),
    "single completions": (RowShape(5, (3,)), RowShape(2, (9,))),
    "empty completions": (RowShape(5, (3, 0, 2)), RowShape(4, (0, 0)), RowShape(3, (0,))),
    "many blocks": (RowShape(300, (140, 3, 129, 128)), RowShape(128, (128, 128)), RowShape(20, (400,))),
}


@pytest.fixture(autouse=True)
def gradients_of_flex_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch refuses FlexAttention's gradient on a CPU, but can compute it by plain products."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    yield


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("attention", [VARLEN, FLEX])
def test_output_and_gradients_are_those_of_the_reference(attention, sizes, rows):
    assert max(disagreement(attention, rows, sizes, torch.float32, CPU)) < 1e-5


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_the_block_mask_is_that_of_its_single_tokens(rows):
    length = max(row.prompt + sum(row.completions) for row in rows) + 1
    mask = flex_layout(rows, length, CPU)
    number = -(-length // BLOCK)
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    for index in range(len(rows)):
        seen = mask.mask_mod(torch.tensor(index), torch.tensor(0), query, key)
        padded = torch.zeros(number * BLOCK, number * BLOCK, dtype=torch.bool)
        padded[:length, :length] = seen
        blocks = padded.view(number, BLOCK, number, BLOCK).transpose(1, 2)
        some, every = blocks.any(-1).any(-1), blocks.all(-1).all(-1)
        for place in range(number):
            partial = mask.kv_indices[index, 0, place, : mask.kv_num_blocks[index, 0, place]].tolist()
            full = mask.full_kv_indices[index, 0, place, : mask.full_kv_num_blocks[index, 0, place]].tolist()
            assert sorted(partial + full) == some[place].nonzero().flatten().tolist()
            for block in full:
                assert blocks[place, block][: length - place * BLOCK].all()
            # A block in which every query sees every key is partial only if it holds two segments.
            assert len(every[place].nonzero()) - len(full) <= 1


def test_the_keys_of_a_prompt_are_taken_once_for_all_its_completions():
    layout = varlen_layout(BATCHES["several"], 14, CPU)
    assert layout.shared is not None
    assert layout.shared.keys.tolist() == [0, 1, 2, 3, 4, 28]
    assert layout.shared.queries.tolist() == [*range(5, 13), *range(29, 33)]
    assert layout.shared.of_queries.lengths == (8, 4) and layout.shared.of_keys.lengths == (5, 1)
    # Prompt, completions and padding of each row; a single completion continues its prompt.
    assert layout.own.lengths == (5, 3, 1, 4, 1, 8, 6, 1, 2, 2, 9)
    assert layout.own.starts.tolist() == [0, 5, 8, 9, 13, 14, 22, 28, 29, 31, 33, 42]


def test_the_gradient_of_a_model_is_that_with_the_reference(tiny_policy):
    group = make_group(random.Random(0), role=REFINE, prompt=30, lengths=[5, 9, 2])
    batch = collate(credit([group], AlgoConfig()), roles=[REFINE])
    results = {}
    for attention in ("shared_prompt", "varlen"):
        for recomputes in RECOMPUTATIONS:
            config = ModelConfig(
                path=str(tiny_policy),
                dtype="float32",
                attention=attention,
                gradient_checkpointing=recomputes,
            )
            model = load_model(config).train()
            assert SHARING[model.config._attn_implementation] == attention
            logprobs, _, _ = PolicyModel(model, temperature=1.0)(batch)
            logprobs.square().sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            results[attention, recomputes] = (logprobs.detach(), gradient)
    expected = results["shared_prompt", "none"]
    for name, result in results.items():
        for mine, theirs in zip(result, expected, strict=True):
            assert (mine - theirs).norm() < 1e-5 * theirs.norm(), name


SETTINGS = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)


def test_auto_is_the_reference_on_a_cpu_and_in_fp32():
    config = ModelConfig(path="x", dtype="bfloat16")
    assert choose_attention(config, SETTINGS, on_gpu=False) == SHARED_PROMPT
    assert choose_attention(ModelConfig(path="x", dtype="float32"), SETTINGS, on_gpu=True) == SHARED_PROMPT


@pytest.mark.parametrize(
    ("attention", "dtype", "on_gpu", "message"),
    [
        ("flex", "bfloat16", False, "no backward pass of FlexAttention on a CPU"),
        ("varlen", "float32", True, r"model\.dtype float32.*bfloat16 only"),
    ],
)
def test_an_attention_that_cannot_train_on_the_device_is_refused(attention, dtype, on_gpu, message):
    config = ModelConfig(path="x", dtype=dtype, attention=attention)
    with pytest.raises(ValueError, match=message):
        choose_attention(config, SETTINGS, on_gpu=on_gpu)


def test_auto_on_a_gpu_takes_only_a_kernel_that_agrees_there(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(attention_choice.torch, "device", lambda *_: CPU)
    config = ModelConfig(path="x", dtype="bfloat16")
    assert choose_attention(config, SETTINGS, on_gpu=True) == VARLEN

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    def differs(*inputs: torch.Tensor, **options: object):
        out, none = attention_choice.attend(*inputs, **options)
        return out * 1.1, none

    for function, reason in ((fails, "no kernel image"), (differs, "differs from shared_prompt")):
        monkeypatch.setitem(attention_choice.ATTENTIONS, VARLEN, function)
        with caplog.at_level(logging.WARNING):
            assert choose_attention(config, SETTINGS, on_gpu=True) == SHARED_PROMPT
        assert reason in caplog.text


def test_kernels_agree_with_the_reference_in_bfloat16():
    for attention in (VARLEN, FLEX):
        check_agreement(attention, SETTINGS, CPU)
