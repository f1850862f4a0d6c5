"""RL-KD: a policy that selects teachers per sample, rewarded by the student's performance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.api import Batch, MethodError, Models, Step, TeacherCombiner, Term, View, hard_labels
from gkd_methods_multiteacher.episode import Episode
from gkd_methods_multiteacher.rng import uniform
from gkd_methods_multiteacher.samples import per_sample


class RLKD(TeacherCombiner):
    """Select teachers per sample with a policy that learns from the student's reward.

    L = 1/K sum_k a_k L_k with a_k ~ Bernoulli(pi_k), pi_k = sigmoid(A_k s_k). The state s_k of a
    sample consists of the teacher's [CLS] vector, its probabilities, its loss, and 1. The policy
    follows (R - b) grad log pi(a), where R is the mean reward in the step after the student trained
    on the choice, and b the running mean of R. Rewards: `r1` = -CE, `r2` = -CE - L, `r3` = r2 +
    gamma times the accuracy.
    """

    name = "rl-kd"
    paper = "Yuan, Shou, Pei, Lin, Gong, Fu, Jiang, AAAI 2021, arXiv:2012.06048"
    needs_labels = True

    class Config(TeacherCombiner.Config):
        """Options of `rl-kd`."""

        reward: Literal["r1", "r2", "r3"] = Field(
            "r1",
            description="Reward: low loss on the labels (`r1`), low total loss (`r2`), or low "
            "total loss and correct answers (`r3`).",
        )
        gamma: float = Field(1.0, ge=0, description="For `r3`: weight of the accuracy.")
        baseline: float = Field(
            0.9,
            ge=0,
            le=1,
            description="Decay of the running mean of the reward, which is subtracted from it; 1 "
            "subtracts nothing.",
        )
        warmup: float = Field(
            0.1,
            ge=0,
            le=1,
            description="Share of the steps, at the start, in which all teachers are used equally.",
        )

    config: Config

    def __init__(self, config: Config | None, models: Iterable[Models]) -> None:
        super().__init__(config, tuple(models))
        self._episode = Episode([_width(one) for one in self.models], self.config.baseline)

    def check(self) -> None:
        """Reject language modeling, whose vocabulary is too large for a policy state."""
        student = self.models[0].student
        if student.is_lm:
            raise MethodError(
                "rl-kd selects by class probabilities, which a language model does not have. "
                "Use average(...) or uncertainty(...)"
            )

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Read the logits of both models and the teacher's last [CLS] vector."""
        return ["student.logits", "teacher.logits", "teacher.hidden[last]|cls"]

    def build_modules(self) -> Mapping[str, nn.Module]:
        """Return a linear policy per teacher, initialized to even odds."""
        policies = [nn.Linear(_width(one), 1, bias=False) for one in self.models]
        for policy in policies:
            nn.init.zeros_(policy.weight)
        return {"policies": nn.ModuleList(policies)}

    def weight(
        self, number: int, student: View, teacher: View, batch: Batch, step: Step
    ) -> float | Tensor:
        """Return a_k / K for each sample, `[B]`; 1 / K during the warm-up."""
        self._episode.begin(step.index, teacher.logits.device)
        if step.index < self.config.warmup * step.total:
            return 1 / len(self.models)
        states = _states(teacher, batch)
        chance = self._policy(number)(states).squeeze(-1).sigmoid()
        chosen = (uniform(step, number, batch.rows) < chance).to(chance.dtype)
        if batch.counted:
            self._episode.choose(number, (chosen - chance) @ states)
        share: Tensor = chosen / len(self.models)
        return share

    def loss(
        self, student: View, terms: Mapping[str, Term], batch: Batch, step: Step
    ) -> Mapping[str, Tensor]:
        """Return a loss with the policy gradient: minus the advantage times log pi(a)."""
        if batch.counted:
            with torch.no_grad():
                rewards = self._rewards(student, terms, batch)
            self._episode.reward(rewards.sum(), len(rewards))
        scores = self._episode.due(student.logits.device)
        parts = [self._policy(k)(score.to(student.logits.dtype)) for k, score in enumerate(scores)]
        return {"policy": -torch.cat(parts).sum()}

    def _policy(self, number: int) -> nn.Module:
        policies = self.modules["policies"]
        assert isinstance(policies, nn.ModuleList)
        return policies[number]

    def _rewards(self, student: View, terms: Mapping[str, Term], batch: Batch) -> Tensor:
        """Return the reward of each sample, `[B]`."""
        labels = batch.require_labels()
        rewards = -per_sample(hard_labels(student.logits, labels, batch.targets))
        if self.config.reward == "r1":
            return rewards
        for term in terms.values():
            rewards = rewards - per_sample(term)
        if self.config.reward == "r3" and not labels.is_floating_point():
            rewards = rewards + self.config.gamma * (student.logits.argmax(-1) == labels)
        return rewards

    def state_dict(self) -> dict[str, object]:
        """Return the choices and rewards that the policy has not learned from yet."""
        return self._episode.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore a state returned by `state_dict`."""
        self._episode.load_state_dict(state)


def _states(teacher: View, batch: Batch) -> Tensor:
    """Return the policy states of a teacher: [CLS], probabilities, loss and 1 per sample."""
    logits, last = teacher.logits, teacher.hidden.cls[teacher.model.layers]
    prediction = logits.softmax(-1) if logits.shape[-1] > 1 else logits
    loss = per_sample(hard_labels(logits, batch.require_labels(), batch.targets)).unsqueeze(-1)
    return torch.cat([last, prediction, loss, torch.ones_like(loss)], dim=-1)


def _width(models: Models) -> int:
    """Return the size of a policy state."""
    _, teacher = models.pair
    return teacher.hidden_size + teacher.labels + 2
