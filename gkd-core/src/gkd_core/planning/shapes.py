"""Models known only by their shape: a `config.json`, no weights, perhaps no tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from gkd_core.config.schema import RunConfig
from gkd_core.distributed.shards import Division
from gkd_core.models.adapters import trained_weights
from gkd_core.models.parts import find_parts
from gkd_core.models.quiet import quiet
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.named_path import named_path
from gkd_core.optim.groups import ChosenOptimizer
from gkd_core.runs.checks import check_spec
from gkd_core.runs.site_checks import check_architectures
from gkd_core.runs.spec_builder import SpecBuilder
from gkd_core.students.lora import adapt
from gkd_core.training.stage_spec import StageSpec, TeacherSpec
from gkd_core.vocabulary.reduced import ReducedVocabulary

if TYPE_CHECKING:
    from gkd_core.config.resolve import ResolvedStage
    from gkd_core.kinds.task_kind import TaskKind
    from gkd_core.plugins import Registry

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


class ShapeSpecBuilder(SpecBuilder):
    """Builds specs whose models need neither weights nor a tokenizer, for any machine."""

    def assign_tokenizers(
        self, config: RunConfig, teachers: Sequence[TeacherSpec], follows: StageSpec | None
    ) -> tuple[PreTrainedTokenizerFast, list[TeacherSpec]]:
        """Return the models' tokenizers, or a placeholder with a few words if a model has none."""
        named = [*(teacher.model for teacher in teachers), config.student.model]
        if any(model is not None and _lacks_tokenizer(model) for model in named):
            words = _few_words()
            return words, [replace(teacher, tokenizer=words) for teacher in teachers]
        return super().assign_tokenizers(config, teachers, follows)

    def load_tokenizer(
        self, model: str, trust_remote_code: bool, setting: str
    ) -> PreTrainedTokenizerFast:
        """Return the tokenizer of a model, or one of a few words if it has none."""
        if _lacks_tokenizer(model):
            return _few_words()
        return super().load_tokenizer(model, trust_remote_code, setting)

    def vocabulary(
        self, settings: ResolvedStage, relative: StageSpec | None, teachers: Sequence[TeacherSpec]
    ) -> ReducedVocabulary:
        """Return the tokens of a student that has a part of its teacher's; any, if it has none."""
        teacher, size = teachers[0], settings.config.student.vocabulary
        if size is not None and _lacks_tokenizer(teacher.model):
            return ReducedVocabulary(teacher.tokenizer, teacher.tokenizer, range(size), 0)
        return super().vocabulary(settings, relative, teachers)

    def check(self, spec: StageSpec) -> None:
        """Reject a stage that could not be trained on any machine."""
        check_spec(spec, self.registry)
        check_architectures(spec, self.registry)


def build_shape(
    config: PretrainedConfig,
    kind: TaskKind,
    classes: Sequence[str],
    trust_remote_code: bool,
    attention_dropout: bool,
) -> PreTrainedModel:
    """Return a model built from its configuration, without reading weights.

    Args:
        config: Its configuration.
        kind: The kind of task.
        classes: The task's classes.
        trust_remote_code: Run code that comes with the configuration.
        attention_dropout: Leave dropout in attention as it is. Unless it is 0, PyTorch's attention
            on CPUs keeps whole score matrices, which no GPU kernel does.
    """
    config = copy.deepcopy(config)
    kind.configure(config, classes)
    if not attention_dropout:
        for name in ATTENTION_DROPOUT:
            if hasattr(config, name):
                setattr(config, name, 0.0)
    with quiet():
        auto = kind.auto
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    return model


def count_weights(spec: StageSpec) -> dict[str, int]:
    """Return the number of weights of each model that a step runs, by name."""
    kind, classes = spec.kind, spec.data.classes
    read = spec.teachers if spec.reads_teachers else ()
    shapes = [("student", spec.student_config, spec.trusts_student)]
    shapes += [(t.info.name, t.config, t.trust_remote_code) for t in read]
    with torch.device("meta"):
        return {
            name: count_parameters(build_shape(config, kind, classes, trusts, True))
            for name, config, trusts in shapes
        }


@dataclass(frozen=True)
class TrainedPart:
    """The trained part of the student: all of it, unless it has adapters.

    Attributes:
        weights: Number of weights.
        state: Bytes of their optimizer state.
    """

    weights: int
    state: int


def count_trained(spec: StageSpec, registry: Registry) -> TrainedPart:
    """Return the trained part of the student."""
    with torch.device("meta"):
        model = build_shape(
            spec.student_config, spec.kind, spec.data.classes, spec.trusts_student, True
        )
        put_adapters(model, spec, registry)
    weights = trained_weights(model)
    factory = registry.make_optimizer(spec.config)
    chosen = ChosenOptimizer(factory, find_parts(find_sites(model, registry.sites)))
    known = chosen.describe(weights, Division([model]))
    return TrainedPart(
        weights=sum(weight.numel() for weight in weights),
        state=sum(factory.state_bytes(weight) for weight in known.values()),
    )


def put_adapters(model: PreTrainedModel, spec: StageSpec, registry: Registry) -> None:
    """Put the adapters of `student.lora` into a student, if it has any."""
    lora = spec.config.student.lora
    if lora is not None:
        adapt(model, find_sites(model, registry.sites), lora, spec.kind.is_lm)


def _lacks_tokenizer(model: str) -> bool:
    folder = named_path(model)
    return folder.is_dir() and not any(folder.glob("tokenizer*"))


def _few_words() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate((*SPECIAL, "word"))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": word for name, word in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)
