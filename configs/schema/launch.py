"""A whole job: machines, launch of workers and trainer, and the assumptions of its plan."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, share


@dataclass(kw_only=True)
class HardwareConfig:
    """One device, with the figures of its data sheet."""

    name: str = "h100"
    """Name of the device in plans."""

    memory_gib: float = 79.6
    """Memory of one GPU as the driver reports it, GiB; on CPU the memory available to one rank."""

    bf16_tflops: float = 989.0
    """Dense bfloat16 matrix products, TFLOP/s."""

    bandwidth_gbps: float = 3350.0
    """Memory bandwidth, GB/s."""

    storage_write_gbps: float = 1.0
    """Rate at which one machine writes to the folder that all machines see, GB/s."""

    storage_read_gbps: float = 5.0
    """Rate at which all machines together read from that folder, GB/s."""

    def __post_init__(self) -> None:
        for name in (
            "memory_gib",
            "bf16_tflops",
            "bandwidth_gbps",
            "storage_write_gbps",
            "storage_read_gbps",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"hardware.{name} must be above 0, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class LaunchConfig:
    """Launch of the trainer. On a machine with GPUs, each of ``rollout.num_workers`` uses
    ``rollout.tensor_parallel_size`` GPUs, and the trainer uses the others."""

    worker_nodes: int = 1
    """Number of nodes that run workers, on all their GPUs (``python -m launch.slurm``)."""

    trainer_port: int = 29500
    """Rendezvous port of the ranks on several nodes."""

    slurm_time: str = "24:00:00"
    """Time limit of the job, in the format of sbatch --time."""

    slurm_grace_seconds: int = 600
    """Seconds before the time limit or a preemption at which the job is asked to stop. Must be long enough
    for a step and a checkpoint."""

    sbatch_args: list[str] = field(default_factory=list)
    """Further options of sbatch, each as --name=value: partition, account, qos, constraint and so on."""

    slurm_prologue: str = ""
    """File whose text the batch script runs before its own commands: modules, a venv, HF_HOME,
    HF_HUB_OFFLINE, variables of NCCL. What it exports reaches every process of the job. Empty: none."""

    container_image: str = ""
    """Image in which the job's steps run (srun --container-image, of the plugin pyxis). Empty: none."""

    container_mounts: list[str] = field(default_factory=list)
    """Folders of the node in the container, each as SRC:DST. Those of the submission, of output_dir, of
    HF_HOME and of the data are needed."""

    accelerate: str = "auto"
    """Name of a file in launch/accelerate, without .yaml, or a path. auto: cpu_zero2 without GPUs, gpu_zero3
    on one node, multinode_zero3 on several."""

    def __post_init__(self) -> None:
        at_least("launch.worker_nodes", self.worker_nodes, 1)
        at_least("launch.trainer_port", self.trainer_port, 1)
        at_least("launch.slurm_grace_seconds", self.slurm_grace_seconds, 1)
        if self.container_mounts and not self.container_image:
            raise ValueError(
                f"launch.container_mounts is {self.container_mounts}, but there is no launch.container_image."
            )
        for mount in self.container_mounts:
            if ":" not in mount or "," in mount:
                raise ValueError(
                    f"launch.container_mounts holds {mount!r}; each must be of the form SRC:DST."
                )


@dataclass(kw_only=True)
class PlanConfig:
    """Assumptions of ``python -m launch.plan``, all printed with the result."""

    calibration: str = ""
    """File of figures of a GPU as python tests/gpu writes it (tests/bench/results_gpu.json). What it measured
    on a model of about this size replaces train_mfu, decode_bandwidth_share, publish_gbps and
    hardware.memory_gib where they have their defaults. Empty: none."""

    mean_question_tokens: int = 256
    """Mean tokens of a problem with its prompt, without system prompt and examples, which are added."""

    max_question_tokens: int = 2048
    """Tokens of the longest problem with its prompt, without system prompt and examples."""

    completion_share: float = 0.5
    """Mean length of a completion, as a share of the limit of a call."""

    solution_share: float = 0.4
    """Mean length of a solution (the part after the thinking), as a share of its limit."""

    train_mfu: float = 0.35
    """Share of hardware.bf16_tflops that the update reaches, communication included."""

    prefill_mfu: float = 0.4
    """Share of hardware.bf16_tflops that a worker reaches when it reads prompts."""

    decode_bandwidth_share: float = 0.6
    """Share of hardware.bandwidth_gbps that a worker reaches when it decodes."""

    worker_activation_gib: float = 4.0
    """Memory of a worker in addition to weights and KV cache, GiB."""

    runtime_gib: float = 3.0
    """Memory of a trainer's GPU for CUDA context, NCCL buffers and allocator fragmentation, GiB."""

    publish_gbps: float = 5.0
    """Rate of publishing on one machine or over a process group: sending the weights once to all workers,
    GB/s. Several machines with rollout.weight_transfer=directory: see hardware.storage_write_gbps."""

    length_sigma: float = 0.8
    """Spread of the lengths of completions: standard deviation of their logarithm. 0: all are as long."""

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
        at_least("plan.length_sigma", self.length_sigma, 0)
        if self.max_question_tokens < self.mean_question_tokens:
            raise ValueError(
                f"plan.max_question_tokens is {self.max_question_tokens}, which is below "
                f"plan.mean_question_tokens = {self.mean_question_tokens}."
            )
        if self.publish_gbps <= 0:
            raise ValueError(f"plan.publish_gbps must be above 0, got {self.publish_gbps}.")
