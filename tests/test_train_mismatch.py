import math

import pytest
import torch

from configs.schema.algo import IMPORTANCE_SAMPLING_MODES
from train.loss.losses import importance_weights

LOG_MISMATCH = torch.log(torch.tensor([0.25, 1.0, 4.0, 1.5, 1.5]))
SEQUENCES = torch.tensor([0, 0, 0, 1, 1])


def weights(mode: str, clip_min: float | None, clip_max: float | None) -> list[list[float]]:
    found = importance_weights(LOG_MISMATCH, SEQUENCES, 2, mode=mode, clip_min=clip_min, clip_max=clip_max)
    return [values.double().round(decimals=5).tolist() for values in found]


@pytest.mark.parametrize(
    ("mode", "clip_min", "clip_max", "expected", "outside"),
    [
        ("token_truncate", None, 2.0, [0.25, 1.0, 2.0, 1.5, 1.5], [0, 0, 1, 0, 0]),
        ("token_truncate", 0.5, 2.0, [0.5, 1.0, 2.0, 1.5, 1.5], [1, 0, 1, 0, 0]),
        ("token_mask", 0.5, 2.0, [0.0, 1.0, 0.0, 1.5, 1.5], [1, 0, 1, 0, 0]),
        ("token_mask", None, None, [0.25, 1.0, 4.0, 1.5, 1.5], [0, 0, 0, 0, 0]),
        ("sequence_truncate", None, 2.0, [1.0, 1.0, 1.0, 2.0, 2.0], [0, 0, 0, 1, 1]),
        ("sequence_mask", None, 2.0, [1.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 0, 1, 1]),
        ("sequence_mask", None, 2.3, [1.0, 1.0, 1.0, 2.25, 2.25], [0, 0, 0, 0, 0]),
    ],
)
def test_weights_are_the_mismatch_within_its_limits(mode, clip_min, clip_max, expected, outside):
    assert weights(mode, clip_min, clip_max) == [expected, outside]


@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
def test_an_engine_that_agrees_with_the_trainer_is_weighted_by_one(mode):
    found, outside = importance_weights(torch.zeros(5), SEQUENCES, 2, mode=mode, clip_min=1.0, clip_max=1.0)
    assert found.tolist() == [1.0] * 5 and not outside.any()


def test_truncated_weights_make_a_mean_over_the_sampler_one_over_the_trainer_up_to_the_cap():
    """E_sampler[weight * f] = E_trainer[f] where no weight is cut: exactly, over a vocabulary of three."""
    sampler, trainer = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    value = torch.tensor([1.0, -2.0, 5.0])
    found, _ = importance_weights(
        torch.log(trainer / sampler), torch.arange(3), 3, mode="token_truncate", clip_min=None, clip_max=9.0
    )
    assert (sampler * found * value).sum().item() == pytest.approx((trainer * value).sum().item())
    assert math.isclose((sampler * found).sum().item(), 1.0, rel_tol=1e-6)
