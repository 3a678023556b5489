"""The cold start: a tiny policy of the Qwen3 architecture and SFT on worked solutions.

For runs on a CPU, for which no pretrained model is small enough. The result is an ordinary HF folder;
``coldstart.json`` beside the weights records its config and data.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from transformers.utils.logging import disable_progress_bar
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from configs.schema import ColdStartConfig, TrainingConfig
from configs.stopping import STOP, leave, resume_command
from rewards.build import gold_checker
from rollout.codec import Codec
from rollout.problems.composed import is_composed
from rollout.problems.loading import load_train
from rollout.prompts import PromptTexts, prompt_texts
from rollout.records import Problem
from train.coldstart.tokenizer import END, MAX_POSITIONS, PAD, SPECIAL_TOKENS, build_tokenizer
from train.coldstart.worked_lists import worked_lists
from train.coldstart.worked_solutions import worked_examples
from train.coldstart.writer import Mix, WorkedExample

RECORD_FILE = "coldstart.json"
FORMAT = 1
"""Incremented when the same config and problems produce a different policy than before."""

HEAD_DIM = 32
"""Smallest head size that vLLM's CPU attention supports."""

_TOKENIZER_EXAMPLES = 4000


def mix_of(config: ColdStartConfig) -> Mix:
    """Returns the shares of the forms of prompt and ways of answering."""
    return Mix(
        solve=config.solve_share,
        refine=config.refine_share,
        glance=config.glance_share,
        copy=config.copy_share,
        solve_again=config.solve_again_share,
        summary=config.summary_share,
    )


def cold_start(
    config: ColdStartConfig,
    problems: Sequence[Problem],
    prompts: PromptTexts,
    output_dir: Path,
    system: str = "",
) -> None:
    """Makes the policy and writes it to ``output_dir``, completely or not at all; no-op if it exists.

    ``prompts`` and ``system`` (``operator.prompts.system``) are what the policy will read.

    Raises:
        FileExistsError: If ``output_dir`` holds files that no cold start wrote.
        ValueError: If a question is not a chain of additions and subtractions.
    """
    if is_done(config, problems, prompts, output_dir, system):
        return
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / RECORD_FILE).is_file():
        raise FileExistsError(f"{output_dir} holds files that no cold start wrote; choose another folder.")
    # Renamed once it is complete, so that a kill never leaves half a policy under the final name.
    partial = output_dir.with_name(f"{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    disable_progress_bar()  # of saving, which takes no time
    set_seed(config.seed)
    count = config.max_steps * config.per_device_train_batch_size
    write = worked_lists if is_composed(problems[0].question) else worked_examples
    examples = list(write(problems, prompts, mix_of(config), count=count, seed=config.seed))
    tokenizer = build_tokenizer(examples[:_TOKENIZER_EXAMPLES], config.vocab_size, system)
    model = build_model(config, tokenizer)
    # Without arguments of the chat template: that of a cold-started policy reads none.
    codec = Codec(tokenizer=tokenizer, system=system)
    train(model, codec, examples, config, scratch=partial / "sft")
    shutil.rmtree(partial / "sft", ignore_errors=True)

    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    record = _record(config, problems, prompts, system) | {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
    }
    (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output_dir, ignore_errors=True)
    partial.rename(output_dir)


def is_done(
    config: ColdStartConfig,
    problems: Sequence[Problem],
    prompts: PromptTexts,
    output_dir: Path,
    system: str = "",
) -> bool:
    """True if ``output_dir`` holds the policy that these arguments of ``cold_start`` produce."""
    file = output_dir / RECORD_FILE
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    return all(found.get(key) == value for key, value in _record(config, problems, prompts, system).items())


def _record(
    config: ColdStartConfig, problems: Sequence[Problem], prompts: PromptTexts, system: str
) -> dict[str, object]:
    texts = dataclasses.asdict(prompts)
    # Left out where there are none, as in the records of policies that were made before they existed.
    before = {"examples": texts.pop("examples"), "system": system}
    texts |= {name: text for name, text in before.items() if text}
    data = json.dumps([texts, [(p.id, p.question) for p in problems]])
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "problems": len(problems),
        "data": hashlib.blake2s(data.encode(), digest_size=16).hexdigest(),
    }


def build_model(config: ColdStartConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Returns a policy with random fp32 weights and tied embeddings."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=HEAD_DIM,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            initializer_range=config.initializer_range,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=SPECIAL_TOKENS.index(END),
            pad_token_id=SPECIAL_TOKENS.index(PAD),
            dtype=torch.float32,
        )
    )


def tokenized(codec: Codec, examples: Sequence[WorkedExample]) -> Dataset:
    """Returns columns ``input_ids`` and ``labels``; only the completion and its end token are in the loss.

    Prompts are encoded as for sampling, and separately from their completions.
    """
    prompts = [list(codec.encode_prompt(example.prompt, example.shots)) for example in examples]
    written = [f"{example.completion}{END}" for example in examples]
    completions = codec.tokenizer(written, add_special_tokens=False).input_ids
    pairs = list(zip(prompts, completions, strict=True))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in pairs],
            # -100 is the label that the loss ignores.
            "labels": [[-100] * len(prompt) + completion for prompt, completion in pairs],
        }
    )


def train(
    model: Qwen3ForCausalLM,
    codec: Codec,
    examples: Sequence[WorkedExample],
    config: ColdStartConfig,
    *,
    scratch: Path,
) -> None:
    """Runs one pass of SFT over ``examples``: a progress bar on stderr, one line of results at the end."""
    arguments = SFTConfig(
        output_dir=str(scratch),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),  # a file would hold the bar's cursor codes
    )
    SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=tokenized(codec, examples),
        processing_class=codec.tokenizer,
    ).train()


def main(config: TrainingConfig, overrides: list[str]) -> None:
    """Makes the policy at ``model.path`` from the run's training problems."""
    try:
        with STOP.at_once(_tell_stopped):
            _make(config)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"train.coldstart: {error}", file=sys.stderr)
        leave(1)  # vLLM, which trl imports, would report more after this line


def _tell_stopped() -> None:
    command = resume_command("train.coldstart")
    print(f"train.coldstart: stopped by {STOP.name}; nothing is saved; start again with: {command}")


def _make(config: TrainingConfig) -> None:
    started = time.monotonic()
    problems = load_train(config.data, gold_checker(config.rewards))
    output_dir = Path(config.model.path)
    prompts, system = prompt_texts(config.operator.prompts), config.operator.prompts.system
    if is_done(config.coldstart, problems, prompts, output_dir, system):
        print(f"{output_dir} already holds the cold-started policy.")
        return
    # The cores that this process may use: a batch system or taskset may grant fewer than there are.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cold_start(config.coldstart, problems, prompts, output_dir, system)
    print(f"The cold-started policy is in {output_dir} ({time.monotonic() - started:.0f} s).")
