"""Log-probs and entropies of the head, and their gradients, are those of log_softmax."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train.model.logprobs import HeadOptions, HeadWeights, head_logprobs

ROWS, WIDTH, VOCABULARY, RANK = 7, 5, 31, 2


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden": (ROWS, WIDTH),
        "weight": (VOCABULARY, WIDTH),
        "bias": (VOCABULARY,),
        "low": (ROWS, RANK),
        "up": (VOCABULARY, RANK),
    }
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for name, shape in shapes.items()
    }
    return tensors, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def _ours(tensors: dict[str, Tensor], targets: Tensor, options: HeadOptions) -> tuple[Tensor, Tensor]:
    hidden, *_ = tensors.values()
    head = HeadWeights(**{name: tensor for name, tensor in tensors.items() if name != "hidden"})
    return head_logprobs(hidden, head, targets, options)


def _set_chunks(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr("train.model.logprobs.HEAD_CHUNK_BYTES", 4 * VOCABULARY * tokens)


@pytest.mark.parametrize("entropy_has_gradient", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("parts", [("weight",), ("weight", "bias"), ("weight", "low", "up")])
def test_values_and_gradients_are_those_of_log_softmax(
    entropy_has_gradient: bool, temperature: float, chunk: int, parts: tuple[str, ...], monkeypatch
):
    _set_chunks(monkeypatch, chunk)
    every, targets = _inputs()
    tensors = {name: every[name] for name in ("hidden", *parts)}
    weights, bonus = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    options = HeadOptions(temperature=temperature, entropy_has_gradient=entropy_has_gradient)
    logprobs, entropies = _ours(tensors, targets, options)
    assert entropies.requires_grad == entropy_has_gradient
    loss = (weights * logprobs).sum() + (bonus * entropies).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))

    logits = tensors["hidden"] @ tensors["weight"].T
    if "bias" in parts:
        logits = logits + tensors["bias"]
    if "up" in parts:
        logits = logits + tensors["low"] @ tensors["up"].T
    plain = (logits / temperature).log_softmax(-1)
    entropy = -(plain.exp() * plain).sum(-1)
    expected = (weights * plain[range(ROWS), targets]).sum()
    if entropy_has_gradient:
        expected = expected + (bonus * entropy).sum()
    torch.testing.assert_close(logprobs, plain[range(ROWS), targets])
    torch.testing.assert_close(entropies, entropy)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, list(tensors.values())), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_tokens_have_no_log_probs_and_no_gradient():
    tensors, _ = _inputs()
    tensors = {"hidden": tensors["hidden"][:0], "weight": tensors["weight"]}
    logprobs, entropies = _ours(tensors, torch.empty(0, dtype=torch.long), HeadOptions())
    assert logprobs.shape == entropies.shape == (0,)
    (gradient,) = torch.autograd.grad(logprobs.sum(), tensors["weight"])
    assert not gradient.any()


def test_a_frozen_weight_under_an_adapter_has_no_gradient():
    tensors, targets = _inputs()
    tensors["weight"].requires_grad_(False)
    logprobs, _ = _ours(tensors, targets, HeadOptions())
    logprobs.sum().backward()
    assert tensors["weight"].grad is None
    assert tensors["up"].grad is not None and tensors["hidden"].grad is not None


def test_a_token_without_a_chance_has_no_nan():
    hidden = torch.tensor([[0.0, -2000.0, 3.0], [1e4, 0.0, -1e4]]).requires_grad_()
    tensors = {"hidden": hidden, "weight": torch.eye(3)}
    logprobs, entropies = _ours(tensors, torch.tensor([1, 0]), HeadOptions(entropy_has_gradient=True))
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropies.sum(), hidden)
    assert torch.isfinite(logprobs).all() and torch.isfinite(gradient).all()
    assert entropies[1] == 0


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch):
    results = []
    for block in (31 * 4 * 3, 31 * 4 * 100, 1):
        monkeypatch.setattr("train.model.logprobs.BLOCK_BYTES", block)
        tensors, targets = _inputs(torch.float32)
        logprobs, entropies = _ours(tensors, targets, HeadOptions(entropy_has_gradient=True))
        gradients = torch.autograd.grad(logprobs.sum() + entropies.sum(), list(tensors.values()))
        results.append((logprobs.detach(), entropies.detach(), *gradients))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_gradients_of_low_precision_weights_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch):
    """In bfloat16 a sum of a thousand equal parts stops growing at 256 times the part."""
    _set_chunks(monkeypatch, 1)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weights = {"hidden": hidden, "weight": weight}
    logprobs, _ = _ours(weights, torch.zeros(1000, dtype=torch.long), HeadOptions())
    logprobs.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [500, -500]


@pytest.mark.parametrize("in_fp32", [False, True])
def test_logits_are_rounded_to_the_dtype_of_the_weights_unless_they_are_wanted_in_fp32(in_fp32: bool):
    tensors, targets = _inputs(torch.bfloat16)
    tensors = {name: tensors[name] for name in ("hidden", "weight")}
    logprobs, _ = _ours(tensors, targets, HeadOptions(in_fp32=in_fp32))
    exact = tensors["hidden"].float() @ tensors["weight"].float().T
    logits = exact if in_fp32 else exact.bfloat16().float()
    expected = logits.log_softmax(-1)[range(ROWS), targets]
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(exact, exact.bfloat16().float())


class LargestResult(TorchDispatchMode):
    """Records the number of elements of the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch):
    _set_chunks(monkeypatch, 10)
    hidden = torch.randn(200, 3, requires_grad=True)
    weight = torch.randn(VOCABULARY, 3, requires_grad=True)
    with LargestResult() as largest:
        logprobs, _ = _ours({"hidden": hidden, "weight": weight}, torch.arange(200) % 31, HeadOptions())
        logprobs.sum().backward()
    assert 0 < largest.elements <= max(10 * VOCABULARY, hidden.numel())
