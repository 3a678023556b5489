"""One rank of a launched test run: ``accelerate launch --config_file X tests/training_rank.py RUN.json``."""

import json
import os
import sys
from pathlib import Path

import torch
from training_fakes import first_moments, make_collaborators, make_config
from transformers import set_seed

from configs.stopping import StopRequest
from train.distributed import leave, make_accelerator
from train.loop import Trainer
from train.start import decide_start


class MomentKeeper(Trainer):
    """Writes Adam's first moments while the process group still stands; gathering them takes all ranks."""

    def _finish(self) -> None:
        moments = first_moments(self)
        if self.accelerator.is_main_process:
            torch.save(moments, Path(self.config.output_dir) / "moments.pt")
        super()._finish()


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    config = make_config(Path(run["output_dir"]), Path(run["model"]), **run["changes"])
    set_seed(config.seed)
    start = decide_start(config, is_main=os.environ["RANK"] == "0")
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == 2
    outside = make_collaborators(config, accelerator, **run.get("collector", {}))
    MomentKeeper(config, accelerator, outside, StopRequest().listen(), start.checkpoint).run()


if __name__ == "__main__":
    main()
    leave()
