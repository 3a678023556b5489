"""TRL's own trainer as the oracle: its collation, its log-probs, its advantages, its loss."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from training_fakes import make_group
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rollout.groups import Group, Sample
from rollout.records import TRACE

NUM_GENERATIONS = 4
MAX_COMPLETION_LENGTH = 32


def load_sharpened(folder: Path) -> PreTrainedModel:
    """The tiny policy, with log-probs, ratios and clips that vary from token to token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def sampled_nearly_by(model: PreTrainedModel, groups: list[Group], *, noise: float) -> list[Group]:
    """The groups with sampler log-probs that differ from the model's by normal noise."""
    rng = random.Random(1)
    return [
        replace(
            group, samples=tuple(_sampled_nearly_by(model, sample, rng, noise) for sample in group.samples)
        )
        for group in groups
    ]


def _sampled_nearly_by(model: PreTrainedModel, sample: Sample, rng: random.Random, noise: float) -> Sample:
    prompt, completion = sample.call.prompt_ids, sample.call.completion_ids
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)[range(len(completion)), completion].tolist()
    noisy = tuple(logprob + rng.gauss(0, noise) for logprob in logprobs)
    return replace(sample, call=replace(sample.call, sampler_logprobs=noisy))


def ragged_groups(seed: int) -> list[Group]:
    """Prompts and completions of many lengths, one role, forced tokens; the reward is not constant."""
    rng = random.Random(seed)
    groups: list[Group] = []
    while len(groups) < 3:
        lengths = [rng.randint(1, 12) for _ in range(NUM_GENERATIONS)]
        group = make_group(
            rng, role=TRACE, prompt=rng.randint(2, 20), lengths=lengths, forced=True, name=str(len(groups))
        )
        if len({sample.reward for sample in group.samples}) > 1:
            groups.append(group)
    return groups


class Oracle:
    """A real trainer whose rollouts are the given groups."""

    def __init__(self, folder: Path, groups: list[Group], output: Path, **options: Any) -> None:
        """``options`` are ``GRPOConfig``'s."""
        self._samples = [sample for group in groups for sample in group.samples]
        from trl import GRPOConfig, GRPOTrainer  # takes five seconds, and vLLM with it

        config = GRPOConfig(
            output_dir=str(output),
            per_device_train_batch_size=len(self._samples),
            num_generations=NUM_GENERATIONS,
            max_completion_length=MAX_COMPLETION_LENGTH,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            **options,
        )
        self.trainer = GRPOTrainer(
            model=load_sharpened(folder),
            reward_funcs=lambda prompts, **_: [sample.reward for sample in self._samples],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "x"}] * len(self._samples)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            rollout_func=self._rollouts,
        )

    def _rollouts(self, prompts: list[str], trainer: Any) -> dict[str, list[list]]:
        calls = [sample.call for sample in self._samples]
        return {
            "prompt_ids": [list(call.prompt_ids) for call in calls],
            "completion_ids": [list(call.completion_ids) for call in calls],
            "logprobs": [list(call.sampler_logprobs) for call in calls],
            "env_mask": [[int(kept) for kept in call.train_mask] for call in calls],
        }

    def loss(
        self,
        *,
        sampler_as_old: bool = True,
        corrects_mismatch: bool = False,
        before_loss: Callable[[PreTrainedModel], None] | None = None,
    ) -> torch.Tensor:
        """TRL's loss of the batch.

        Args:
            sampler_as_old: Use the sampler's log-probs as the old ones, where TRL would use its own.
            corrects_mismatch: Let TRL take the samples for vLLM's, and weigh them by the mismatch.
            before_loss: Moves the model between TRL's old log-probs and its loss.
        """
        trainer = self.trainer
        trainer.use_vllm = corrects_mismatch
        trainer._last_loaded_step = trainer.state.global_step  # No engine whose weights to sync.
        inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(self._samples))
        if sampler_as_old:
            sampler = [torch.tensor(sample.call.sampler_logprobs) for sample in self._samples]
            inputs["old_per_token_logps"] = torch.nn.utils.rnn.pad_sequence(sampler, batch_first=True)
        if before_loss is not None:
            before_loss(trainer.model)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer.compute_loss(trainer.model, inputs)
