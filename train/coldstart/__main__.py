"""``python -m train.coldstart``: makes a small initial policy for runs on a CPU."""

from configs.stopping import STOP, leave

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

from configs.compose import run
from configs.noise import drop_remarks
from configs.schema import TrainingConfig


def main(config: TrainingConfig, overrides: list[str]) -> None:
    """Makes the policy at ``model.path``."""
    drop_remarks()
    # Imported here: --help and the refusal of an option must not wait for trl, which takes seconds.
    from train.coldstart.make import main as make

    make(config, overrides)


if __name__ == "__main__":
    run("training", main)
    leave(0)  # vLLM, which trl imports, reports at the interpreter's shutdown what it still holds
