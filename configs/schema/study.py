"""A study: several trainings that are compared with one another."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import above, at_least


@dataclass(kw_only=True)
class ArmConfig:
    """One training of a study, repeated with every seed."""

    name: str = MISSING
    """Name of its row in the table and of its folder."""

    start: str = ""
    """Name of the arm whose last policy (of the same seed) it starts from. Empty: the cold start."""

    overrides: list[str] = field(default_factory=list)
    """Its own overrides, as on the command line of ``python -m train``."""


@dataclass(kw_only=True)
class StudyConfig:
    """``python -m train.study``"""

    output_dir: str = "outputs/study"
    """Folder of the study. Parts that are done already are skipped."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; every arm is trained once with each."""

    accelerate: str = "cpu_zero2"
    """Name of the file in launch/accelerate that trainings are launched with."""

    training: list[str] = field(default_factory=list)
    """Overrides of all trainings and of the cold start."""

    evaluation: list[str] = field(default_factory=list)
    """Overrides of ``python -m rollout``, which evaluates the last policy of every arm."""

    arms: list[ArmConfig] = field(default_factory=list)
    """The arms; each comes after the one that it starts from."""

    differences: list[list[str]] = field(default_factory=list)
    """Pairs of arms (or ``cold start``) whose paired differences are reported."""

    stage_timeout_seconds: float = 86_400.0
    """Time limit of one training, export or evaluation."""

    def __post_init__(self) -> None:
        above("stage_timeout_seconds", self.stage_timeout_seconds, 0)
        at_least("the number of seeds", len(self.seeds), 1)
        if not self.arms:
            raise ValueError("arms is empty: choose a study, e.g. experiment=paper_small.")
        known = ["cold start"]
        for arm in self.arms:
            if arm.start and arm.start not in known:
                raise ValueError(
                    f"The arm '{arm.name}' starts from '{arm.start}', which is not among the arms before it: "
                    f"{', '.join(known)}."
                )
            if arm.name in known:
                raise ValueError(f"Two arms are called '{arm.name}'.")
            known.append(arm.name)
        for pair in self.differences:
            if len(pair) != 2 or not set(pair) <= set(known):
                raise ValueError(
                    f"differences holds {pair}; a pair of arms was expected: {', '.join(known)}."
                )
