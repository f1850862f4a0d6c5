"""`AnswerSource`: where a teacher's answers come from, if it is no model in these processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.contract.method_base import validate_name
from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gkd_core.contract.batch import Batch
    from gkd_core.contract.model_info import ModelInfo
    from gkd_core.contract.step import Step
    from gkd_core.hooks.features import Answer
    from gkd_core.hooks.paths import Capture


class AnswerSource:
    """A source of a teacher's answers: a file, a server, or anything but a model in this process.

    Registered through `gkd_register_teachers` and selected by `teacher.source.name`; its options
    are in the same table. Methods do not know it: what they read of the teacher is in their view.
    The teacher's `config.json` and tokenizer are read from `teacher.model` as always; its weights
    are not. Each process asks for its own rows.

    A subclass sets `name` and overrides `missing`, `fingerprint` and `answer`.

    Attributes:
        any_text: It answers about any token ids, and not only about the training rows: also about
            what models write during training (rollouts).
        packs: It answers about rows that are packed into one (`task.packing`): a new row begins
            where `position_ids` of the batch's inputs is 0.
        next_words: It answers only with the next word of a text, and not about masked words or
            classes.
        name: The value of `teacher.source.name` that selects it: lower case, words joined by `-`.
        config: Its options.
        teacher: Shape and name of the teacher.
        tokenizer: The teacher's tokenizer; it is set before `check` is called.
    """

    any_text: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    next_words: ClassVar[bool] = False
    name: ClassVar[str]

    class Config(BaseModel):
        """Options; each needs a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    tokenizer: PreTrainedTokenizerFast

    def __init__(self, config: Any, teacher: ModelInfo) -> None:
        self.config = config
        self.teacher = teacher

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract when its class is defined."""
        super().__init_subclass__()
        where = f"source of answers {cls.__module__}.{cls.__qualname__}"
        validate_name(getattr(cls, "name", None), where)
        if not (isinstance(cls.Config, type) and issubclass(cls.Config, AnswerSource.Config)):
            raise PluginError(f"{where}: `Config` must be a subclass of `AnswerSource.Config`")
        for option, field in cls.Config.model_fields.items():
            if option == "name":
                raise PluginError(f"{where}: option `name` is the name of the source; rename it")
            if not field.description:
                raise PluginError(f"{where}: option `{option}` needs a description")

    def check(self) -> None:
        """Raise a `GkdError` if an option is invalid. Default: all are valid.

        Called before any weight is loaded.
        """

    @abstractmethod
    def missing(self, capture: Capture) -> str | None:
        """Return the reason that the source cannot provide a tensor of the teacher; None if it can.

        Called before any weight is loaded: a run whose methods read the tensor is rejected.

        Args:
            capture: The tensor, such as `logits` or `hidden[4]|cls`.
        """
        raise NotImplementedError

    def truncated_at(self) -> float | None:
        """Return the temperature of its logits if they are `TopKLogits`. Default: None.

        Called before any weight is loaded: a run whose methods need more, or another temperature
        (`Method.softens_at`), is rejected.
        """
        return None

    def gives_head(self) -> bool:
        """Return whether its logits are `LinearLogits`, with the head of the teacher.

        Called before any weight is loaded: if not, which is the default, a run whose methods apply
        the head (`Method.applies_head`) is rejected.
        """
        return False

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that identifies the answers, such as the hash of a file.

        A stage with the same teachers and settings as an earlier one reuses its student.
        """
        raise NotImplementedError

    @abstractmethod
    def answer(
        self, captures: Collection[Capture], batch: Batch, step: Step
    ) -> Mapping[Capture, Answer]:
        """Return tensors of the teacher for the rows of a micro-batch.

        Args:
            captures: The tensors that methods read.
            batch: The micro-batch as the teacher reads it, with its own token ids.
            step: The training step.

        Returns:
            Each of them, on the device of the batch; of floating-point type, at least fp32.
            `logits` in any form that losses accept; the site `attention` as a `Relation`.
        """
        raise NotImplementedError
