"""Expected seconds of one step, from a device's data sheet and the shares of its peaks that a plan assumes.

Decoding one token for each of B sequences reads all weights and B contexts once. It is bound by memory
(``plan.decode_bandwidth_share`` of the bandwidth), and for large B by matrix products. Collection, update and
publishing run one after another, as in ``train/loop.py``.
"""

from dataclasses import dataclass

from configs.schema import JobConfig
from launch.plan.architecture import Architecture
from launch.plan.memory import WorkerMemory
from launch.plan.workload import Workload, step_flops

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Seconds of the stages of a step, and the bound of decoding."""

    prefill: float
    decode: float
    update: float
    publish: float
    concurrency: int
    """Sequences that one worker decodes at once."""
    bound: str
    """``throughput`` of all workers, or ``longest path``: the time of dependent calls of full length."""

    @property
    def total(self) -> float:
        """Seconds of one step."""
        return self.prefill + self.decode + self.update + self.publish


def step_seconds(
    config: JobConfig, model: Architecture, work: Workload, worker: WorkerMemory, trainer: int, workers: int
) -> StepSeconds:
    """Returns the seconds of one step on ``trainer`` GPUs and ``workers`` workers of one GPU each."""
    plan, hardware = config.plan, config.hardware
    peak = hardware.bf16_tflops * TERA
    concurrency = _concurrency(config, work, worker, workers)
    per_token = token_seconds(config, model, worker, concurrency, work.mean_context)
    throughput = work.decoded / (workers * concurrency) * per_token
    # A lower bound whatever the number of workers: calls of successive rounds wait for one another.
    path = work.rounds * work.call_limit * token_seconds(config, model, worker, 1, work.mean_context)
    matrices = model.layers * model.layer_matrices
    flops = step_flops(config, model, work)
    # 2 FLOPs a parameter and token in prefill; the LM head sees only the last token of a prompt.
    return StepSeconds(
        prefill=2 * matrices * work.prefilled / (workers * peak * plan.prefill_mfu),
        decode=max(throughput, path),
        update=flops / (trainer * peak * plan.train_mfu),
        publish=worker.weights / (plan.publish_gbps * GIGA),
        concurrency=concurrency,
        bound="throughput" if throughput >= path else "longest path",
    )


def token_seconds(
    config: JobConfig, model: Architecture, worker: WorkerMemory, concurrency: int, context: float
) -> float:
    """Returns the seconds in which a worker decodes one token for each of ``concurrency`` sequences."""
    hardware, plan = config.hardware, config.plan
    read = worker.weights + concurrency * context * worker.cache_per_token
    by_memory = read / (hardware.bandwidth_gbps * GIGA * plan.decode_bandwidth_share)
    products = 2 * (model.layers * model.layer_matrices + model.embedding) * concurrency
    by_products = products / (hardware.bf16_tflops * TERA * plan.prefill_mfu)
    return max(by_memory, by_products)


def _concurrency(config: JobConfig, work: Workload, worker: WorkerMemory, workers: int) -> int:
    """Returns the sequences a worker decodes at once: limited by the options, its KV cache, and the calls."""
    rollout = config.rollout
    held = int(worker.tokens / work.mean_context)
    offered = -(-work.number // workers)
    return max(1, min(rollout.max_num_seqs, rollout.max_concurrency // workers, held, offered))
