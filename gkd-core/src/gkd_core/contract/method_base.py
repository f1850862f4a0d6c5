"""`MethodBase`: what takes part in a training step: a method, or a combiner of teachers."""

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
"""What a class could define in version 0.1, and what it is called now."""


class MethodBase:
    """What methods and combiners declare alike: options, what they read and change, their state.

    Attributes:
        name: What an expression calls it: lower case, words joined by `-`.
        paper: Authors, venue, year and, where there is one, the arXiv number.
        needs_labels: It reads `batch.labels`; unlabelled data is refused.
        same_tokenizer: Teacher and student logits are compared over the vocabulary in language
            modelling, so their tokenizers must be the same.
        batch_coupled: What it makes of a sample depends on the others of its micro-batch, so that
            accumulation changes it.
        gradual_unfreezing: It trains more parts of the student as training goes on. Parts not
            reached yet have no optimizer state.
        borrows_blocks: Blocks of the teacher run in the student (`Swap`), so that both must be
            there at the same time, divided in the same way.
        config: Its options.
        modules: The auxiliary modules made by `build_modules`, by name; trained and checkpointed
            with the student, never exported.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    same_tokenizer: ClassVar[bool] = False
    batch_coupled: ClassVar[bool] = False
    gradual_unfreezing: ClassVar[bool] = False
    borrows_blocks: ClassVar[bool] = False

    class Config(BaseModel):
        """Options: each has a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    modules: nn.ModuleDict

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def reads(self, models: Models, step: Step) -> Iterable[str]:
        """Return the paths to capture in this step, such as `teacher.hidden[last]|cls`.

        May differ from step to step. Only what is returned here is captured.
        """
        raise NotImplementedError

    def passes(self, models: Models, step: Step) -> Iterable[Pass]:
        """Return the forward passes of its own, in order. Default: none.

        Paths name them: `student@source.hidden[2]`. They run after the main pass, which all share.
        """
        return ()

    def writes(self, models: Models, step: Step) -> Iterable[Operation]:
        """Return the operations that change the forward pass in this step. Default: none.

        In the main pass everyone sees what they change; two cannot change one place.
        """
        return ()

    def lr_factors(self, models: Models, step: Step) -> Mapping[Part, float]:
        """Return parts of the student that learn at a share of the learning rate. Default: none.

        Parts are `"embedding"`, the numbers of blocks, counted from 1, and `"head"`; what is left
        out has the factor 1. 0 freezes a part in this step: gradients pass through it, but its
        weights do not change, nor does their optimizer state, and they do not decay.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume, as JSON can hold it. Default: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""


def refuse_renamed(cls: type, renamed: Mapping[str, str], where: str) -> None:
    """Refuse a class that defines an old name, which would otherwise be ignored.

    Args:
        cls: The class.
        renamed: Old names, and what they are called now.
        where: The class, for the message.

    Raises:
        PluginError: It does; says the new name.
    """
    for old, new in renamed.items():
        if hasattr(cls, old):
            raise PluginError(
                f"{where} defines `{old}`, which is called `{new}` since version 0.2 of gkd; "
                "rename it, or install a version of the plugin for this gkd"
            )


def validate(cls: type[MethodBase], kind: str) -> None:
    """Refuse a class that breaks the contract.

    Args:
        cls: The class.
        kind: `method` or `combiner`, for the message.

    Raises:
        PluginError: Says what is wrong with it.
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
