"""Teacher assistant knowledge distillation: a chain of successively smaller models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gkd_core.api import Models, Procedure, RunConfig
from gkd_methods_multiteacher.assistants import AssistantsConfig, shrink


class TAKD(Procedure):
    """Distill into an assistant, from it into the next, and from the last into the student.

    Every stage uses the run's method; only its teacher and the size of its student differ. Each
    student starts from the model that teaches it.
    """

    name = "takd"
    paper = "Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, AAAI 2020, arXiv:1902.03393"

    class Config(AssistantsConfig):
        """Options."""

    config: Config

    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return one stage per model, each taught by the previous one, the first by the teacher."""
        before = None
        for name, student in shrink(self.config.assistants, config, models):
            stage: dict[str, Any] = {"name": name}
            if student:
                stage["student"] = student
            if before is not None:
                stage["teachers"] = [{"name": before, "model": f"stage:{before}"}]
            yield stage
            before = name
