"""The folder of a run, as launcher and trainer see it."""

from pathlib import Path

import pytest

from configs.run_folder import CHECKPOINTS, MANIFEST, UNFINISHED, is_whole, refuse_used


def _checkpoint(output_dir: Path, name: str, *, sealed: bool) -> Path:
    folder = output_dir / CHECKPOINTS / name
    folder.mkdir(parents=True)
    if sealed:
        (folder / MANIFEST).touch()
    return folder


def test_a_checkpoint_is_whole_once_it_is_sealed_and_has_its_final_name(tmp_path: Path):
    assert is_whole(_checkpoint(tmp_path, "step_000004", sealed=True))
    assert not is_whole(_checkpoint(tmp_path, "step_000005", sealed=False))
    assert not is_whole(_checkpoint(tmp_path, f"step_000006{UNFINISHED}", sealed=True))


def test_a_folder_is_used_from_its_first_whole_checkpoint_and_the_newest_is_named(tmp_path: Path):
    refuse_used(tmp_path / "nothing")
    _checkpoint(tmp_path, "step_000030", sealed=False)
    _checkpoint(tmp_path, f"step_000040{UNFINISHED}", sealed=True)
    refuse_used(tmp_path)
    for name in ("step_000010", "step_000020"):
        newest = _checkpoint(tmp_path, name, sealed=True)
    with pytest.raises(ValueError, match=f"resume is none, but {newest} exists: .* Set resume=auto"):
        refuse_used(tmp_path)
