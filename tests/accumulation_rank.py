"""Two ranks that sum many equal gradients in bfloat16: ``accelerate launch ... accumulation_rank.py OUT``.

Rank 0 writes the gradient's norm after 1 and after ``COPIES`` micro-batches of one fixed gradient.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from training_fakes import make_config

from train.distributed import leave, make_accelerator
from train.optimizer import TrainedModel

COPIES = 600


def main() -> None:
    output = Path(sys.argv[1])
    config = make_config(output, Path("model"), model={"dtype": "bfloat16"}, algo={"max_grad_norm": 0.0})
    accelerator = make_accelerator(config)
    torch.manual_seed(0)
    module = nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)
    model = TrainedModel(accelerator, module, config.algo, learning_rates={"": 0.0}, num_steps=10)
    input = torch.ones(1, 32, dtype=torch.bfloat16, device=accelerator.device)
    norms = []
    for copies in (1, COPIES):
        for number in range(1, copies + 1):
            outcome = model.backward(model.model(input).sum(), is_last=number == copies)
        assert outcome is not None and outcome.applied
        norms.append(outcome.grad_norm)
    if accelerator.is_main_process:
        (output / "norms.json").write_text(json.dumps(norms))


if __name__ == "__main__":
    main()
    leave()
