"""A whole job: where workers and trainer run, and what its plan assumes."""

from dataclasses import dataclass

from configs.schema.checks import at_least, share


@dataclass(kw_only=True)
class HardwareConfig:
    """One device, by its maker's data sheet."""

    name: str = "h100"

    memory_gib: float = 79.6
    """Memory of one GPU, GiB, as the driver reports it; on CPU that of the machine for one rank."""

    bf16_tflops: float = 989.0
    """Dense bfloat16 matrix products, TFLOP/s."""

    bandwidth_gbps: float = 3350.0
    """Of its memory, GB/s."""

    def __post_init__(self) -> None:
        for name in ("memory_gib", "bf16_tflops", "bandwidth_gbps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"hardware.{name} must be above 0, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class LaunchConfig:
    """How the trainer is launched. On a machine with GPUs each of ``rollout.num_workers`` takes one, and the
    trainer the others."""

    worker_nodes: int = 1
    """Of several nodes, those that run workers, one on each GPU (``python -m launch.slurm``)."""

    trainer_port: int = 29500
    """Where the ranks of several nodes meet."""

    slurm_time: str = "24:00:00"
    """The longest that the job may run, as sbatch --time has it."""

    slurm_grace_seconds: int = 600
    """Before that and before a preemption the job is told to stop; a step and a checkpoint must fit in."""

    accelerate: str = "auto"
    """File in launch/accelerate, without .yaml, or the path of one of your own. auto: cpu_zero2 without
    GPUs, gpu_zero3 on one node, multinode_zero3 on several."""

    def __post_init__(self) -> None:
        at_least("launch.worker_nodes", self.worker_nodes, 1)
        at_least("launch.trainer_port", self.trainer_port, 1)
        at_least("launch.slurm_grace_seconds", self.slurm_grace_seconds, 1)


@dataclass(kw_only=True)
class PlanConfig:
    """``python -m launch.plan``: what it assumes. Every value is shown beside the result."""

    mean_question_tokens: int = 256
    """Tokens of a problem with its prompt, on average."""

    max_question_tokens: int = 2048
    """The longest problem with its prompt, tokens."""

    completion_share: float = 0.5
    """Mean length of a completion, as a share of the most that a call may write."""

    solution_share: float = 0.4
    """Mean length of a solution, the part after thinking, as a share of its limit."""

    train_mfu: float = 0.35
    """Share of hardware.bf16_tflops that the update reaches, communication included."""

    prefill_mfu: float = 0.4
    """Share of hardware.bf16_tflops that a worker reaches in reading prompts."""

    decode_bandwidth_share: float = 0.6
    """Share of hardware.bandwidth_gbps that a worker reaches in decoding."""

    worker_activation_gib: float = 4.0
    """Memory of a worker beside weights and KV cache, GiB."""

    runtime_gib: float = 3.0
    """Of a trainer's GPU: CUDA context, NCCL's buffers and what the allocator cannot use, GiB."""

    publish_gbps: float = 5.0
    """Writing the weights once and reading them on all workers, GB/s."""

    def __post_init__(self) -> None:
        for name in (
            "completion_share",
            "solution_share",
            "train_mfu",
            "prefill_mfu",
            "decode_bandwidth_share",
        ):
            share(f"plan.{name}", getattr(self, name))
            if getattr(self, name) == 0:
                raise ValueError(f"plan.{name} must be above 0.")
        at_least("plan.mean_question_tokens", self.mean_question_tokens, 1)
        at_least("plan.worker_activation_gib", self.worker_activation_gib, 0)
        at_least("plan.runtime_gib", self.runtime_gib, 0)
        if self.max_question_tokens < self.mean_question_tokens:
            raise ValueError(
                f"plan.max_question_tokens is {self.max_question_tokens}, which is below "
                f"plan.mean_question_tokens = {self.mean_question_tokens}."
            )
        if self.publish_gbps <= 0:
            raise ValueError(f"plan.publish_gbps must be above 0, got {self.publish_gbps}.")
