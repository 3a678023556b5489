"""Shared fixtures: a tiny random policy on disk, and one real vLLM worker for all integration tests."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from configs.compose import load, resolve
from configs.schema import RolloutConfig

if TYPE_CHECKING:  # every process of a parallel run loads this file: torch is left to those that need it
    from rollout.engine import RolloutEngine

# No test asserts a time: on a loaded machine any example may take long.
settings.register_profile("repository", deadline=None)
settings.load_profile("repository")

REPO = Path(__file__).parents[1]
SHARED_DATA = REPO.parent / "shared" / "data"


@functools.cache
def _composed(command: str, base: tuple[str, ...]) -> DictConfig:
    return OmegaConf.structured(load(command, list(base)))


def config_with(command: str, base: Sequence[str], overrides: Sequence[str]) -> Any:
    """As ``load``, for overrides that choose no group file: ``base`` is composed once, as that takes long."""
    return resolve(OmegaConf.merge(_composed(command, tuple(base)), OmegaConf.from_dotlist(list(overrides))))


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HF folder with a random policy and a byte tokenizer."""
    from tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rollout_config() -> RolloutConfig:
    return RolloutConfig(
        max_completion_length=24, max_model_len=768, dtype="float32", kv_cache_gib=1, max_num_seqs=64
    )


@pytest.fixture(scope="session")
def engine(
    tiny_policy: Path, rollout_config: RolloutConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["RolloutEngine"]:
    """One real vLLM worker, shared by the whole run; tests that kill it leave it restarted."""
    from rollout.engine import RolloutEngine

    with RolloutEngine(rollout_config, str(tiny_policy), tmp_path_factory.mktemp("logs")) as engine:
        yield engine
