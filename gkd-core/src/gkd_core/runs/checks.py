"""Checks on shapes and settings that reject an invalid run before any weight is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from gkd_core.config.settings import DEFAULT
from gkd_core.contract.model_info import ModelInfo
from gkd_core.contract.rollout import TokenSampling
from gkd_core.data.classes import refuse_one_class
from gkd_core.data.encode_chats import has_answers
from gkd_core.data.sampler import fewest_samples
from gkd_core.distributed.device import check_devices
from gkd_core.errors import ConfigError, MethodError
from gkd_core.evaluation.answer_check import answer_check
from gkd_core.models.classes import check_classes
from gkd_core.models.load import check_kind
from gkd_core.models.stored import check_stored, check_stored_weights, check_trained_head
from gkd_core.models.tokenizer import check_vocabulary
from gkd_core.optim.deepspeed import check_engine
from gkd_core.parallel.divisibility import check_divisible, check_megatron
from gkd_core.runs.lora_checks import check_lora
from gkd_core.runs.packing_checks import check_packing
from gkd_core.runs.self_teaching_checks import check_self_teaching
from gkd_core.runs.source_checks import check_sources
from gkd_core.runs.token_checks import check_tokenizers
from gkd_core.runs.vocabulary import check_vocabulary_use
from gkd_core.teachers.served import Served
from gkd_core.training.augmentation import check_augmentation, copies
from gkd_core.training.keeping import check_keep

if TYPE_CHECKING:
    from gkd_core.config.schema import RolloutConfig, WritingConfig
    from gkd_core.contract.rollout import RolloutEngine
    from gkd_core.objective.ensemble import TeacherEnsemble
    from gkd_core.objective.step_plan import ActiveMethod
    from gkd_core.plugins import Registry
    from gkd_core.training.stage_spec import StageSpec


def check_here(spec: StageSpec) -> None:
    """Reject a stage that cannot be trained here because a device, package or weight is missing.

    Raises:
        GkdError: Something is missing; the message says what.
    """
    check_devices(spec.config.parallel)
    check_engine(spec.config.parallel)
    _check_weights(spec)


def check_spec(spec: StageSpec, registry: Registry) -> None:
    """Reject a stage that is invalid on any machine.

    Raises:
        GkdError: The stage is invalid; the message says why.
    """
    config = spec.config
    _check_layout(spec)
    registry.make_optimizer(config).check(config.parallel)
    check_tokenizers(spec)
    check_sources(spec)
    check_keep(spec)
    check_packing(spec)
    check_self_teaching(spec)
    for tokenizer in (spec.tokenizer, *(tokenizer for tokenizer, _ in spec.other_tokenizers)):
        spec.collator(tokenizer)
    _check_models(spec)
    check_augmentation(config, spec.kind)
    _check_scale(spec)
    check_lora(spec, registry)
    check_vocabulary_use(spec)
    _check_prompts(spec)
    _check_rollout(spec, registry)
    _check_writing(spec)
    _check_sampling(spec)
    for ensemble in spec.ensembles:
        _check_kind(spec, ensemble)
        _check_labels(spec, ensemble)
        _check_combiner(spec, ensemble)
    for member in spec.members:
        _check_kind(spec, member)
        _check_labels(spec, member)
        _check_samples(spec, member)
        _check_on_policy(spec, registry, member)
        _check_method(spec, member)
        _check_borrowed(spec, member)
    _check_judge(spec)


def check_labels_differ(spec: StageSpec) -> None:
    """Reject rows to train on that all have one label; a model can be evaluated on such rows.

    Raises:
        DataError: There is only one.
    """
    data = spec.data
    if data.train.labels is not None:
        labels = [*data.train.labels, *(data.validation.labels or ())]
        refuse_one_class(labels, data.classes, spec.kind, data.source)


def _check_layout(spec: StageSpec) -> None:
    """Reject parallel degrees that do not fit the models; the error says where each was set."""
    settings = [teacher.setting.removesuffix("model") + "tensor" for teacher in spec.teachers]
    try:
        layout = spec.layout
        check_megatron(layout)
        check_divisible(spec.student_config, layout.tensor, "parallel.tensor")
        for teacher, setting in zip(spec.teachers, settings, strict=True):
            check_divisible(teacher.config, teacher.tensor, setting)
    except ConfigError as error:
        origins = {"parallel.tensor": spec.origin("parallel.tensor")}
        for number, setting in enumerate(settings):
            origins[setting] = spec.origin(f"teachers.{number}.tensor")
        given = [f"{key} ({origin})" for key, origin in origins.items() if origin != str(DEFAULT)]
        raise ConfigError(f"{error}{'. Given is ' if given else ''}{', '.join(given)}") from error


def _check_method(spec: StageSpec, member: ActiveMethod) -> None:
    """Run a method's own check of the models."""
    with spec.naming_options(member):
        for method, models in zip(member.methods, member.models, strict=True):
            method.check(models)


