"""`Procedure`: makes the stages of a run out of a few options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.model_info import Models


class Procedure:
    """Makes the stages of a run, where their number or their sizes depend on options.

    A recipe whose stages are always the same lists them. One that leaves them to a procedure names
    it: `procedure.name`, and its options beside that.

    Attributes:
        name: What `procedure.name` accepts.
        paper: Authors, venue, year and, where there is one, the arXiv number.
        config: The options.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    class Config(BaseModel):
        """Options of the procedure: each has a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return the stages in order, each as a table of a run file.

        Called before any weight is loaded. What a table does not say, its stage takes from the run;
        what it says stands above the run's value, whatever the level of that, and below a value
        given for the stage. A `student` or `teachers` that it says is all there is of it.

        Args:
            config: The run, without stages.
            models: The student and the (first) teacher that such a run has.

        Returns:
            No table for a run of one stage as configured.

        Raises:
            ConfigError: The options do not suit the models.
        """
        raise NotImplementedError
