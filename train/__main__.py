"""``python -m train``, under ``accelerate launch``: trains an operator and its policy (``train.rank``)."""

from configs.stopping import STOP

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

import sys

from configs.compose import run
from configs.noise import drop_remarks
from configs.schema import TrainingConfig


def main(config: TrainingConfig, overrides: list[str]) -> None:
    """Runs one rank."""
    drop_remarks()
    # Imported here: --help and the refusal of an option must not wait for torch, which takes seconds.
    from train.rank import main as run_rank

    run_rank(config, overrides)


if __name__ == "__main__":
    run("training", main)
    if "train.distributed" in sys.modules:  # a rank has run; --cfg and other flags of Hydra return without
        sys.modules["train.distributed"].leave()
