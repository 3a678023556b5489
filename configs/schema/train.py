"""The training loop."""

from dataclasses import dataclass, field

from configs.schema.checks import at_least, choice

SHARE_FROM = 0.1
"""A group shares its prompt if that saves at least this share of its tokens. Below it, attending to each
completion by itself costs more than it saves. The trainer packs by it, and ``launch.plan`` counts with it."""

HEAD_CHUNK_BYTES = 512 * 2**20
"""Bytes of fp32 logits that go through the LM head at once. Used by the trainer and by ``launch.plan``."""


@dataclass(kw_only=True)
class TrainConfig:
    """The loop: how long, how it is watched, what is kept."""

    max_steps: int = 100
    """Steps: one collected batch and its updates each."""

    save_steps: int = 20
    """Checkpoint every this many steps, and at the end."""

    keep_last: int = 2
    """Checkpoints kept."""

    keep_best: str = ""
    """Keep, besides, the checkpoint in which this metric was highest, e.g. eval/pdr. Empty: none."""

    eval_steps: int = 0
    """Evaluate every this many steps; 0: only as eval_at_start and eval_at_end say."""

    eval_at_start: bool = True
    eval_at_end: bool = True

    eval_operators: list[str] = field(default_factory=lambda: ["trace", "pdr"])
    """Operators to evaluate, by the name of their file in configs/operator."""

    eval_samples: int = 1
    """Rollouts per held-out problem and operator."""

    tokens_per_micro_batch: int = 8192
    """Padded tokens in one forward pass of one rank."""

    packing: str = "shared"
    """shared: a prompt runs once for all its completions, where that pays and the model allows it. padded:
    each completion is a row with a prompt of its own; the same results, several times as slow."""

    trace_steps: int = 1
    """Write groups/step_N.jsonl, which python -m train.explain reads, every this many steps; 0: never."""

    trace_limit_mib: int = 2048
    """MiB that groups/ may take: the oldest steps are removed beyond it."""

    report_to: list[str] = field(default_factory=list)
    """Trackers: [] or [wandb]. Without a key wandb runs offline; it never asks."""

    collective_timeout_seconds: float = 3600.0
    """The longest that a rank waits for the others (rollouts and evaluation included)."""

    num_threads: int = 1
    """Torch threads per rank on CPU."""

    def __post_init__(self) -> None:
        at_least("train.max_steps", self.max_steps, 1)
        at_least("train.save_steps", self.save_steps, 1)
        at_least("train.keep_last", self.keep_last, 1)
        if self.keep_best:
            self._check_keep_best()
        at_least("train.eval_samples", self.eval_samples, 1)
        at_least("train.trace_steps", self.trace_steps, 0)
        at_least("train.trace_limit_mib", self.trace_limit_mib, 1)
        choice("train.packing", self.packing, ("shared", "padded"))
        for tracker in self.report_to:
            choice("train.report_to", tracker, ("wandb",))

    def _check_keep_best(self) -> None:
        measured = [f"eval/{name}" for name in self.eval_operators]
        if self.keep_best not in measured:
            raise ValueError(f"train.keep_best is '{self.keep_best}'; choose one of {', '.join(measured)}.")
        if not self.eval_steps or self.save_steps % self.eval_steps:
            raise ValueError(
                f"train.keep_best is '{self.keep_best}', but checkpoints (every train.save_steps = "
                f"{self.save_steps}) are not all evaluated (every train.eval_steps = {self.eval_steps}): "
                "set eval_steps so that it divides save_steps."
            )
