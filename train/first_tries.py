"""Tries before anything is started what a run otherwise needs only after hours, and would fail at."""

import os
import tempfile
from pathlib import Path

from transformers import GenerationConfig

from configs.schema import ModelConfig, TrainingConfig
from train.curves import draw_curves
from train.metrics_file import METRICS_FILE
from train.trackers import try_trackers


def try_first(config: TrainingConfig) -> None:
    """Tries writing to the output folder, saving the model, drawing the curves, and the trackers.

    Raises:
        ValueError, RuntimeError: If one fails; the message names it, its cause and what to do.
    """
    try_writing(Path(config.output_dir))
    try_saving(config.model)
    try_drawing()
    try_trackers(config.train.report_to)


def try_writing(output_dir: Path) -> None:
    """Writes a file to ``output_dir`` and to each folder in it, and removes the files.

    Raises:
        RuntimeError: If a folder cannot be created or written to.
    """
    folder = output_dir
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for folder in (output_dir, *filter(Path.is_dir, output_dir.iterdir())):
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"a full disk or quota fails here, not at the first checkpoint")
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise RuntimeError(
            f"output_dir is {output_dir}, but {folder} cannot be written to: {error}. Set output_dir to a "
            "folder that can."
        ) from error


def try_saving(model: ModelConfig) -> None:
    """Saves the model's generation config to a temporary folder, as every checkpoint and publish does.

    Raises:
        ValueError: If transformers loads it but refuses to save it.
    """
    try:
        generation = GenerationConfig.from_pretrained(model.path)
    except OSError:  # there is none: transformers derives one from the model's config
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            generation.save_pretrained(folder)
        except ValueError as error:
            raise ValueError(
                f"model.path is {model.path}, whose generation_config.json transformers refuses to save with "
                f"the trained weights: {' '.join(str(error).split())} Correct the file, for example by "
                "do_sample=true where it sets a temperature."
            ) from error


def try_drawing() -> None:
    """Draws the curves of a metric to a temporary folder.

    Raises:
        RuntimeError: If matplotlib cannot draw here.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / METRICS_FILE
        metrics.write_text('{"step": 1, "reward/trace": 0.5}\n', encoding="utf-8")
        try:
            draw_curves(metrics, metrics.with_suffix(".png"))
        except Exception as error:  # matplotlib raises all kinds for a missing font, backend or cache folder
            raise RuntimeError(
                f"The curves of a run cannot be drawn: {type(error).__name__}: {error}. See MPLCONFIGDIR and "
                "the installation of matplotlib."
            ) from error
