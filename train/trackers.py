"""The experiment trackers of ``train.report_to``, through accelerate: metrics, pictures and tables of a run.

Unless its environment variables say otherwise, each writes to the run's folder and needs no server::

    wandb        wandb/            offline without an API key; it never prompts
    tensorboard  tensorboard/      tensorboard --logdir OUTPUT_DIR
    trackio      trackio/          TRACKIO_DIR=OUTPUT_DIR/trackio trackio show
    mlflow       mlflow.db         mlflow ui --backend-store-uri sqlite:///OUTPUT_DIR/mlflow.db
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import yaml
from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from configs.schema import TrainingConfig
from rollout.evaluation.tables import markdown_table

PROJECT = "pdr-rl"
"""Name of the project, or experiment, that the runs belong to."""


class Tracker(Protocol):
    """One tracker of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the metrics of a step."""
        ...

    def picture(self, path: Path, step: int) -> None:
        """Logs a PNG file under the name of the file."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Logs a table of texts."""
        ...

    def finish(self) -> None:
        """Writes what is left and closes the tracker."""
        ...


class _Wandb:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        self._tracker = WandBTracker(PROJECT, dir=config.output_dir, mode=wandb_mode(), config=asdict(config))
        self._tracker.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(metrics), step=step)

    def picture(self, path: Path, step: int) -> None:
        self._tracker.log_images({path.stem: [str(path)]}, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self._tracker.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)

    def finish(self) -> None:
        self._tracker.finish()


class _TensorBoard:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        # purge_step: what an earlier start wrote of later steps is not shown.
        self._tracker = TensorBoardTracker("tensorboard", config.output_dir, purge_step=step + 1)
        self._tracker.start()
        # As text: its table of hyperparameters takes no lists and makes a run of its own.
        self._tracker.tracker.add_text("config", f"```yaml\n{_yaml(config)}```", step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(metrics), step=step)

    def picture(self, path: Path, step: int) -> None:
        from matplotlib.image import imread

        self._tracker.tracker.add_image(path.stem, imread(path), step, dataformats="HWC")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self._tracker.tracker.add_text(name, "\n".join(markdown_table(columns, _in_cells(rows))), step)

    def finish(self) -> None:
        self._tracker.finish()


class _Trackio:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        # Read when trackio is imported.
        os.environ.setdefault("TRACKIO_DIR", str(Path(config.output_dir, "trackio").absolute()))
        self._tracker = TrackioTracker(PROJECT, config=asdict(config), embed=False)
        self._tracker.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(metrics), step=step)

    def picture(self, path: Path, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._tracker.log({path.stem: trackio.Image(str(path))}, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        import pandas
        import trackio  # pyright: ignore[reportMissingImports]

        frame = pandas.DataFrame([list(row) for row in rows], columns=list(columns))
        self._tracker.log({name: trackio.Table(dataframe=frame)}, step=step)

    def finish(self) -> None:
        self._tracker.finish()


class _Mlflow:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        folder = Path(config.output_dir).absolute()
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        self._tracker = MLflowTracker(PROJECT, (folder / "mlartifacts").as_uri(), run_name=folder.name)
        self._tracker.start()
        mlflow.log_text(_yaml(config), "config.yaml")  # its parameters are short texts, without tables

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        # mlflow refuses other characters, e.g. those of eval/majority@3.
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}
        self._tracker.log(named, step=step)

    def picture(self, path: Path, step: int) -> None:
        self._tracker.log_artifact(str(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        data = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
        mlflow.log_table({"step": [step] * len(rows), **data}, f"{name}.json")

    def finish(self) -> None:
        self._tracker.finish()


_TRACKERS: Mapping[str, Callable[[TrainingConfig, int], Tracker]] = {
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "mlflow": _Mlflow,
}


class Trackers:
    """All trackers of a run. One that fails is given up with a note; the run and its files go on."""

    def __init__(self, config: TrainingConfig, step: int, note: Callable[[str], None]) -> None:
        """Starts the trackers of a run that has made ``step`` steps; ``note`` receives lines for the user."""
        self._note = note
        self._open = {name: _TRACKERS[name](config, step) for name in config.train.report_to}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the metrics of a step."""
        self._each(lambda tracker: tracker.log(metrics, step))

    def picture(self, path: Path, step: int) -> None:
        """Logs a PNG file."""
        self._each(lambda tracker: tracker.picture(path, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Logs a table of texts."""
        self._each(lambda tracker: tracker.table(name, columns, rows, step))

    def finish(self) -> None:
        """Closes all trackers."""
        self._each(lambda tracker: tracker.finish())
        self._open = {}

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                work(tracker)
            except Exception as error:  # of a library, its server or the network between
                del self._open[name]
                self._note(
                    f"train.report_to: {name} failed and receives nothing more from this run: "
                    f"{type(error).__name__}: {error}. metrics.jsonl has all metrics."
                )


def try_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed, and the key of wandb.

    Raises:
        RuntimeError: If a package is missing, or wandb's server refuses the key or does not answer.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RuntimeError(
                f"train.report_to holds {name}, which is not installed: pip install 'pdr-rl[trackers]', or "
                f"pip install {name}."
            )
    if "wandb" in names:
        try_login()


def try_login() -> None:
    """Checks the key for wandb at its server; no-op if wandb will run offline.

    Raises:
        RuntimeError: If the server refuses the key or does not answer.
    """
    import wandb
    from wandb.errors import Error

    if wandb_mode() != "online":
        return
    try:
        wandb.login(verify=True, prompt=False)
    except Error as error:
        raise RuntimeError(
            f"train.report_to holds wandb, but the login fails: {error}. Correct WANDB_API_KEY, or set "
            "WANDB_MODE=offline, or train.report_to=[]."
        ) from error


def wandb_mode() -> str:
    """Returns the mode of wandb: that of the environment, but offline without a key."""
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    # Without a key wandb would prompt for one, and a training run must never wait for input.
    return "offline" if mode == "online" and wandb.api.api_key is None else mode


def _yaml(config: TrainingConfig) -> str:
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _in_cells(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yields rows for a Markdown table, where a line break or a bar would end a cell."""
    for row in rows:
        yield [cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]
