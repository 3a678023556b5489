"""``python -m rollout``: runs operators over a data set and reports accuracy against token budgets."""

from configs.stopping import STOP, leave

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

from configs.compose import run
from configs.schema import EvaluationConfig


def main(config: EvaluationConfig, overrides: list[str]) -> None:
    """Makes the evaluation."""
    # Imported here: --help and the refusal of an option must not wait for transformers, which takes seconds.
    from rollout.command import main as evaluate

    evaluate(config, overrides)


if __name__ == "__main__":
    run("evaluation", main)
    leave(0)
