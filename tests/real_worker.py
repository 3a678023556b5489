"""What tests against a real vLLM worker share: prompts, sampling, and the log-probs that are expected."""

from pathlib import Path

import torch
from fakes import prompt_of
from tiny import byte_tokenizer
from transformers import AutoModelForCausalLM

from configs.compose import load
from configs.schema import RolloutConfig
from rollout.build import build_operator, policy_settings
from rollout.codec import Codec
from rollout.engine import RolloutEngine
from rollout.operators import Operator
from rollout.policy_settings import PolicySettings
from rollout.records import Completion, Prompt, Sampling

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=16, seed=7)
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=16, seed=7)
PROMPT = prompt_of(*range(40, 70))


def sampling_settings(engine: RolloutEngine, config: RolloutConfig) -> PolicySettings:
    """Settings of the default operator's calls, at the engine's workers."""
    operator = load("training", ["model.path=x", "data.path=x"]).operator
    return policy_settings(operator, config, engine.pool, Codec(tokenizer=byte_tokenizer()))


def built_operator(*overrides: str) -> Operator:
    """The operator that a training with these overrides has."""
    config = load("training", ["model.path=x", "data.path=x", *overrides])
    return build_operator(config.operator)


def expected_logprobs(folder: Path, completion: Completion, prompt: Prompt = PROMPT) -> torch.Tensor:
    """Log-probs of a completion's tokens under the model in ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*prompt.ids, *completion.token_ids]])
    logits = model(ids).logits[0, len(prompt.ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt.ids) :, None])[:, 0]
