"""One rank of a launched test run: ``accelerate launch --config_file X tests/training_rank.py RUN.json``."""

import json
import sys
from pathlib import Path

import torch
from training_fakes import first_moments, make_config, make_trainer

from train.distributed import make_accelerator


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    config = make_config(Path(run["output_dir"]), Path(run["model"]), **run["changes"])
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == 2
    trainer = make_trainer(config, accelerator, **run.get("collector", {}))
    trainer.run()
    moments = first_moments(trainer)
    if accelerator.is_main_process:
        torch.save(moments, Path(run["output_dir"]) / "moments.pt")


if __name__ == "__main__":
    main()
