"""A run ends by saying where its output is and what to do with it."""

from pathlib import Path

from training_fakes import make_config

from configs.run_folder import CHECKPOINTS, MANIFEST
from train.last_words import last_words


def test_the_last_lines_name_the_files_the_newest_checkpoint_and_the_export(tmp_path: Path):
    folder = tmp_path / "a run"
    (folder / "groups").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    for step in (2, 4):
        checkpoint = folder / CHECKPOINTS / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).touch()
    said = last_words(make_config(folder, Path("model"))).splitlines()
    report, blank, written, page, newest, export = said
    assert (report, blank) == ("No evaluation was made, so there is nothing to report.", "")
    assert written == f"Written to {folder}: report.md, metrics.jsonl, groups/"
    assert "page" in page
    assert newest == f"Newest checkpoint: {folder}/checkpoints/step_000004"
    assert export == f"Export it: python -m train.export '{folder}' '{folder}/export'"


def test_a_run_without_a_checkpoint_offers_no_export(tmp_path: Path):
    assert last_words(make_config(tmp_path, Path("model"))).endswith("\nThere is no checkpoint.")
