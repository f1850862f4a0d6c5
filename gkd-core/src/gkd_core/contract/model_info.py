"""Shapes of the models, which methods see before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from gkd_core.contract.architectures import adapter_of
from gkd_core.contract.positions import longest_sequence
from gkd_core.errors import MethodError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Predicted = Literal["sample", "token", "span", "vector"]
"""What is predicted: something of each sample or of each token, the start and the end of a span in
each sample, or a vector for each sample."""

FFN_SIZES = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "ffn_hidden_size")
"""Names of the feed-forward width in Hugging Face configurations."""


@dataclass(frozen=True)
class ModelInfo:
    """The shape of one model, read from its configuration.

    Attributes:
        name: `student`, or the teacher's name.
        family: Hugging Face model type (`bert`, `llama`, ...).
        layers: Number of transformer blocks L; hidden states are numbered 0..L.
        hidden_size: Width D of the residual stream.
        heads: Query heads A.
        kv_heads: Key and value heads, fewer than `heads` under grouped-query attention.
        head_size: Width of one head.
        ffn_size: Width inside the feed-forward block.
        vocab_size: Rows of the embedding.
        labels: Width of the logits: number of classes, or vocabulary size in language modeling.
        max_length: Longest sequence that the positions allow, in tokens.
        predicted: What has a prediction: `[B, labels]` logits for a `sample`, `[B, S, labels]` for
            a `token`, `[B, 2, S]` for a `span`; a `vector` is `[B, labels]`.
        is_lm: Whether it is a language model, whose logits are over its vocabulary.
        tokens: The text of each token id after another token, such as ` film`; empty for special
            tokens and parts of characters. () unless a method `aligns` tokens of language models.
    """

    name: str
    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    labels: int
    max_length: int
    predicted: Predicted = "sample"
    is_lm: bool = False
    tokens: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def described(self) -> str:
        """What a message calls the model: `the student`, or `the teacher 'NAME'`."""
        return "the student" if self.name == "student" else f"the teacher '{self.name}'"

    @classmethod
    def read(
        cls,
        name: str,
        config: PretrainedConfig,
        labels: int,
        predicted: Predicted = "sample",
        is_lm: bool = False,
    ) -> ModelInfo:
        """Read the shape from a configuration, with the adapter of a plugin if there is one.

        Args:
            name: `student`, or the teacher's name.
            config: The model's configuration, of any text encoder or decoder.
            labels: Width of the logits.
            predicted: What has a prediction.
            is_lm: Whether it is a language model.
        """
        adapter = adapter_of(config.model_type)
        read = cls.from_settings if adapter is None else adapter.read_info
        return replace(read(name, config, labels), predicted=predicted, is_lm=is_lm)

    @classmethod
    def from_settings(cls, name: str, config: PretrainedConfig, labels: int) -> ModelInfo:
        """Read the shape from the settings that Hugging Face configurations usually have.

        Args:
            name: `student`, or the teacher's name.
            config: The model's configuration.
            labels: Width of the logits.
        """
        heads = config.num_attention_heads
        inner = getattr(config, "true_hidden_size", None) or config.hidden_size  # MobileBERT
        named = (getattr(config, name, None) for name in FFN_SIZES)
        return cls(
            name=name,
            family=config.model_type,
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or inner // heads,
            ffn_size=next(filter(None, named), 4 * config.hidden_size),
            vocab_size=config.vocab_size,
            labels=labels,
            max_length=longest_sequence(config),
        )


@dataclass(frozen=True)
class DataInfo:
    """The data of a stage.

    Attributes:
        rows: Number of training rows.
        classes: Names of the classes in the order of their ids; empty if the task has none.
        sources: Names of the sources of the training rows (`Batch.data_sources`); empty if all come
            from one.
    """

    rows: int = 0
    classes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Models:
    """The shapes of the student and of one teacher, and their task.

    Attributes:
        student: The student.
        teacher: The teacher; None if the method has none. With several teachers, a method is called
            once per teacher, each time with a different one.
        kind: Name of the kind of task, such as `classification`.
        data: The rows and classes of the stage.
    """

    student: ModelInfo
    teacher: ModelInfo | None
    kind: str = "classification"
    data: DataInfo = DataInfo()

    @property
    def pair(self) -> tuple[ModelInfo, ModelInfo]:
        """The student and the teacher, for a method that has one.

        Raises:
            MethodError: The method has none.
        """
        if self.teacher is None:
            raise MethodError(
                "a method without a teacher asks for one; declare teachers = 'one' in its class"
            )
        return self.student, self.teacher