def _check_combiner(spec: StageSpec, ensemble: TeacherEnsemble) -> None:
    """Run a combiner's own check of the models."""
    with spec.naming_options(ensemble):
        ensemble.combiner.check()


def _check_borrowed(spec: StageSpec, member: ActiveMethod) -> None:
    """Reject borrowed teacher blocks that would not be in place during the student's backward."""
    layout = spec.layout
    for method, teacher in zip(member.methods, spec.config.teachers, strict=False):
        if not method.borrows_blocks:
            continue
        if layout.teachers[teacher.name] > layout.tensor:
            raise ConfigError(
                f"{member.name} runs blocks of the teacher {teacher.name!r} in the student, but "
                f"{layout.teachers[teacher.name]} processes share the teacher and {layout.tensor} "
                "the student. Set the teacher's tensor to the student's (parallel.tensor)"
            )
        if teacher.placement != "replicated":
            raise ConfigError(
                f"{member.name} runs blocks of the teacher {teacher.name!r} in the student, which "
                f"is incompatible with placement = {teacher.placement!r}. Set it to 'replicated'"
            )


def _check_models(spec: StageSpec) -> None:
    if any(teacher.info.name == spec.student.name for teacher in spec.teachers):
        raise ConfigError("a teacher cannot be named 'student'; change its `name`")
    models = [(t.setting, t.config, t.info) for t in spec.teachers]
    models.append(("student.model", spec.student_config, spec.student))
    for setting, config, info in models:
        check_kind(config, spec.kind, setting)
        _check_length(spec, info)
    for teacher in spec.teachers:
        check_vocabulary(teacher.tokenizer, teacher.config, teacher.setting)
    check_vocabulary(spec.tokenizer, spec.student_config, "student.model")


def _check_weights(spec: StageSpec) -> None:
    for number, teacher in enumerate(spec.teachers if spec.loads_teachers else ()):
        data = spec.data
        if teacher.stage is not None and teacher.stage.kind != spec.kind:
            raise ConfigError(
                f"{teacher.setting} = '{teacher.model}': the student of stage "
                f"'{teacher.stage.name}' is trained for {teacher.stage.kind}, but stage "
                f"'{spec.name}' is {spec.kind}. Name a stage of kind {spec.kind}"
            )
        check_classes(teacher.config, spec.kind, data.classes, teacher.setting)
        if teacher.stage is not None or not spec.reads_weights(number):
            continue
        check_stored(teacher.model, teacher.config, spec.kind, teacher.setting)
        check_stored_weights(teacher.model, teacher.config, spec.kind, teacher.setting)
        if teacher.store is None:
            check_trained_head(teacher.model, teacher.config, spec.kind, teacher.setting)
    if spec.config.student.model is not None and spec.follows is None:
        check_stored(spec.config.student.model, spec.student_config, spec.kind, "student.model")
        check_stored_weights(
            spec.config.student.model, spec.student_config, spec.kind, "student.model"
        )


def _check_length(spec: StageSpec, info: ModelInfo) -> None:
    wanted = spec.max_length
    if wanted > info.max_length:
        raise ConfigError(
            f"task.max_length is {wanted} ({spec.origin('task.max_length')}), but "
            f"{'the student' if info is spec.student else f'the teacher {info.name!r}'} reads "
            f"at most {info.max_length} tokens. Set task.max_length={info.max_length} or less"
        )


def _check_scale(spec: StageSpec) -> None:
    """Reject `student.scale` if there are no labels to rank by, or if the student is sharded."""
    if spec.follows is not None or spec.config.student.slice is None:
        return
    if spec.layout.tensor > 1:
        raise ConfigError(
            f"student.scale gives blocks different widths, which parallel.tensor = "
            f"{spec.layout.tensor} cannot shard. Set parallel.tensor = 1"
        )
    if spec.is_unlabeled(spec.data.train):
        raise ConfigError(
            f"student.scale ranks heads and neurons by the labels, but {spec.data.source} "
            "has none. Name the label column (task.label), or set student.layers instead"
        )


