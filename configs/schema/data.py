"""Where problems come from."""

from dataclasses import dataclass, field
from typing import Any

from configs.schema.checks import at_least, choice


@dataclass(kw_only=True)
class DataConfig:
    """Where problems come from. Each has a question and a gold answer that must parse."""

    source: str = "jsonl"
    """``jsonl`` (data.path), ``hf`` (data.name) or ``reasoning_gym`` (data.task)."""

    path: str | None = None
    """JSONL file with the fields id, question, answer, source (id and source may be missing)."""

    eval_path: str | None = None
    """JSONL file of held-out problems, for evaluation during training."""

    name: str | None = None
    """Data set on the HF hub, or a local data set folder."""

    split: str = "train"
    """Split of data.name that holds the training (or evaluated) problems."""

    eval_split: str | None = None
    """Split of data.name that holds the held-out problems."""

    question_field: str = "question"
    """Field (column) that holds the question."""

    answer_field: str = "answer"
    """Field (column) that holds the gold answer."""

    task: str | None = None
    """Name of a reasoning-gym task with verifiable numeric answers."""

    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of that task, e.g. {min_terms: 4, max_terms: 4}."""

    task_seed: int = 0
    """Seed of the task's generator; independent of the run's seed, so that all seeds share problems."""

    num_train: int = 10000
    """Training problems to generate (reasoning_gym)."""

    num_eval: int = 500
    """Held-out problems: how many to generate, or the most to read from eval_path or eval_split. Evaluating
    a file or a split (``python -m rollout``), the most to take of it. Generated training problems leave
    these out, so another number may change those, too."""

    on_bad_gold: str = "refuse"
    """What to do with a gold answer that does not parse: ``refuse`` the data, or ``drop`` and count."""

    def __post_init__(self) -> None:
        choice("data.source", self.source, ("jsonl", "hf", "reasoning_gym"))
        choice("data.on_bad_gold", self.on_bad_gold, ("refuse", "drop"))
        needed = {"jsonl": "path", "hf": "name", "reasoning_gym": "task"}[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f"data.{needed} must be set when data.source is '{self.source}'.")
        at_least("data.num_train", self.num_train, 1)
        at_least("data.num_eval", self.num_eval, 1)
