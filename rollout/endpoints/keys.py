"""Keys of endpoints: read from the environment, or made for a run. Loads no other library.

A key is passed on in the environment of a process, which only its user can read, never on a command line.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

KEY_VARIABLE = "VLLM_API_KEY"
"""Environment variable with the key of vLLM workers."""


def read_key(variable: str, environment: Mapping[str, str]) -> str:
    """Returns the key in an environment variable; empty if it is not set or empty.

    Raises:
        ValueError: If it holds a character that no HTTP header may hold. The message does not repeat the key.
    """
    key = environment.get(variable, "")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(
            f"{variable} holds white space, a control character or a letter beyond ASCII. Set it to the key "
            "alone, without a line break or quotes."
        )
    return key


def new_key() -> str:
    """Returns a random key of 256 bits."""
    return secrets.token_hex(32)


def with_key(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with a key of workers: its own if it has one, else a new one.

    Raises:
        ValueError: Raised by ``read_key``.
    """
    return {**environment, KEY_VARIABLE: read_key(KEY_VARIABLE, environment) or new_key()}


def stored_key(path: Path) -> str:
    """Returns the key in a file that only this user can read; writes a new one if the file does not exist.

    Raises:
        ValueError: If other users can read the file, it belongs to another user, or it holds no key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # The mode is that of the file from the start: nobody can open it in between.
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w") as file:
            file.write(new_key() + "\n")
    with path.open() as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ValueError(f"{path} can be read or changed by other users. Remove it; a new key is made.")
        key = file.read().strip()
    if not key:
        raise ValueError(f"{path} holds no key. Remove it; a new one is made.")
    return read_key(str(path), {str(path): key})
