"""Several trainings that are compared with one another."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.schema.checks import above, at_least


@dataclass(kw_only=True)
class ArmConfig:
    """One training of a study, made with every seed."""

    name: str = MISSING
    """Its row in the table, and its folder."""

    start: str = ""
    """The arm whose last policy it starts from, with the same seed. Empty: the cold start."""

    overrides: list[str] = field(default_factory=list)
    """What sets it apart, as on the command line of ``python -m train``."""


@dataclass(kw_only=True)
class StudyConfig:
    """``python -m train.study``"""

    output_dir: str = "outputs/study"
    """Where everything goes. What is done there already is not done again."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Every arm is trained once with each."""

    accelerate: str = "cpu_zero2"
    """The file of launch/accelerate that trainings are launched with."""

    training: list[str] = field(default_factory=list)
    """Overrides of every training, and of the cold start."""

    evaluation: list[str] = field(default_factory=list)
    """Overrides of ``python -m rollout``, which evaluates the last policy of every arm."""

    arms: list[ArmConfig] = field(default_factory=list)
    """In an order in which each comes after the one that it starts from."""

    differences: list[list[str]] = field(default_factory=list)
    """Pairs of arms (``cold start`` is one) whose paired differences are reported."""

    stage_timeout_seconds: float = 86_400.0
    """The longest that one training, export or evaluation may take."""

    def __post_init__(self) -> None:
        above("stage_timeout_seconds", self.stage_timeout_seconds, 0)
        at_least("the number of seeds", len(self.seeds), 1)
        if not self.arms:
            raise ValueError("arms is empty: choose a study, e.g. experiment=paper_small.")
        known = ["cold start"]
        for arm in self.arms:
            if arm.start and arm.start not in known:
                raise ValueError(
                    f"The arm '{arm.name}' starts from '{arm.start}', which is none of those before it: "
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
