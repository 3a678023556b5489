"""Expected seconds of one step, from a device's data sheet and the shares of its peaks that a plan assumes.

Decoding one token for each of B sequences reads all weights and B contexts once. It is bound by memory
(``plan.decode_bandwidth_share`` of the bandwidth), and for large B by matrix products. Collection, update and
publishing run one after another, as in ``train/loop.py``; with ``collect.max_staleness`` collection overlaps.
"""

from dataclasses import dataclass

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
    # A lower bound whatever the number of workers: calls of successive rounds wait for one another.
    path = work.rounds * work.call_limit * token_seconds(config, model, worker, 1, work.mean_context)
    matrices = model.layers * model.layer_matrices
    flops = step_flops(config, model, work)
    # 2 FLOPs a parameter and token in prefill; the LM head sees only the last token of a prompt.
    return StepSeconds(
        prefill=2 * matrices * work.prefilled / (gpus * peak * plan.prefill_mfu),
        decode=max(throughput, path),
        update=flops / (trainer * peak * plan.train_mfu),
        publish=worker.weights * each / (plan.publish_gbps * GIGA),
        concurrency=concurrency,
        bound="throughput" if throughput >= path else "longest path",
        throughput=throughput,
        max_staleness=config.collect.max_staleness,
    )


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
