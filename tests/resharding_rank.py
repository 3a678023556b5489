"""One rank of a run that writes its whole state at the end; RUN.json tells what it trains."""

import json
import os
import sys
from pathlib import Path

import torch
from training_fakes import make_collaborators, make_config
from transformers import set_seed

from configs.stopping import StopRequest
from train.distributed import leave, make_accelerator
from train.loop import Trainer
from train.start import decide_start

STATES = ("fp32", "exp_avg", "exp_avg_sq")


class StateKeeper(Trainer):
    """Writes weights and moments, gathered by DeepSpeed, while the process group still stands."""

    def _finish(self) -> None:
        states = whole_states(self)
        if self.accelerator.is_main_process:
            torch.save(states, Path(self.config.output_dir) / "states.pt")
        super()._finish()


def whole_states(trainer: Trainer) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    result = {}
    for owner, trained in (("policy", trainer.learner.policy), ("critic", trainer.learner.critic)):
        if trained is None:
            continue
        zero = trained._optimizer.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):  # see training_fakes.first_moments
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in trained.model.named_parameters():
            if not parameter.requires_grad:
                continue
            whole = [safe_get_full_fp32_param(parameter)]
            whole += [safe_get_full_optimizer_state(parameter, key) for key in STATES[1:]]
            for key, value in zip(STATES, whole, strict=True):
                assert value is not None
                result[f"{owner}.{name.removeprefix('module.')}.{key}"] = value.detach().clone().cpu()
    return result


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    config = make_config(Path(run["output_dir"]), Path(run["model"]), **run["changes"])
    set_seed(config.seed)
    start = decide_start(config, is_main=os.environ["RANK"] == "0")
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == run["ranks"]
    outside = make_collaborators(config, accelerator)
    StateKeeper(config, accelerator, outside, StopRequest().listen(), start.checkpoint).run()


if __name__ == "__main__":
    main()
    leave()
