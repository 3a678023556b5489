"""An adapter that is published alone is served as the weights that it would be merged into."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes import prompt_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.schema import DataConfig, ModelConfig, RolloutConfig, TrainingConfig
from rollout.engine import RolloutEngine
from rollout.records import Sampling
from train.engine_links import EnginePublisher
from train.model.lora import add_adapters
from train.model.policy import load_model, save_weights
from train.model.weights import PolicyWeights
from train.sharding import Unsharded

pytestmark = pytest.mark.integration

PROMPT = prompt_of(*range(40, 70))
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24, seed=7)


@pytest.fixture(scope="module")
def config(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    return TrainingConfig(
        output_dir=str(tmp_path_factory.mktemp("adapters")),
        model=ModelConfig(path=str(tiny_policy), dtype="float32", lora_r=4, lora_alpha=16),
        data=DataConfig(path="unused.jsonl"),
        rollout=RolloutConfig(
            dtype="float32", kv_cache_gib=1, max_model_len=512, max_completion_length=64, max_lora_rank=8
        ),
    )


@pytest.fixture(scope="module")
def engine(config: TrainingConfig) -> Iterator[RolloutEngine]:
    with RolloutEngine(config.rollout, config.model.path, Path(config.output_dir) / "logs") as engine:
        yield engine


def adapted(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The policy with adapters that change its answers; seed 0: fresh ones, which change nothing."""
    model = load_model(config)
    add_adapters(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if seed and "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def greedy(folder: Path) -> tuple[list[int], list[float]]:
    """Tokens that transformers samples from merged weights, and their log-probs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, logprobs = torch.tensor([PROMPT.ids]), []
    with torch.no_grad():
        for _ in range(GREEDY.max_tokens):
            row = model(ids).logits[0, -1].log_softmax(-1)
            logprobs.append(row.max().item())
            ids = torch.cat([ids, row.argmax().view(1, 1)], dim=1)
    return ids[0, len(PROMPT.ids) :].tolist(), logprobs


def test_tokens_with_an_adapter_served_unmerged_are_those_of_the_merged_weights(
    engine: RolloutEngine, config: TrainingConfig, tmp_path: Path
):
    publisher, seen = EnginePublisher(engine=engine, config=config), []
    for version, seed in ((0, 0), (1, 1), (2, 2)):
        model = adapted(config.model, seed)
        publisher.publish(PolicyWeights(model, Unsharded(), adapter_of=config.model.path), version)
        save_weights(model, Unsharded(), tmp_path / str(seed), is_main=True)
        expected, logprobs = greedy(tmp_path / str(seed))
        (completion,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60, what="a call")
        assert [span.version for span in completion.versions] == [version]
        assert list(completion.token_ids) == expected[: len(completion.token_ids)]
        assert completion.logprobs == pytest.approx(logprobs[: len(completion.logprobs)], abs=1e-3)
        seen.append(completion.token_ids)
    assert len(set(seen)) == 3
    folders = list((Path(config.output_dir) / "weights").iterdir())
    assert [folder.name for folder in folders] == ["version_000002"]
    assert not list(folders[0].glob("model*.safetensors"))


def test_a_worker_that_is_restarted_serves_the_current_adapter(engine: RolloutEngine, config: TrainingConfig):
    publisher = EnginePublisher(engine=engine, config=config)
    publisher.publish(PolicyWeights(adapted(config.model, 3), Unsharded(), adapter_of=config.model.path), 3)
    (before,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60, what="a call")
    assert engine._fleet is not None
    engine._fleet.workers[0].stop()
    engine.run(_restarted(engine), 900, what="a restart")
    (after,) = engine.run(engine.pool.generate(PROMPT, GREEDY), 60, what="a call")
    assert (after.token_ids, after.versions) == (before.token_ids, before.versions)


async def _restarted(engine: RolloutEngine) -> None:
    (endpoint,) = engine.pool.endpoints
    engine.pool.restarter.begin(endpoint)
    await engine.pool.restarter.settled(endpoint)
