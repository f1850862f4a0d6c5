"""`MethodBase`: the common base of methods and combiners of teachers."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import Models
    from gkd_core.contract.run_info import StageInfo
    from gkd_core.contract.step import Step
    from gkd_core.hooks.operations import Operation, Pass
    from gkd_core.models.parts import Part

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

ADDED = "added"
"""Key in the `json_schema_extra` of an option that a published method did not have at first.

At its default, the option leaves fingerprints as they were, so that finished stages stay valid.
"""

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
        same_tokenizer: It needs a teacher with the student's tokenizer. Not to be declared where
            its `reads` show it: a method that reads whole sequences of both models is rejected for
            teachers with other tokenizers anyway.
        aligns: It aligns the tokens of both models by itself (`batch.view`), so that it may read
            whole sequences of a teacher with another tokenizer.
        other_prompts: Answers may stand behind another prompt for the teacher (`teacher.prompt`):
            it finds the teacher's tokens and targets in `batch.view(NAME)`, where each row has the
            same answer.
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
    aligns: ClassVar[bool] = False
    other_prompts: ClassVar[bool] = False
    batch_coupled: ClassVar[bool] = False
    gradual_unfreezing: ClassVar[bool] = False
    borrows_blocks: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = (
        "classification",
        "span-classification",
        "regression",
        "masked-lm",
        "causal-lm",
    )

    class Config(BaseModel):
        """Options; each needs a default, which is validated as any value, and a description.

        One that is added to a published method has `json_schema_extra={"added": True}`, so that
        finished stages without it stay valid.
        """

        model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    config: Config
    modules: nn.ModuleDict

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def fingerprint(self) -> str:
        """Return whatever else determines the results, besides code and options. Default: nothing.

        A stage whose fingerprint is that of an earlier one is not trained again. Override it if an
        option names something that may change while its name stays the same. What files and
        directories contain that options of type `Path` name is part of the fingerprint anyway.

        Returns:
            A text that is the same only for the same results, such as a hash.
        """
        return ""

    def on_stage_start(self, stage: StageInfo) -> str | None:
        """Act when the first step of a stage is about to begin. Default: nothing.

        Called on every rank once the models are built, and again when a run is resumed: then after
        the state, the modules and the student were restored from the checkpoint. What it draws
        from torch's global generators is the same each time and does not change the training.

        Args:
            stage: The stage. Files in its directory survive until the stage is finished.

        Returns:
            Why the stage has nothing to train, to skip its steps; None to train.
        """
        return None

    def on_evaluate(self, stage: StageInfo, step: Step, metrics: Mapping[str, float]) -> None:
        """Act after the student was evaluated on the validation rows. Default: nothing.

        Called on every rank, before the checkpoint of the step is written.

        Args:
            stage: The stage.
            step: The training step just done.
            metrics: Metrics of the student by name.
        """

    def on_stage_end(self, stage: StageInfo, error: BaseException | None) -> None:
        """Act when the stage is over and its student is saved, or it failed. Default: nothing.

        Called on every rank.

        Args:
            stage: The stage.
            error: What ended the stage, or None.
        """

    def begin_step(self, step: Step) -> None:
        """Prepare a training step: make random draws, advance a state. Default: nothing.

        Called on every rank before anything else is asked about the step, and only once. `reads`,
        `passes`, `writes` and `lr_factors` are queries: they depend on what was prepared here, may
        be called in any order and repeatedly, and change nothing.

        Args:
            step: The training step. Drawing from its generator gives the same on all ranks.
        """

    @abstractmethod
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

    def items(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the masks of the method's own items, by name. Default: none.

        They are counted over the whole optimizer step and all ranks before it begins; in `loss`
        they are `batch.items(NAME)`, to average a term over.

        Args:
            batch: A micro-batch on the CPU. Nothing is known of the models yet.

        Returns:
            Bool `[B]` or `[B, S]`; True where an item counts.
        """
        return {}

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
        """Return the state to checkpoint. Default: empty.

        Values are JSON-serializable or tensors, also inside of dictionaries and lists. Processes
        that see different rows have different states; processes that share a copy of the student
        (tensor parallelism) must have the same.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`; its tensors are on the CPU, bit-equal."""


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
    validate_name(name, where)
    if not getattr(cls, "paper", None):
        raise PluginError(f"{where}: `paper` must say where the {kind} was published")
    if not cls.__doc__:
        raise PluginError(f"{where}: a docstring is needed; `gkd methods {name}` shows it")
    if cls.same_tokenizer and cls.aligns:
        raise PluginError(
            f"{where}: `same_tokenizer` and `aligns` contradict each other; declare one of them"
        )
    base = "Method" if kind == "method" else "TeacherCombiner"
    check_options(cls.Config, MethodBase.Config, where, base)


def validate_name(name: object, where: str) -> None:
    """Reject the name of a class that the configuration could not name.

    Args:
        name: The name.
        where: Description of the class, for the message.

    Raises:
        PluginError: It has other characters than a name may have.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(
            f"{where}: `name` must be lower-case words joined by '-', such as 'rail-kd', "
            f"not {name!r}"
        )


def validate_described(
    cls: type, where: str, base: type[BaseModel], base_name: str, shown: str
) -> None:
    """Reject a class without a valid name, a docstring or valid options.

    Args:
        cls: The class; its options are `Config`.
        where: Description of the class, for the message.
        base: What its options must be a subclass of.
        base_name: Name of the class that `base` belongs to.
        shown: What the first line of its docstring says, for the message.

    Raises:
        PluginError: It violates the contract; the message says how.
    """
    validate_name(getattr(cls, "name", None), where)
    if not cls.__doc__:
        raise PluginError(f"{where}: a docstring is needed; its first line says {shown}")
    check_options(getattr(cls, "Config"), base, where, base_name)  # noqa: B009


def check_options(config: type[BaseModel], base: type[BaseModel], where: str, name: str) -> None:
    """Reject options that violate the contract.

    Args:
        config: The options.
        base: What they must be a subclass of.
        where: Description of the class that they belong to, for the message.
        name: Name of the class that `base` belongs to.

    Raises:
        PluginError: An option lacks a default or a description, or its default is invalid.
    """
    if not (isinstance(config, type) and issubclass(config, base)):
        raise PluginError(f"{where}: `Config` must be a subclass of `{name}.Config`")
    for option, field in config.model_fields.items():
        if field.is_required():
            raise PluginError(f"{where}: option `{option}` needs a default")
        if not field.description:
            raise PluginError(f"{where}: option `{option}` needs a description")
    if not config.__pydantic_complete__:
        return
    check_defaults(config, {}, where)


def check_defaults(config: type[BaseModel], defaults: Mapping[str, Any], where: str) -> None:
    """Reject defaults of options that are no valid values.

    Args:
        config: The options.
        defaults: Values that take the place of their own defaults, by name.
        where: Description of what declares them, for the message.

    Raises:
        PluginError: One is invalid, or there is no such option.
    """
    try:
        config(**defaults)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise PluginError(f"{where}: the default of option `{option}`: {first['msg']}") from error
