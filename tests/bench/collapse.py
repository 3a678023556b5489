"""Experiment: what makes a policy that can answer briefly stop working its answers out.

    python tests/bench/collapse.py --policy FOLDER [--arms base,no_sft,...] [--learning-rate 1e-4]

A tiny policy adds one-digit numbers in a long way (running totals, with a slip in some of the steps) or a
short way (no work). As a solver it is seldom right the short way. As a refiner, it reads four drafts and is
right as often by copying one as by working it out: a short refinement costs nothing, and an instruct model
is in the same place. The policy is made once (``FOLDER``), then each arm trains a copy of it with the
project's own advantages, weights and objective; sampling is plain ``generate`` in this process. One JSON
object per line: arm, seed, step, mean tokens and accuracy of traces and refinements.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen3ForCausalLM, set_seed

from configs.schema import AlgoConfig, ColdStartConfig
from rollout.codec import Codec
from rollout.groups import GroupKey
from rollout.prompts import PromptTexts, join_drafts
from rollout.records import REFINE, TRACE
from train.batch.collate import collate
from train.batch.rows import Branch, Row
from train.coldstart.make import build_model
from train.coldstart.tokenizer import END, build_tokenizer
from train.coldstart.worked_solutions import plausible_error
from train.coldstart.writer import WorkedExample, completion_text, solution_text
from train.loss.advantages import group_advantages
from train.loss.credit import weigh
from train.loss.objective import objective
from train.model.policy import PolicyModel

TEXTS = PromptTexts(
    solve="{question} =\n",
    draft="Draft {number}: {solution}",
    refine="{question} =\n{workspace}\n",
    distil="{question}{drafts}{kappa}",
    verify="{question}{solution}",
    analyse="{question}{solution}",
    analysis="{draft}{analysis}",
)
TERMS, SLIP, DRAFTS = 8, 0.2, 4
"""Terms of a sum; share of the long way's steps that slip; drafts of a workspace."""
RIGHT_EXAMPLES, RIGHT = 0.2, 0.35
"""Share of the drafts that is right: in the examples, and in the training, where it is that of the policy."""
SHORT = {TRACE: 0.05, REFINE: 0.25}
"""Share of short answers in the examples."""
GUESS_ERROR = 6.0
PROBLEMS, GENERATIONS, LONGEST = 16, 8, 64
BASE = {"loss_type": "cispo", "sft_coef": 0.1}
ARMS: dict[str, dict[str, object]] = {
    "base": {},
    "no_sft": {"sft_coef": 0.0},
    "sft_tokens": {"sft_average": "tokens"},
    "unscaled": {"scale_rewards": "none"},
    "batch_scaled": {"scale_rewards": "batch"},
    "negative_0.3": {"negative": 0.3},
    "kl_0.1": {"beta": 0.1},
    "warmup_10": {"warmup_steps": 10},
    "traces_only": {"operator_fraction": 0.0},
    "grpo": {"loss_type": "grpo", "sft_coef": 0.0, "epsilon_high": 0.28},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt with its gold answer and the terms that it adds up."""

    role: str
    question: str
    prompt: str
    gold: int
    terms: tuple[int, ...]
    drafts: tuple[int, ...] = ()


def draw_task(role: str, rng: random.Random, share_right: float = RIGHT) -> Task:
    terms = tuple(rng.randint(0, 9) for _ in range(TERMS))
    question, gold = " + ".join(map(str, terms)), sum(terms)
    if role == TRACE:
        return Task(role=role, question=question, prompt=TEXTS.solve_text(question), gold=gold, terms=terms)
    drafts = tuple(gold if rng.random() < share_right else plausible_error(gold, rng) for _ in range(DRAFTS))
    workspace = join_drafts(TEXTS.draft_texts([solution_text(draft) for draft in drafts]))
    prompt = TEXTS.refine_text(question, workspace)
    return Task(role=role, question=question, prompt=prompt, gold=gold, terms=terms, drafts=drafts)


def worked(task: Task, rng: random.Random) -> str:
    """Returns an example completion: short with the share ``SHORT``, else running totals with slips."""
    if rng.random() < SHORT[task.role]:
        guess = task.drafts[0] if task.drafts else task.gold + round(rng.gauss(0, GUESS_ERROR))
        return completion_text("", solution_text(guess))
    total, shown = task.terms[0], []
    for term in task.terms[1:]:
        total += term + (rng.choice((-1, 1)) if rng.random() < SLIP else 0)
        shown.append(f"+ {term} = {total}")
    return completion_text("\n".join(shown), solution_text(total))


def make_policy(folder: Path, steps: int) -> None:
    """Trains the initial policy on worked examples and saves it; no-op if it exists."""
    if (folder / "config.json").is_file():
        return
    set_seed(0)
    rng = random.Random(0)
    config = ColdStartConfig(
        hidden_size=96,
        num_attention_heads=3,
        num_key_value_heads=3,
        num_hidden_layers=3,
        intermediate_size=256,
    )
    tasks = [draw_task(rng.choice((TRACE, REFINE)), rng, RIGHT_EXAMPLES) for _ in range(48 * steps)]
    examples = [
        WorkedExample(
            problem_id="", form=t.role, way="", prompt=t.prompt, completion=worked(t, rng), is_correct=True
        )
        for t in tasks
    ]
    tokenizer = build_tokenizer(examples[:2000], config.vocab_size)
    model = build_model(config, tokenizer)
    codec = Codec(tokenizer=tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        part = examples[48 * step : 48 * (step + 1)]
        prompts = [codec.encode_prompt(e.prompt) for e in part]
        answers = [codec.encode(f"{e.completion}{END}") for e in part]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids, labels = torch.zeros(48, width, dtype=torch.long), torch.full((48, width), -100)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, : len(p) + len(a)] = torch.tensor([*p, *a])
            labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"policy: step {step + 1}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def sample(model: PreTrainedModel, codec: Codec, tasks: Sequence[Task]) -> list[Row]:
    """Returns a row for each task, with ``GENERATIONS`` completions at temperature 1."""
    pad = codec.tokenizer.pad_token_id
    rows: list[Row] = []
    prompts = [codec.encode_prompt(task.prompt) for task in tasks]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(tasks), width), pad)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
    ids = ids.repeat_interleave(GENERATIONS, 0)
    made = model.generate(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=LONGEST,
        use_cache=True,
        pad_token_id=pad,
    )[:, width:]
    for place, (task, prompt) in enumerate(zip(tasks, prompts, strict=True)):
        branches = []
        for n, completion in enumerate(made[place * GENERATIONS : (place + 1) * GENERATIONS].tolist()):
            end = next((i + 1 for i, t in enumerate(completion) if t in codec.end_ids), len(completion))
            kept = np.asarray(completion[:end])
            boxed = re.findall(r"\\boxed\{(-?\d+)\}", codec.decode(completion[:end]))
            is_right = bool(boxed) and int(boxed[-1]) == task.gold
            branches.append(
                Branch(
                    call_id=f"{place}.{n}",
                    role=task.role,
                    is_positive=is_right,
                    reward=1.0 if is_right else -1.0,
                    completion_ids=kept,
                    sampler_logprobs=np.zeros(end, dtype=np.float32),
                    train_mask=np.ones(end, dtype=bool),
                    advantages=np.zeros(end),
                )
            )
        key = GroupKey(problem_id=f"{place}", role=task.role, round=0, context=f"{place}")
        rows.append(Row(key=key, prompt_ids=np.asarray(prompt), branches=tuple(branches)))
    return rows


def credited(rows: Sequence[Row], algo: AlgoConfig, negative: float) -> list[Row]:
    """Returns the rows with advantages; those below 0 are multiplied by ``negative``."""
    result = []
    for role in (TRACE, REFINE):
        of_role = [row for row in rows if row.branches[0].role == role]
        rewards = [[b.reward for b in row.branches] for row in of_role]
        for row, advantages in zip(
            of_role, group_advantages(rewards, scale_rewards=algo.scale_rewards), strict=True
        ):
            weighted = np.where(advantages < 0, negative * advantages, advantages)
            branches = tuple(
                replace(b, advantages=np.full(len(b.completion_ids), a))
                for b, a in zip(row.branches, weighted, strict=True)
            )
            result.append(replace(row, branches=branches))
    return result


def run(folder: Path, arm: str, seed: int, steps: int, learning_rate: float) -> None:
    """Trains one arm and prints a line per step."""
    options = {**BASE, "learning_rate": learning_rate, **ARMS[arm]}
    negative = float(str(options.pop("negative", 1.0)))
    warmup = int(str(options.pop("warmup_steps", 0)))
    algo = AlgoConfig(**options)  # type: ignore[arg-type]
    set_seed(seed)
    rng = random.Random(f"tasks {seed}")
    codec = Codec(tokenizer=AutoTokenizer.from_pretrained(folder))
    model, frozen = (Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    policy, reference = PolicyModel(model, temperature=1.0), PolicyModel(frozen, temperature=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=algo.learning_rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        started = time.monotonic()
        share = algo.operator_fraction
        roles = [REFINE] * round(2 * PROBLEMS * share) + [TRACE] * round(2 * PROBLEMS * (1 - share))
        rows = sample(model, codec, [draw_task(role, rng) for role in roles])
        if not share:  # refinements are measured, not trained
            measured = sample(model, codec, [draw_task(REFINE, rng) for _ in range(PROBLEMS)])
        else:
            measured = []
        record: dict[str, object] = {"arm": arm, "learning_rate": learning_rate, "seed": seed, "step": step}
        for role in (TRACE, REFINE):
            of_role = [b for row in (*rows, *measured) for b in row.branches if b.role == role]
            record[f"tokens/{role}"] = round(float(np.mean([len(b.completion_ids) for b in of_role])), 1)
            record[f"accuracy/{role}"] = round(float(np.mean([b.is_positive for b in of_role])), 3)
            record[f"short/{role}"] = round(float(np.mean([len(b.completion_ids) < 16 for b in of_role])), 3)
        for group in optimizer.param_groups:
            group["lr"] = algo.learning_rate * min(1.0, step / warmup if warmup else 1.0)
        update(policy, reference, optimizer, credited(rows, algo, negative), algo)
        print(json.dumps({**record, "seconds": round(time.monotonic() - started, 2)}), flush=True)


def update(
    policy: PolicyModel,
    reference: PolicyModel,
    optimizer: torch.optim.Optimizer,
    rows: list[Row],
    algo: AlgoConfig,
) -> None:
    """Makes one optimizer step on the whole batch."""
    weighted = weigh(rows, algo, max_completion_length=LONGEST)
    apart = [replace(row, branches=(branch,)) for row in weighted for branch in row.branches]
    apart.sort(key=lambda row: row.num_tokens)
    for start in range(0, len(apart), 64):
        batch = collate(apart[start : start + 64], roles=[TRACE, REFINE])
        logprobs, entropies, _ = policy(batch)
        # Sampler and trainer are the same network here, so the ratio is 1 in value.
        batch = replace(batch, sampler_logprobs=logprobs.detach())
        if algo.beta:
            with torch.no_grad():
                batch = replace(batch, ref_logprobs=reference(batch)[0])
        objective(batch, logprobs, entropies, algo)[0].backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), algo.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cold-steps", type=int, default=450)
    options = parser.parse_args()
    make_policy(options.policy, options.cold_steps)
    for arm in options.arms.split(","):
        for seed in range(options.seeds):
            run(options.policy, arm, seed, options.steps, options.learning_rate)


if __name__ == "__main__":
    main()
