"""`RolloutEngine`: the base class of what writes text during training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gkd_core.config.schema import RolloutConfig
from gkd_core.contract.method_base import validate_name
from gkd_core.errors import PluginError

if TYPE_CHECKING:
    from gkd_core.rollouts.writer import Writer


@dataclass(frozen=True)
class Prompts:
    """The prompts that an engine continues: all of an optimizer step, on this rank.

    Attributes:
        rows: Token ids of each prompt, without padding, int64, on the CPU; at least one.
        max_new_tokens: Maximum number of tokens after a prompt, including the end token.
        end_ids: Tokens that end a text; empty if the tokenizer has none.
        pad_id: The token for padding.
        seeds: A seed for each row. It depends only on the run's seed, the stage, the step and the
            row, so drawing from it gives the same text for any number of ranks, and on resume.
        typed: Whether the models receive `token_type_ids`, which are 0 in a prompt.
    """

    rows: Sequence[Tensor]
    max_new_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int
    seeds: Sequence[int]
    typed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def padded(self, side: Literal["left", "right"] = "left") -> dict[str, Tensor]:
        """Return the prompts as inputs of a model, `[N, P]` each, on the CPU.

        Args:
            side: Where shorter prompts are padded; text is appended to prompts padded on the left.
        """
        width = max(map(len, self.rows))
        ids = torch.full((len(self), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(self.rows):
            place = slice(width - len(row), width) if side == "left" else slice(len(row))
            ids[line, place], mask[line, place] = row, 1
        types = {"token_type_ids": torch.zeros_like(ids)} if self.typed else {}
        return {"input_ids": ids, "attention_mask": mask, **types}


@dataclass(frozen=True)
class Written:
    """The text that an engine wrote.

    Attributes:
        tokens: Token ids after each prompt, in the order of the prompts. An end token belongs to
            the text; everything after the first one is dropped.
        log_probs: The log-probability with which each of them was drawn, by which methods weigh
            text that is not the student's own (`importance`). Needed where the writer `mixes`;
            without it elsewhere, `on_policy` methods take the text for the student's own.
    """

    tokens: Sequence[Sequence[int]]
    log_probs: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class TokenSampling:
    """How the tokens of a text are drawn from the distribution of a model.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_k: Draw from so many of the most likely tokens only; 0 for all.
        top_p: Draw from the most likely tokens that together have this probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class RolloutEngine:
    """Writes text during training, registered through `gkd_register_rollouts`.

    A subclass sets `name` and overrides `write`. Its options stand in the `rollout` table, next to
    `rollout.engine`. Constructing an engine loads nothing; raise `ConfigError` in `__init__` if
    something that it needs is missing.

    Attributes:
        name: The value of `rollout.engine` that selects it.
        batch_coupled: The text of a row depends on the other rows, for example because all rows
            draw from one generator. It then also depends on the number of ranks.
        mixes: It draws tokens from the logits of `writer.start`, in which another model may take
            part (`rollout.mixture`), and returns their log-probabilities.
        config: Its options.
    """

    name: ClassVar[str]
    batch_coupled: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    class Config(BaseModel):
        """Options; each needs a default and a description."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config

    def __init_subclass__(cls) -> None:
        """Reject a subclass that violates the contract."""
        super().__init_subclass__()
        _validate(cls)

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def fingerprint(self) -> str:
        """Return whatever else determines the text, besides code and options. Default: nothing.

        As `Method.fingerprint`, for an option that names, for example, a server.
        """
        return ""

    def sampling(self) -> TokenSampling | None:
        """Return how it draws tokens, as a teacher on a server is told to. Default: not known.

        Methods that are `on_policy` learn from text of the student's own distribution, and refuse
        an engine that draws from another. None if temperature, `top_k` and `top_p` do not describe
        it; only models in these processes then write.
        """
        return None

    @abstractmethod
    def write(self, prompts: Prompts, writer: Writer) -> Written:
        """Continue the prompts.

        Called once per step and source, with the rows of all micro-batches. Every rank calls it at
        the same time, with a different number of rows of different lengths. If weights are sharded,
        the ranks must run the model equally often: `writer.any_rank` tells when all are done.

        The model is in evaluation mode, without gradients, under the precision of training. Random
        draws from PyTorch's default generators are reproducible, and leave training's unchanged.

        Args:
            prompts: What to continue.
            writer: The model that writes.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint, as JSON-serializable values. Default: empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""


def _validate(cls: type[RolloutEngine]) -> None:
    where = f"rollout engine class {cls.__module__}.{cls.__qualname__}"
    validate_name(getattr(cls, "name", None), where)
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, RolloutEngine.Config)):
        raise PluginError(f"{where}: `Config` must be a subclass of `RolloutEngine.Config`")
    for option, field in cls.Config.model_fields.items():
        if option in RolloutConfig.model_fields:
            raise PluginError(
                f"{where}: option `{option}` is a setting of every rollout; rename it"
            )
        if field.is_required() or not field.description:
            raise PluginError(f"{where}: option `{option}` needs a default and a description")
