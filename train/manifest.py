"""Detects damage to a folder by ``manifest.json``: the size and checksum of each file when it was written."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from configs.run_folder import MANIFEST

THREADS = 8
"""Number of files hashed at once: hashing releases the interpreter's lock."""


def seal(folder: Path) -> None:
    """Makes every file of ``folder`` durable and writes the manifest last.

    Raises:
        OSError: If the disk is full.
    """
    files = list(_files(folder))
    with ThreadPoolExecutor(THREADS) as threads:
        checksums = dict(zip(files, threads.map(_sync_and_hash, files), strict=True))
    entries = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "blake2b": checksums[path]}
        for path in files
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1, sort_keys=True), encoding="utf-8")
    sync(manifest)
    for directory in {folder, *(path.parent for path in files)}:
        sync(directory)


def is_sealed(folder: Path) -> bool:
    """True if ``folder`` was written completely. Reads no file; ``damage`` checks their contents."""
    return (folder / MANIFEST).is_file()


def remove(folder: Path) -> None:
    """Removes a folder. If it is interrupted, the remaining folder is not sealed."""
    if folder.is_dir():
        # The manifest first: a folder with missing files must not count as whole.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def damage(folder: Path, *, largest: int | None = None) -> str | None:
    """Returns the damage to a sealed folder as a phrase, or None if every file is as it was written.

    Args:
        folder: The folder.
        largest: Files of more bytes are not read, and compared by size alone; None: all are read.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    # Names and sizes first: they need no reading of files that may hold many gigabytes.
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
    with ThreadPoolExecutor(THREADS) as threads:
        read = [name for name, entry in entries.items() if largest is None or entry["size"] <= largest]
        found = threads.map(_hash, (folder / name for name in read))
        for name, checksum in zip(read, found, strict=True):
            if checksum != entries[name]["blake2b"]:
                return f"{name} is not what was written (its checksum differs)"
    return None


def additions(folder: Path) -> list[str]:
    """Returns the names of files that were put into a sealed folder later, but for hidden ones.

    A loader that lists the folder would read them, too (a second shard, an adapter).
    """
    known = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].keys()
    names = (path.relative_to(folder) for path in _files(folder))
    return [
        str(name) for name in names if str(name) not in known and not any(p[0] == "." for p in name.parts)
    ]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync(path: Path) -> None:
    """Makes the bytes of a file, or the entries of a folder, durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
