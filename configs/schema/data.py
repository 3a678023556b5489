"""The source of the problems."""

from dataclasses import dataclass, field
from typing import Any

from configs.schema.checks import at_least, choice


@dataclass(kw_only=True)
class DataConfig:
    """The source of the problems. Each has a question and a gold answer that must parse."""

    source: str = "file"
    """``file`` (data.path), ``hf`` (data.name) or ``reasoning_gym`` (data.task)."""

    path: str | None = None
    """File of problems: JSON lines, a JSON array, CSV or Parquet; the first three may be gzipped. Optional
    columns are id and source."""

    eval_path: str | None = None
    """File of held-out problems, for evaluation during training."""

    name: str | None = None
    """Data set on the HF hub, or a local data set folder."""

    subset: str | None = None
    """Configuration of a data set on the hub that has several, e.g. main for openai/gsm8k."""

    split: str = "train"
    """Split of data.name that holds the training (or evaluated) problems."""

    eval_split: str | None = None
    """Split of data.name that holds the held-out problems."""

    question_field: str | None = None
    """Column that holds the question: text, or a chat with one turn of the user. A dot leads into a table.
    null: the first of question, problem, prompt, query, instruction, messages, conversations, input."""

    answer_field: str | None = None
    """Column that holds the gold answer, or a solution with a box or a line ####. null: the first of answer,
    final_answer, expected_answer, ground_truth, gold, target, reward_model.ground_truth, extra_info.answer,
    solution, output, response; else the last turn of messages."""

    task: str | None = None
    """Name of a reasoning-gym task with verifiable numeric answers."""

    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of that task, e.g. {min_terms: 4, max_terms: 4}; one by one: data.task_options.min_terms=4."""

    num_parts: int = 1
    """Problems of that task that one generated question asks for; it is right only if every part is. At most
    26."""

    task_seed: int = 0
    """Seed of the task's generator; independent of the run's seed, so that all runs share the problems."""

    num_train: int = 10000
    """Training problems to generate (reasoning_gym)."""

    num_held_out: int = 500
    """Held-out problems to generate (reasoning_gym). They are excluded from the training problems, so
    changing this number may change those, too."""

    num_eval: int = 500
    """Number of held-out problems that a training evaluates on: the first of eval_path, of eval_split or of
    the generated ones. Does not affect the training problems."""

    limit: int | None = None
    """Number of problems that ``python -m rollout`` evaluates: the first of path, of split or of the
    generated held-out ones. null: all."""

    on_bad_gold: str = "refuse"
    """Handling of gold answers that do not parse: ``refuse`` the data, or ``drop`` and count them."""

    def __post_init__(self) -> None:
        choice("data.source", self.source, ("file", "hf", "reasoning_gym"))
        choice("data.on_bad_gold", self.on_bad_gold, ("refuse", "drop"))
        needed = {"file": "path", "hf": "name", "reasoning_gym": "task"}[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f"data.{needed} must be set when data.source is '{self.source}'.")
        at_least("data.num_parts", self.num_parts, 1)
        if self.num_parts > 1 and self.source != "reasoning_gym":
            raise ValueError(
                f"data.num_parts is {self.num_parts}, but data.source is '{self.source}': only generated "
                "problems (data.source=reasoning_gym) are composed of parts."
            )
        if self.num_parts > 26:
            raise ValueError(f"data.num_parts is {self.num_parts}; parts are named a to z, so at most 26.")
        at_least("data.num_train", self.num_train, 1)
        at_least("data.num_held_out", self.num_held_out, 1)
        at_least("data.num_eval", self.num_eval, 1)
        if self.limit is not None:
            at_least("data.limit", self.limit, 1)

    def check_training(self) -> None:
        """Checks the options that only a training uses.

        Raises:
            ValueError: If ``num_eval`` exceeds the number of held-out problems, or ``limit`` is set.
        """
        if self.limit is not None:
            raise ValueError(
                f"data.limit is {self.limit}, but it is for evaluations (python -m rollout). A training "
                "uses all of a file or split. For fewer problems set data.num_train (generated ones) or "
                "data.num_eval (held-out ones)."
            )
        self._check_held_out("num_eval", self.num_eval)

    def check_evaluation(self) -> None:
        """Checks the options that only an evaluation uses.

        Raises:
            ValueError: If ``limit`` exceeds the number of held-out problems.
        """
        self._check_held_out("limit", self.limit or 0)

    def _check_held_out(self, name: str, wanted: int) -> None:
        if self.source == "reasoning_gym" and wanted > self.num_held_out:
            raise ValueError(
                f"data.{name} is {wanted}, but only data.num_held_out = {self.num_held_out} problems are "
                f"held out of training. Lower data.{name}, or raise data.num_held_out."
            )
