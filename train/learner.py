"""Turns one collected batch into optimizer steps. Every rank has a learner; all make the same steps."""

from collections.abc import Sequence

from accelerate import Accelerator
from torch import Tensor

from configs.schema import TrainingConfig
from train.batch.collate import MicroBatch
from train.batch.rows import Row
from train.call_terms import CallTerms
from train.deepspeed_zero import sharding_of
from train.loss.objective import objective, value_objective
from train.metrics import TokenMetrics, update_metrics
from train.model.critic import CriticModel
from train.model.lora import add_adapters
from train.model.policy import PolicyModel, has_full_attention, load_model, require_finite
from train.model.reference import FrozenReference, Reference, WithoutAdapters
from train.nonfinite_steps import RefusalGuard
from train.optimizer import TrainedModel
from train.sharding import StepOutcome
from train.update_batches import Annotator, UpdateBatch


class Learner:
    """Trains the policy and PPO's critic; holds their optimizers and the frozen models of their losses."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, guard: RefusalGuard) -> None:
        """Loads the models. ``guard`` checks the outcome of every optimizer step.

        Raises:
            ValueError: If the policy cannot be loaded, or one of its weights is not finite.
        """
        self._config = config
        self._accelerator = accelerator
        self._guard = guard
        self.model = load_model(config.model)
        require_finite(self.model, sharding_of(accelerator), config.model.path)
        if config.model.lora_r:
            add_adapters(self.model, config.model)
        self.policy = self._make_policy()
        self.critic = self._make_critic()
        self._annotator = Annotator(
            config,
            accelerator,
            policy=self.policy,
            reference=self._make_reference(),
            critic=self.critic,
            shares_prompts=config.train.packing == "shared" and has_full_attention(self.model.config),
            hidden_size=self.model.config.get_text_config().hidden_size,
        )

    def learn(self, rows: Sequence[Row], step: int, calls: CallTerms | None = None) -> dict[str, float]:
        """Makes ``num_iterations`` passes over the rows, each of up to ``num_updates`` optimizer steps.

        Args:
            rows: All rows of the step, from ``credit``.
            step: Number of the step, from 1.
            calls: Collects the results of the first pass for each call; None if the step is not traced.

        Returns:
            The metrics of all passes.

        Raises:
            RuntimeError: If too many steps in a row were refused; see ``RefusalGuard``.
        """
        algo = self._config.algo
        roles = sorted({branch.role for row in rows for branch in row.branches})
        tokens = TokenMetrics(roles, self._accelerator.device)
        rates = {name: model.learning_rate for name, model in self._trained().items()}
        parts, metrics = self._annotator.parts(rows, roles)
        outcomes: dict[str, list[StepOutcome]] = {name: [] for name in rates}
        for iteration in range(algo.num_iterations):
            for part in parts:
                of_models = self._update(
                    part,
                    roles,
                    tokens,
                    calls if iteration == 0 else None,
                    warms_up=step <= algo.critic_warmup_steps,
                )
                self._guard.check(of_models, part.rows, step)
                for name, outcome in of_models.items():
                    outcomes[name].append(outcome)
        metrics |= tokens.result(self._accelerator, num_updates=len(parts) * algo.num_iterations)
        return metrics | update_metrics(outcomes, rates)

    def restore_options(self, updates_ratio: float, scale: float) -> None:
        """Restores the optimizers' options after a checkpoint was loaded; see ``TrainedModel``."""
        for model in self._trained().values():
            model.restore_options(updates_ratio, scale)

    def _make_policy(self) -> TrainedModel:
        algo = self._config.algo
        has_head = algo.has_critic and algo.critic == "policy_trunk"
        module = PolicyModel(
            self.model,
            temperature=self._config.rollout.temperature,
            entropy_has_gradient=algo.entropy_coef != 0,
            has_value_head=has_head,
            fp32_head=self._config.model.cast_lm_head_to_fp32,
        )
        rates = {"value_head": algo.critic_learning_rate} if has_head else {}
        return self._trained_model(module, rates | {"": algo.learning_rate})

    def _make_critic(self) -> TrainedModel | None:
        algo = self._config.algo
        if not algo.has_critic or algo.critic == "policy_trunk":
            return None
        return self._trained_model(
            CriticModel(load_model(self._config.model)), {"": algo.critic_learning_rate}
        )

    def _make_reference(self) -> Reference | None:
        if not self._config.algo.beta:
            return None
        if self._config.model.lora_r:
            return WithoutAdapters(self.policy.model)
        return FrozenReference(self._config, self._accelerator)

    def _trained_model(self, module: PolicyModel | CriticModel, rates: dict[str, float]) -> TrainedModel:
        algo = self._config.algo
        num_steps = self._config.train.max_steps * algo.updates_per_batch
        return TrainedModel(self._accelerator, module, algo, learning_rates=rates, num_steps=num_steps)

    def _trained(self) -> dict[str, TrainedModel]:
        return {"policy": self.policy} | ({"critic": self.critic} if self.critic is not None else {})

    def _update(
        self,
        part: UpdateBatch,
        roles: Sequence[str],
        tokens: TokenMetrics,
        calls: CallTerms | None,
        *,
        warms_up: bool,
    ) -> dict[str, StepOutcome]:
        """Makes one optimizer step of each model on the rows of all ranks.

        The policy is not updated while the critic warms up. Each model refuses its own step if the loss or
        gradient is not finite.
        """
        outcomes: dict[str, StepOutcome | None] = {}
        for number, batch in enumerate(self._annotator.micro_batches(part, roles), start=1):
            is_last = number == len(part.bins)
            if self.critic is None or not warms_up:
                loss = self._policy_loss(batch, tokens, calls, warms_up=warms_up)
                outcomes["policy"] = self.policy.backward(loss, is_last=is_last)
            if self.critic is not None:
                loss = self._value_loss(batch, self.critic.model(batch), tokens)
                outcomes["critic"] = self.critic.backward(loss, is_last=is_last)
        return {name: outcome for name, outcome in outcomes.items() if outcome is not None}

    def _policy_loss(
        self, batch: MicroBatch, tokens: TokenMetrics, calls: CallTerms | None, *, warms_up: bool
    ) -> Tensor:
        """Returns this micro-batch's part of the policy loss, plus that of a critic on its trunk."""
        logprobs, entropies, values = self.policy.model(batch, only_values_learn=warms_up)
        loss, terms = objective(batch, logprobs, entropies, self._config.algo)
        tokens.add(batch, terms)
        if calls is not None:
            calls.add(batch, logprobs, entropies, terms)
        if values is None:
            return loss
        # Multiplied by 0 instead of omitted: DeepSpeed expects a gradient for every parameter.
        loss = loss * float(not warms_up)
        return loss + self._config.algo.vf_coef * self._value_loss(batch, values, tokens)

    def _value_loss(self, batch: MicroBatch, values: Tensor, tokens: TokenMetrics) -> Tensor:
        loss, terms = value_objective(batch, values, self._config.algo)
        tokens.add(batch, terms)
        return loss