def _check_kind(spec: StageSpec, owner: ActiveMethod | TeacherEnsemble) -> None:
    """Reject a method that is not right for the kind of task."""
    fitting = owner.methods[0].kinds
    if not spec.kind.counts_as(fitting):
        raise MethodError(
            f"{owner.name} is not made for task.kind = '{spec.kind}', but for "
            f"{', '.join(fitting)}. `gkd methods NAME` says what a method is made for"
        )


def _check_rollout(spec: StageSpec, registry: Registry) -> None:
    """Reject rollouts that no model of the stage can write."""
    config = spec.config.rollout
    if config is None:
        return
    if not spec.kind.generates:
        raise ConfigError(
            f"rollout lets models write text, but task.kind is {spec.kind} "
            f"({spec.origin('task.kind')}). Use causal-lm, or remove the rollout table"
        )
    _check_written_length(spec, "rollout", config)
    engine = registry.rollout_engine(config)
    if config.teacher_writes and isinstance(spec.teachers[0].source, Served):
        _check_remote_writing(spec, engine)
    elif config.uses_teacher:
        _check_writing_teacher(spec, config)
    if config.mixture and not engine.mixes:
        raise ConfigError(
            f"rollout.mixture ({spec.origin('rollout.mixture')}) has the teacher take part in each "
            f"token of the student, but the engine '{engine.name}' writes with one model. Use "
            "rollout.engine = 'generate', or remove rollout.mixture"
        )


def _check_remote_writing(spec: StageSpec, engine: RolloutEngine) -> None:
    """Reject a server that cannot be told how to draw, or would be asked twice for the same row."""
    wish = f"rollout.teacher ({spec.origin('rollout.teacher')}) lets a server write"
    if engine.sampling() is None:
        raise ConfigError(
            f"{wish}, but the engine '{engine.name}' does not say how it draws tokens "
            "(`RolloutEngine.sampling`). Use rollout.engine = 'generate', or the teacher's model"
        )
    if spec.layout.tensor > 1:
        raise ConfigError(
            f"{wish}, but {spec.layout.tensor} processes share the student and would each ask for "
            "the same row, which a server may write differently. Set parallel.tensor = 1, or use "
            "the teacher's model"
        )


def _check_writing(spec: StageSpec) -> None:
    """Reject answers that no teacher of the stage can write before the first step."""
    config = spec.config.writing
    if config is None:
        return
    if not spec.kind.generates:
        raise ConfigError(
            f"writing has a teacher write answers, but task.kind is {spec.kind} "
            f"({spec.origin('task.kind')}). Use causal-lm, or remove the writing table"
        )
    _check_written_length(spec, "writing", config)
    teacher = spec.teachers[0]
    if teacher.source is not None and not isinstance(teacher.source, Served):
        raise ConfigError(
            f"writing has the teacher {teacher.info.name!r} write answers, but its own come from "
            f"'{teacher.source.name}', which cannot write. Give its model, or its server"
        )
    if isinstance(teacher.source, Served):
        teacher.source.check_server()


def _check_sampling(spec: StageSpec) -> None:
    """Reject answers of models that write none, and a check of answers that cannot be one."""
    if spec.config.task.check is not None:
        answer_check(spec.config.task.check)
    if spec.config.samples is not None and not spec.kind.generates:
        raise ConfigError(
            f"samples lets models write answers, but task.kind is {spec.kind} "
            f"({spec.origin('task.kind')}). Use causal-lm, or remove the samples table"
        )


def _check_written_length(
    spec: StageSpec, table: str, config: RolloutConfig | WritingConfig
) -> None:
    """Reject written rows that are longer than the models may read."""
    longest = config.prompt_tokens + config.max_new_tokens
    if longest > spec.max_length:
        names = (f"{table}.prompt_tokens", f"{table}.max_new_tokens")
        given = " and ".join(f"{name} ({spec.origin(name)})" for name in names)
        raise ConfigError(
            f"{given} give rows of up to {longest} tokens, but the longest allowed is "
            f"{spec.max_length}. Lower one of them, or raise task.max_length"
        )


def _check_prompts(spec: StageSpec) -> None:
    """Reject prompts without answers where no model writes one for every row."""
    data, config = spec.data, spec.config.rollout
    writes = spec.is_written or (config is not None and config.written >= 1 - 1e-9)
    if not writes and not has_answers(data.train):
        raise ConfigError(
            f"{data.source} has prompts without answers, so a row that no model writes has "
            "nothing to learn. Let models write every row (rollout.student and rollout.teacher "
            "add up to 1), or the teacher before the first step (writing), or give a column of "
            "answers (task.target)"
        )
    if not has_answers(data.validation):
        raise ConfigError(
            f"the rows to validate of {data.source} have prompts without answers, so no student "
            "can be judged by them. Name rows with answers (task.validation)"
        )


