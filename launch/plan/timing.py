"""Expected seconds of one step, from a device's data sheet and the shares of its peaks that a plan assumes.

Decoding one token for each of B sequences reads all weights and B contexts once. It is bound by memory
(``plan.decode_bandwidth_share`` of the bandwidth), and for large B by matrix products. Collection, update and
publishing run one after another, as in ``train/loop.py``; with ``collect.max_staleness`` collection overlaps.

Stragglers: lengths are log-normal with the mean of the calls and ``plan.length_sigma``, cut at the limit of a
call. The longest of a stage is the expected largest of its number; what it is longer than the mean is decoded
while half of the sequences of a worker have ended. A batch that is collected ahead hides this.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from configs.schema import JobConfig
from launch.plan.architecture import Architecture
from launch.plan.flops import step_flops
from launch.plan.memory import WorkerMemory
from launch.plan.workload import Workload

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of the stages of a step, and the bound of decoding.

    With ``max_staleness`` 0 the stages follow one another. Above 0 batches are collected while the trainer
    updates; workers pause while weights are published.
    """

    prefill: float
    decode: float
    update: float
    publish: float
    concurrency: int
    """Sequences that one worker decodes at once."""
    bound: str
    """``throughput`` of all workers, or ``longest path``: the time of dependent calls of full length."""
    throughput: float
    """Seconds in which the workers decode one batch if they are never idle."""
    stragglers: float = 0.0
    """Part of ``decode`` in which workers wait with few sequences for the longest ones."""
    max_staleness: int = 0
    """Number of steps that collection runs ahead."""

    @property
    def total(self) -> float:
        """Seconds of one step, once collection runs ahead."""
        return self.publish + max(self._limits.values())

    @property
    def limit(self) -> str:
        """What a step waits for: ``the stages, one after another``, ``the workers`` or ``the trainer``."""
        return max(self._limits, key=self._limits.__getitem__)

    @property
    def _limits(self) -> dict[str, float]:
        """Lower bounds of a step's seconds without publishing; the largest holds."""
        # A batch is begun ``max_staleness`` steps before its use: its collection and update span that many
        # steps and its own. Without staleness this is their sum, which exceeds the other two.
        chain = (self.prefill + self.decode + self.update) / (self.max_staleness + 1)
        return {
            "the stages, one after another": chain,
            "the workers": self.prefill + self.throughput,
            "the trainer": self.update,
        }


def step_seconds(
    config: JobConfig, model: Architecture, work: Workload, worker: WorkerMemory, trainer: int, gpus: int
) -> StepSeconds:
    """Returns the seconds of one step on ``trainer`` GPUs and ``gpus`` GPUs of workers."""
    plan, hardware = config.plan, config.hardware
    each = config.rollout.tensor_parallel_size if config.gpus else 1
    workers = gpus // each
    peak = hardware.bf16_tflops * TERA
    concurrency = _concurrency(config, work, worker, workers)
    per_token = token_seconds(config, model, worker, concurrency, work.mean_context)
    throughput = work.decoded / (workers * concurrency) * per_token
    extra = straggler_tokens(work, plan.length_sigma)
    waiting = extra * token_seconds(config, model, worker, max(1, concurrency // 2), work.mean_context)
    # A lower bound whatever the number of workers: calls of successive rounds wait for one another.
    longest = work.mean_completion * work.rounds + extra
    path = longest * token_seconds(config, model, worker, 1, work.mean_context)
    matrices = model.layers * model.layer_matrices
    flops = step_flops(config, model, work)
    # 2 FLOPs a parameter and token in prefill; the LM head sees only the last token of a prompt.
    return StepSeconds(
        prefill=2 * matrices * work.prefilled / (gpus * peak * plan.prefill_mfu),
        decode=max(throughput + waiting, path),
        update=flops / (trainer * peak * plan.train_mfu),
        publish=publish_seconds(config, worker.weights * each, gpus),
        concurrency=concurrency,
        bound="throughput" if throughput + waiting >= path else "longest path",
        throughput=throughput,
        stragglers=waiting,
        max_staleness=config.collect.max_staleness,
    )


def publish_seconds(config: JobConfig, weights: float, gpus: int) -> float:
    """Returns the seconds in which ``weights`` bytes reach the workers, which have ``gpus`` GPUs.

    Several machines meet in a shared folder: one writes it, and each machine with workers reads it once,
    since its workers share the machine's page cache.
    """
    if config.nodes == 1 or config.rollout.weight_transfer != "directory":
        return weights / (config.plan.publish_gbps * GIGA)
    hardware, machines = config.hardware, math.ceil(gpus / config.gpus)
    written = weights / (hardware.storage_write_gbps * GIGA)
    return written + machines * weights / (hardware.storage_read_gbps * GIGA)


def straggler_tokens(work: Workload, sigma: float) -> float:
    """Returns the tokens by which the longest chain of dependent calls exceeds one of mean length.

    The chains of a step end with its last calls, whose longest is that of all of them; before that a chain
    waits in each round for the longest of its own group.
    """
    *before, last = work.calls
    own = [longest_of(c.per_context, c.completion, work.call_limit, sigma) - c.completion for c in before]
    rounds = sorted(own)[-(work.rounds - 1) :] if work.rounds > 1 else []
    final = longest_of(last.number, last.completion, work.call_limit, sigma) - last.completion
    return sum(rounds) + final


def longest_of(number: int, mean: float, limit: int, sigma: float) -> float:
    """Returns the expected longest of ``number`` log-normal lengths with this mean, cut at ``limit``."""
    if number < 2 or not sigma:
        return float(mean)
    # The usual approximation of the largest of n: their quantile n / (n + 1), here of a log-normal.
    place = NormalDist().inv_cdf(number / (number + 1))
    return float(min(limit, max(mean, mean * math.exp(sigma * place - sigma**2 / 2))))


def token_seconds(
    config: JobConfig, model: Architecture, worker: WorkerMemory, concurrency: int, context: float
) -> float:
    """Returns the seconds in which a worker decodes one token for each of ``concurrency`` sequences."""
    hardware, plan = config.hardware, config.plan
    gpus = config.rollout.tensor_parallel_size if config.gpus else 1  # ``worker`` is one of them
    read = worker.weights + concurrency * context * worker.cache_per_token
    by_memory = read / (hardware.bandwidth_gbps * GIGA * plan.decode_bandwidth_share)
    products = 2 * (model.layers * model.layer_matrices + model.embedding) * concurrency
    by_products = products / (gpus * hardware.bf16_tflops * TERA * plan.prefill_mfu)
    return max(by_memory, by_products)


def _concurrency(config: JobConfig, work: Workload, worker: WorkerMemory, workers: int) -> int:
    """Returns the sequences a worker decodes at once: limited by the options, its KV cache, and the calls.

    Batches that are collected ahead decode side by side.
    """
    rollout = config.rollout
    held = int(worker.tokens / work.mean_context)
    offered = -(-work.number * (config.collect.max_staleness + 1) // workers)
    return max(1, min(rollout.max_num_seqs, rollout.max_concurrency // workers, held, offered))
