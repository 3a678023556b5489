"""``python -m launch.plan experiment=X nodes=4 gpus=8``: estimates memory and time of a run, without a GPU.

Prints memory per GPU by part, tokens and FLOPs of a step, expected seconds under stated assumptions, the best
split of the GPUs between trainer and workers, and, if something does not fit, options that make it fit.
"""

import sys

from configs.compose import run
from configs.schema import JobConfig
from launch.plan.planning import make_plan
from launch.plan.text import plan_text
from rollout.build import training_calls


def main(config: JobConfig, overrides: list[str]) -> None:
    """Prints the plan."""
    try:
        print(plan_text(make_plan(config, training_calls)))
    except ValueError as error:
        sys.exit(f"launch.plan: {error}")


if __name__ == "__main__":
    run("job", main)
