"""Checks of on-policy distillation: the teacher exists, and scores what the policy is trained on."""

from configs.schema.algo import AlgoConfig
from configs.schema.collect import CollectConfig
from configs.schema.operator import OperatorConfig
from configs.schema.rollout import RolloutConfig


def check_teacher(
    algo: AlgoConfig, operator: OperatorConfig, collect: CollectConfig, rollout: RolloutConfig
) -> None:
    """Checks the teacher of ``algo.opd_coef``, if there is one.

    Raises:
        ValueError: If no teacher can score the samples.
    """
    url = rollout.teacher_model_server_url
    if url and not algo.opd_coef:
        raise ValueError(
            f"rollout.teacher_model_server_url is '{url}', but algo.opd_coef is 0, so that its scores would "
            "count for nothing. Set algo.opd_coef, or leave the URL out."
        )
    if url:
        _check_temperatures(algo, rollout)
    elif algo.opd_coef:
        _check_workspaces(algo, operator, collect)


def _check_temperatures(algo: AlgoConfig, rollout: RolloutConfig) -> None:
    """Checks that both log-probs are those of one temperature: a server scores a prompt at 1."""
    for role in ("trace", *algo.credit):
        if (temperature := rollout.temperature_of(role)) != 1.0:
            raise ValueError(
                f"The temperature of the role {role} is {temperature}, but the teacher at "
                "rollout.teacher_model_server_url scores at temperature 1. Set rollout.temperature (and "
                f"rollout.roles.{role}.temperature) to 1."
            )


def _check_workspaces(algo: AlgoConfig, operator: OperatorConfig, collect: CollectConfig) -> None:
    """Checks that traces and workspaces of the same problem exist, and traces that no workspace holds."""
    if collect.draft_source != "reuse" or not algo.operator_fraction:
        raise ValueError(
            f"algo.opd_coef is {algo.opd_coef}, for which traces are scored by the policy as it reads a "
            "workspace of the same problem: set collect.draft_source=reuse and an algo.operator_fraction "
            f"above 0 (they are {collect.draft_source} and {algo.operator_fraction}); or set "
            "rollout.teacher_model_server_url to another model."
        )
    read = operator.drafts[0] if operator.drafts else operator.schedule[0]
    if not {"all", "global_summary"} & set(operator.distillers or [operator.distiller]):
        read = min(read, operator.top_k_range[0] if operator.top_k_range else operator.top_k)
    if read >= algo.num_generations:
        raise ValueError(
            f"algo.opd_coef is {algo.opd_coef}, but every workspace reads {read} of "
            f"{algo.num_generations} traces: none is left that a teacher has not read. Raise "
            "algo.num_generations, or lower operator.schedule or operator.top_k."
        )
