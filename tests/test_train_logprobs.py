"""Log-probs and entropies, and their gradients, are those of log_softmax."""

import pytest
import torch

from train.model.logprobs import token_logprobs


@pytest.mark.parametrize("entropy_has_gradient", [False, True])
def test_values_and_gradients_are_those_of_log_softmax(entropy_has_gradient: bool):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(7, 31, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(31, (7,), generator=generator)
    weights, bonus = torch.randn(2, 7, generator=generator, dtype=torch.float64)

    logprobs, entropies = token_logprobs(1 * logits, targets, entropy_has_gradient=entropy_has_gradient)
    assert entropies.requires_grad == entropy_has_gradient
    loss = (weights * logprobs).sum() + (bonus * entropies).sum()
    (gradient,) = torch.autograd.grad(loss, logits)

    plain = logits.log_softmax(-1)
    entropy = -(plain.exp() * plain).sum(-1)
    expected = (weights * plain[range(7), targets]).sum()
    if entropy_has_gradient:
        expected = expected + (bonus * entropy).sum()
    torch.testing.assert_close(logprobs, plain[range(7), targets])
    torch.testing.assert_close(entropies, entropy)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_a_token_without_a_chance_has_no_nan():
    logits = torch.tensor([[0.0, -2000.0, 3.0], [1e4, 0.0, -1e4]]).requires_grad_()
    logprobs, entropies = token_logprobs(1 * logits, torch.tensor([1, 0]), entropy_has_gradient=True)
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropies.sum(), logits)
    assert torch.isfinite(logprobs).all() and torch.isfinite(gradient).all()
    assert entropies[1] == 0


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(7, 31, generator=generator)).requires_grad_()
    targets = torch.randint(31, (7,), generator=generator)
    results = []
    for block in (31 * 4 * 3, 31 * 4 * 100, 1):
        monkeypatch.setattr("train.model.logprobs.BLOCK_BYTES", block)
        logprobs, entropies = token_logprobs(1 * logits, targets, entropy_has_gradient=True)
        (gradient,) = torch.autograd.grad(logprobs.sum() + entropies.sum(), logits)
        results.append((logprobs.detach(), entropies.detach(), gradient))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