def _check_writing_teacher(spec: StageSpec, config: RolloutConfig) -> None:
    """Reject a teacher whose ranks see different rows, each of which would be written alone."""
    layout, teacher, setting = spec.layout, spec.teachers[0].info.name, config.teacher_setting
    if layout.teachers[teacher] > layout.tensor:
        raise ConfigError(
            f"{setting} ({spec.origin(setting)}) lets the teacher {teacher!r} "
            f"write, but {layout.teachers[teacher]} processes share it and {layout.tensor} the "
            "student. Set the teacher's tensor to that of the student (parallel.tensor)"
        )


def _check_on_policy(spec: StageSpec, registry: Registry, member: ActiveMethod) -> None:
    """Reject a method that learns from the student's own text where the student writes none."""
    rollout = spec.config.rollout
    if not member.methods[0].on_policy:
        return
    if rollout is None or not rollout.uses_student:
        raise ConfigError(
            f"{member.name} learns from text that the student writes, and the student writes none. "
            "Set rollout.engine=generate and rollout.student=1, or a lower share, or use the "
            f"recipe {member.name}"
        )
    sampling, own = registry.rollout_engine(rollout).sampling(), TokenSampling()
    if sampling is None or sampling == own:
        return
    pairs = {name: (getattr(sampling, name), value) for name, value in asdict(own).items()}
    changed = {f"rollout.{name}": pair for name, pair in pairs.items() if pair[0] != pair[1]}
    given = [f"{name} = {value} ({spec.origin(name)})" for name, (value, _) in changed.items()]
    wanted = [f"{name}={value:g}" for name, (_, value) in changed.items()]
    raise ConfigError(
        f"{member.name} estimates from text that is drawn from the student's own distribution, and "
        f"{' and '.join(given)} would draw it from another. Set {' and '.join(wanted)}"
    )


def _check_judge(spec: StageSpec) -> None:
    """Reject rows without labels to judge students by if no teacher can give answers to them."""
    data = spec.data
    splits = [rows for rows in (data.validation, data.test) if rows is not None]
    if not any(map(spec.is_unlabeled, splits)):
        return
    missing = f"the validation or test rows of {data.source} have no labels"
    if not spec.live_teachers:
        raise ConfigError(
            f"{missing}, and no teacher model runs whose answers could replace them. Name labeled "
            "rows (task.validation, task.test)"
        )
    teacher, tensor = spec.live_teachers[0], spec.layout.tensor
    if teacher.tensor > tensor:
        raise ConfigError(
            f"{missing}, so the teacher {teacher.info.name!r} answers for them, but "
            f"{teacher.tensor} processes share it and {tensor} the student. Set the teacher's "
            "tensor to that of the student (parallel.tensor), or name labeled rows"
        )


def _check_labels(spec: StageSpec, owner: ActiveMethod | TeacherEnsemble) -> None:
    if spec.is_unlabeled(spec.data.train) and owner.methods[0].needs_labels:
        raise ConfigError(
            f"{owner.name} needs labels, but {spec.data.source} has none. Name the label "
            "column (task.label), or use methods that need none, such as soft"
        )


def _check_samples(spec: StageSpec, member: ActiveMethod) -> None:
    """Reject micro-batches that are too small for a method, including the last of an epoch."""
    needed, training = member.methods[0].min_samples, spec.config.training
    wants = f"{member.name} compares the samples of a micro-batch and needs {needed} or more"
    size, parts = training.batch_size, training.accumulation
    usual = fewest_samples(size, parts)
    if usual < needed:
        raise ConfigError(
            f"{wants}, but training.batch_size={size} ({spec.origin('training.batch_size')}) "
            f"in {parts} micro-batch{'es' if parts > 1 else ''} (training.accumulation) leaves "
            f"{usual}. Raise training.batch_size or lower training.accumulation"
        )
    # Some kinds know their number of rows only after splitting texts into blocks or windows.
    if spec.kind.splits_rows:
        return
    rows = len(spec.data.train) * (1 + copies(spec.config, spec.kind))
    left = rows % size
    if left and fewest_samples(left, parts) < needed:
        advice = "Set another training.batch_size"
        if rows == len(spec.data.train):
            advice = f"Set task.rows={rows - left} or another training.batch_size"
        raise ConfigError(
            f"{wants}, but the last batch of an epoch has {left} of {rows} rows (in {parts} "
            f"micro-batch{'es' if parts > 1 else ''}). {advice if rows > left else 'Use more rows'}"
        )
