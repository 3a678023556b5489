"""A key is made for a run, kept where only its user can read it, and never shown."""

import os
import stat
from pathlib import Path

import pytest

from rollout.endpoints.keys import new_key, read_key, stored_key, with_key


def test_a_key_is_random_and_long():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100 and {len(key) for key in keys} == {64}


def test_an_environment_keeps_its_key_and_gets_one_if_it_has_none():
    assert with_key({"VLLM_API_KEY": "mine", "A": "b"}) == {"VLLM_API_KEY": "mine", "A": "b"}
    for without in ({}, {"VLLM_API_KEY": ""}):
        assert len(with_key(without)["VLLM_API_KEY"]) == 64


@pytest.mark.parametrize("key", ["two words", "line\n", "\x7f", "schlüssel", "nul\0"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str):
    with pytest.raises(ValueError, match="VLLM_API_KEY holds white space") as error:
        read_key("VLLM_API_KEY", {"VLLM_API_KEY": key})
    assert key not in str(error.value)


def test_a_stored_key_is_for_this_user_alone_and_stays_the_same(tmp_path: Path):
    path = tmp_path / "new" / "key"
    before = os.umask(0)  # the most generous
    try:
        key = stored_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 64 and stored_key(path) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_stored_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int):
    path = tmp_path / "key"
    key = stored_key(path)
    path.chmod(mode)
    with pytest.raises(ValueError, match=r"key can be read or changed by other users\. Remove it") as error:
        stored_key(path)
    assert key not in str(error.value)


def test_an_empty_file_is_no_key(tmp_path: Path):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    with pytest.raises(ValueError, match="holds no key"):
        stored_key(path)
