"""The code and the machine of a run, as lines of its ``versions.txt``."""

import os
import platform
import subprocess
from pathlib import Path

import rollout

_GPUS = Path("/proc/driver/nvidia/gpus")
_SECONDS = 10.0
"""Limit of the question to git."""


def provenance() -> list[str]:
    """Returns the line ``machine ...`` and, for code in a git checkout, ``commit ...``.

    The commit ends in ``-dirty`` if files were changed since.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{platform.system()} {platform.machine()}", f"{cores} cores", *_gpus()]
    commit = _commit(Path(rollout.__file__).parent.parent)
    return [f"machine {', '.join(parts)}", *([f"commit {commit}"] if commit else [])]


def _commit(checkout: Path) -> str:
    # A checkout has .git beside the packages; without it git would describe whatever repository is above.
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _gpus() -> list[str]:
    """Returns the models of the GPUs, each with its number, as NVIDIA's driver lists them."""
    names = [
        line.partition(":")[2].strip()
        for path in sorted(_GPUS.glob("*/information"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    ]
    return [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
