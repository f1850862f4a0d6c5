"""`Procedure`: the base class of what generates the stages of a run from a few options."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gkd_core.contract.method_base import check_options
from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from gkd_core.config.schema import RunConfig
    from gkd_core.contract.model_info import Models


class Procedure:
    """Generates the stages of a run whose number or sizes depend on options.

    A recipe whose stages are fixed lists them. Otherwise it names a procedure in `procedure.name`,
    with the options next to it. A subclass sets `name` and `paper` and overrides `stages`; it is
    registered through `gkd_register_recipes`.

    Attributes:
        name: The value of `procedure.name` that selects it.
        paper: Authors, venue, year and, if there is one, the arXiv number.
        config: The options.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    class Config(BaseModel):
        """Options of the procedure; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    config: Config

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract when its class is defined."""
        super().__init_subclass__()
        where = f"procedure class {cls.__module__}.{cls.__qualname__}"
        check_options(cls.Config, Procedure.Config, where, "Procedure")
        if "name" in cls.Config.model_fields:
            raise PluginError(f"{where}: option `name` is the name of the procedure; rename it")

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @abstractmethod
    def stages(self, config: RunConfig, models: Models) -> Iterable[Mapping[str, Any]]:
        """Return the stages in order, each as a table of a run file.

        Called before any weight is loaded. A value in a table overrides that of the run, wherever
        the run's value was set, and is overridden by one set for the stage. Everything else comes
        from the run. A `student` or `teachers` in a table replaces the run's as a whole.

        Args:
            config: The configuration of the run, without stages.
            models: Shapes of its student and its (first) teacher.

        Returns:
            Tables with the keys of `[[stages]]`; none for a run of one stage as configured.

        Raises:
            ConfigError: The options do not fit the models.
        """
        raise NotImplementedError
