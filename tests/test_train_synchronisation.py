"""Within a micro-batch no operation makes the host wait for the device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_fakes import make_config, make_groups

from train.call_terms import CallTerms
from train.distributed import make_accelerator
from train.learner import Learner
from train.loss.credit import credit, weigh
from train.metrics import TokenMetrics
from train.nonfinite_steps import RefusalGuard

aten = torch.ops.aten
WAITING = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.bincount, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.equal, aten.argwhere),
}
"""Operations whose result, or its size, the host must know. ``.item()`` and ``if`` end in the first one."""


class NoWaiting(TorchDispatchMode):
    """Raises at an operation that would wait for a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = function.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten._unsafe_index, aten._index_put_impl_) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if packet in WAITING or by_mask:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any())])
def test_waiting_is_noticed(function):
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        function(torch.arange(3))


@pytest.mark.parametrize(
    "algo",
    [
        {"loss_type": "gspo", "beta": 0.1, "epsilon": 0.2, "epsilon_high": 0.2},
        {"loss_type": "cispo", "entropy_coef": 0.01, "epsilon_high": 5.0},
        {"loss_type": "ppo", "critic": "policy_trunk", "epsilon_high": 0.2, "num_iterations": 2},
        {
            "loss_type": "dapo",
            "epsilon_high": 0.2,
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_max": 3.0,
        },
    ],
)
def test_forward_loss_metrics_and_backward_never_wait(algo, tiny_policy, tmp_path):
    # A GPU's attention; torch cannot make the mask of the reference while it watches operations.
    config = make_config(tmp_path, tiny_policy, algo=algo, model={"attention": "varlen"})
    accelerator = make_accelerator(config)
    learner = Learner(config, accelerator, RefusalGuard(tmp_path / "debug", None))
    rows = weigh(credit(make_groups(3), config.algo), config.algo, max_completion_length=16)
    roles = sorted({branch.role for row in rows for branch in row.branches})
    part = learner._annotator._part(rows, roles)
    if config.algo.has_critic:
        ((part,), _) = learner._annotator._whitened([part], roles)
    assert len(part.bins) > 1
    tokens, calls = TokenMetrics(roles, accelerator.device), CallTerms()
    for batch in learner._annotator.micro_batches(part, roles):
        with NoWaiting():
            loss = learner._policy_loss(batch, tokens, calls, warms_up=False)
            assert learner.policy.backward(loss, is_last=False) is None
    metrics = tokens.result(accelerator, num_updates=1)
    assert metrics["trained_tokens/refine"] == sum(
        branch.num_trained for row in rows for branch in row.branches if branch.role == "refine"
    )
    assert any(p.grad is not None and p.grad.any() for p in learner.model.parameters())
