"""`MethodBase`: the common base of methods and combiners of teachers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from torch import nn

    from gkd_core.contract.model_info import Models
    from gkd_core.contract.step import Step
    from gkd_core.hooks.operations import Operation, Pass
    from gkd_core.models.parts import Part

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

RENAMED = {
    "hand_on": "finalize_student",
    "emphasis": "term_scale",
    "unlocks": "gradual_unfreezing",
}
"""Names of members in version 0.1, and their current names."""


class MethodBase:
    """The common base of methods and combiners: options, reads, writes, state.

    Plugins subclass `Method` or `TeacherCombiner`, not this class.

    Attributes:
        name: Its name in expressions: lower case, words joined by `-`.
        paper: Authors, venue, year and, if there is one, the arXiv number.
        needs_labels: It reads `batch.labels`; unlabeled data is rejected.
        same_tokenizer: It compares teacher and student logits over the vocabulary in language
            modeling, so their tokenizers must be the same.
        batch_coupled: Its result for a sample depends on the other samples of the micro-batch, so
            that gradient accumulation changes it.
        gradual_unfreezing: It trains more parts of the student as training proceeds. Parts not
            reached yet have no optimizer state.
        borrows_blocks: Blocks of the teacher run in the student (`Swap`), so both models must be
            loaded at the same time and sharded in the same way.
        kinds: Names of the kinds of task that it is right for; others, unless they extend one of
            these, are rejected.
        config: Its options.
        modules: The auxiliary modules returned by `build_modules`, by name; trained and
            checkpointed with the student, never exported.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    same_tokenizer: ClassVar[bool] = False
    batch_coupled: ClassVar[bool] = False
    gradual_unfreezing: ClassVar[bool] = False
    borrows_blocks: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression", "masked-lm", "causal-lm")

    class Config(BaseModel):
        """Options; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    modules: nn.ModuleDict

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Return the paths to capture in this step, such as `teacher.hidden[last]|cls`.

        They may differ between steps. Nothing else is captured.

        Args:
            models: Shapes of the student and the teacher.
            step: The training step.
        """
        raise NotImplementedError

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Return the method's own forward passes, in order. Default: none.

        Paths refer to them by name: `student@source.hidden[2]`. They run after the main pass, which
        all methods share.

        Args:
            models: Shapes of the student and the teacher.
            step: The training step.
        """
        return ()

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Return the operations that change the forward pass in this step. Default: none.

        In the main pass, every method sees their effect, and no two methods can change the same
        site.

        Args:
            models: Shapes of the student and the teacher.
            step: The training step.
        """
        return ()

    def lr_factors(self, models: Models, step: Step) -> Mapping[Part, float]:
        """Return learning-rate factors for parts of the student in this step. Default: none.

        Parts are `"embedding"`, the numbers of blocks, counted from 1, and `"head"`; the others
        have factor 1. A factor of 0 freezes a part for this step: gradients pass through it, but
        its weights and their optimizer state do not change, and weight decay is not applied.

        Args:
            models: Shapes of the student and the teacher.
            step: The training step.

        Returns:
            Factors, 0 or greater, by part.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint, as JSON-serializable values. Default: empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""


def refuse_renamed(cls: type, renamed: Mapping[str, str], where: str) -> None:
    """Reject a class that defines an old name, which would otherwise be ignored.

    Args:
        cls: The class.
        renamed: Old names, and their current names.
        where: Description of the class, for the message.

    Raises:
        PluginError: It defines one; the message says the new name.
    """
    for old, new in renamed.items():
        if hasattr(cls, old):
            raise PluginError(
                f"{where} defines `{old}`, which is called `{new}` since version 0.2 of gkd; "
                "rename it, or install a version of the plugin for this gkd"
            )


def validate(cls: type[MethodBase], kind: str) -> None:
    """Reject a class that violates the contract.

    Args:
        cls: The class.
        kind: `method` or `combiner`, for the message.

    Raises:
        PluginError: It does; the message says how.
    """
    where = f"{kind} class {cls.__module__}.{cls.__qualname__}"
    refuse_renamed(cls, RENAMED, where)
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(
            f"{where}: `name` must be lower-case words joined by '-', such as 'rail-kd', "
            f"not {name!r}"
        )
    if not getattr(cls, "paper", None):
        raise PluginError(f"{where}: `paper` must say where the {kind} was published")
    if not cls.__doc__:
        raise PluginError(f"{where}: a docstring is needed; `gkd methods {name}` shows it")
    if not issubclass(cls.Config, MethodBase.Config):
        base = "Method" if kind == "method" else "TeacherCombiner"
        raise PluginError(f"{where}: `Config` must be a subclass of `{base}.Config`")
    for option, field in cls.Config.model_fields.items():
        if field.is_required():
            raise PluginError(f"{where}: option `{option}` needs a default")
        if not field.description:
            raise PluginError(f"{where}: option `{option}` needs a description")
