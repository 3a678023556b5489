"""``python -m launch.workers``: runs vLLM workers and restarts those that end, until SIGTERM or SIGINT."""

from configs.stopping import STOP

if __name__ == "__main__":
    STOP.listen()  # before the imports below, which take seconds

from configs.compose import run
from configs.schema import WorkersConfig


def main(config: WorkersConfig, overrides: list[str]) -> None:
    """Runs the workers until a request to stop."""
    # Imported here: --help and the refusal of an option must not wait for transformers, which takes seconds.
    from launch.workers.serve import main as serve

    serve(config, overrides)


if __name__ == "__main__":
    run("workers", main)
