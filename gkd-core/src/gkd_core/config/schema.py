"""`RunConfig`: every setting of a run, declared once.

Command-line help, validation, the reference page and `gkd config --schema` are derived from these
fields. The options of a method are in its own `Method.Config`, under the method's name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from string import Formatter
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gkd_core.config.graph import stage_of
from gkd_core.contract.schedule import Schedule
from gkd_core.contract.share import Share

Positive = Annotated[int, Field(gt=0)]
LONGEST_WAIT = 30 * 24 * 3600
"""Seconds: PyTorch counts them in nanoseconds, which end somewhere."""
FixedShare = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Offload = Literal["none", "cpu", "nvme"]
TeacherSize = Literal["large", "small"]
Placement = Literal["replicated", "offload", "zero3"]
LrSchedule = Literal[
    "linear", "cosine", "constant", "inverse-sqrt", "warmup-stable-decay", "polynomial"
]
ZERO = Schedule("constant", 0.0, 0.0)
LM = "lm"
"""The `task.kind` that stands for masked or causal language modeling, whichever fits the model."""
TENSORBOARD = "tensorboard"
"""The tracker that every run has unless `output.tensorboard` is false."""


def _fits(seed: int) -> int:
    if seed >= 2**63:
        raise ValueError(f"{seed} does not fit into the 63 bits that generators take")
    return seed


def _expanded(place: str) -> str:
    if not place:
        raise ValueError("is empty")
    if any(unicodedata.category(character) == "Cc" for character in place):
        raise ValueError("has control characters")
    expanded = os.path.expanduser(place)
    if expanded.startswith("~"):
        raise ValueError(f"names the user {place.split('/')[0][1:]!r}, who is not known here")
    return expanded


WrittenPath = Annotated[str, AfterValidator(_expanded)]
"""The path of something that is written."""
Seed = Annotated[int, Field(ge=0), AfterValidator(_fits)]


class Section(BaseModel):
    """A frozen table of settings that rejects unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class SourceConfig(BaseModel):
    """Where a teacher's answers come from, with the options of this source."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(description="A registered source of answers.")


def named_in(template: str) -> set[str]:
    """Return the names in braces in a text.

    Raises:
        ValueError: A brace is not closed.
    """
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


class TeacherConfig(Section):
    """One teacher."""

    model: str | None = Field(
        None,
        description="Directory or hub id, or `stage:NAME`: the student of an earlier stage. "
        "If unset, the task's default teacher is trained.",
    )
    size: TeacherSize = Field(
        "large",
        description="Which of the task's default teachers to use if `model` is unset.",
    )
    name: str = Field(
        "teacher", pattern=r"^[a-z][a-z0-9_-]*$", description="Name in paths and reports."
    )
    trust_remote_code: bool = Field(
        False, description="Run model code that comes with the checkpoint."
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Data type of the weights and the computation; methods read fp32 tensors.",
    )
    placement: Placement = Field(
        "replicated",
        description="Where the weights are stored between uses: `replicated` on each device, "
        "`offload` in host memory, `zero3` sharded over the processes.",
    )
    tensor: Positive | None = Field(
        None,
        description="Tensor-parallel size: processes that share one copy, each with a shard of "
        "every layer. Default: the student's.",
    )
    keep: Literal["auto", "share", "none", "memory", "disk"] = Field(
        "auto",
        description="Whether the teacher's logits of the training rows are computed once and "
        "kept: `auto` if the rows are read again, the teacher is not a language model, and the "
        "logits take at most 256 MiB; `share` is like `auto`, but keeps them in the cache, where "
        "other runs find them, and also if rows are read only once; `memory` always, and "
        "hidden states and attention that methods read as well; `disk` is like `memory`, in the "
        "cache; `none` never. With `share` and `disk`, so are its answers about the test rows.",
    )
    prompt: str | None = Field(
        None,
        description="What the teacher is asked instead of a row's prompt: a text with `{prompt}` "
        "and, as privileged context, `{answer}`, the row's own answer, and `{context}`, the "
        "row's `task.context`. Default: what the student is asked.",
    )
    follow: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Share of the way to the student's weights that the teacher's weights move "
        "after each step, which makes the teacher a moving average of the student. Default: the "
        "teacher does not change.",
    )
    source: SourceConfig | None = Field(
        None,
        description="Where the teacher's answers come from, if not from its own model: the `name` "
        "of a source and its options. `model` is then read for its shape and tokenizer only.",
    )
    tokenizer: str | None = Field(
        None,
        description="Directory or hub id of the tokenizer of a teacher with a `source`, and of its "
        "`config.json` if `model` is not set. Default: `model`, or else the student's.",
    )

    @field_validator("prompt")
    @classmethod
    def _has_prompt(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            names = named_in(value)
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces") from error
        if not {"prompt"} <= names <= {"prompt", "answer", "context"}:
            raise ValueError(
                f"has {', '.join(f'{{{name}}}' for name in sorted(names)) or 'no names'} in "
                "braces; {prompt} is needed, and {answer} and {context} are possible"
            )
        return value


class LoraConfig(Section):
    """Low-rank adapters (LoRA): only they are trained, and all else of the student is frozen."""

    rank: Positive = Field(16, description="Rank of the matrices of each adapter.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Adapters are multiplied by alpha / rank. Default: twice the rank.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the inputs of the adapters."
    )
    targets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all",
        description="Layers that get an adapter: `all` linear layers of the blocks, or a list of "
        "names such as q_proj and v_proj.",
    )
    head: bool | None = Field(
        None,
        description="Whether the head of the task is trained too, whole. Default: true, unless the "
        "student is a language model. A new head always is.",
    )

    @property
    def scale(self) -> float:
        """The value of `alpha`, or its default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class StudentConfig(Section):
    """The student: its own checkpoint, or a smaller copy of the (first) teacher."""

    model: str | None = Field(
        None,
        description="Directory or hub id of a checkpoint to start from, or `stage:NAME`: the "
        "student of an earlier stage.",
    )
    layers: Positive | Literal["half", "all"] | None = Field(
        None,
        description="Transformer blocks: a number, or `half` or `all` of the teacher's. Default: "
        "all.",
    )
    hidden_size: Positive | None = Field(
        None, description="Width of the residual stream; the teacher's if unset."
    )
    heads: Positive | None = Field(None, description="Attention heads; the teacher's if unset.")
    ffn_size: Positive | None = Field(
        None, description="Feed-forward width; scaled like hidden_size if unset."
    )
    scale: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Share of the teacher's heads and feed-forward neurons to keep: those most "
        "important for the labels of training rows. Default: 1, all.",
    )
    vocabulary: Positive | None = Field(
        None,
        description="Number of tokens in the student's vocabulary: the teacher's tokens that the "
        "texts of the run use, those that these need, and the most frequent others. Default: all.",
    )
    config: dict[str, Any] = Field(
        {},
        description="Other settings of its Hugging Face configuration that differ from the "
        "teacher's, such as intra_bottleneck_size of a MobileBERT.",
    )
    init: Literal["first", "last", "spaced", "none", "random"] | list[Positive] = Field(
        "spaced",
        description="Teacher blocks that initialize the student: `first`, `last`, evenly `spaced`, "
        "or a list of 1-based blocks; `none` for new blocks between the teacher's embedding and "
        "head, or `random` for new weights everywhere.",
    )
    lora: LoraConfig | None = Field(
        None, description="Low-rank adapters. Default: none; the whole student is trained."
    )
    new_student: bool | None = Field(
        None,
        description="Create a new student for this stage instead of continuing with the previous "
        "stage's. Default: true if the stage names its own student or learns from the previous "
        "stage's.",
    )
    trust_remote_code: bool = Field(
        False, description="Run model code that comes with the checkpoint."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> StudentConfig:
        shape = ("layers", "hidden_size", "heads", "ffn_size", "scale", "vocabulary", "config")
        given = [name for name in (*shape, "init") if name in self.model_fields_set]
        if self.model is not None and any(getattr(self, name) for name in shape):
            raise ValueError(
                f"`model` starts the student from its own checkpoint, so {', '.join(given)} "
                "cannot be set as well"
            )
        sizes = [name for name in shape[1:4] if getattr(self, name) is not None]
        if self.slice is not None and sizes:
            raise ValueError(
                f"`scale` sets the widths, so {', '.join(sizes)} cannot be set as well"
            )
        if self.slice is not None and self.init in ("random", "none"):
            raise ValueError(
                f"`scale` keeps the most important weights: set it without init = '{self.init}'"
            )
        if self.lora is not None and self.init in ("random", "none"):
            raise ValueError(
                f"`lora` freezes the weights that it adapts, but init = '{self.init}' makes new "
                "ones. Start from trained weights (`model`, or another `init`)"
            )
        if self.new_student and stage_of(self.model) is not None:
            raise ValueError(
                f"`model` = '{self.model}' continues with the student of another stage, so "
                "`new_student` cannot be set as well"
            )
        return self

    @property
    def slice(self) -> float | None:
        """The share of heads and neurons that is kept; None if all are."""
        return None if self.scale == 1 else self.scale


class TaskConfig(Section):
    """The data and the prediction target."""

    name: str | None = Field(
        None,
        description="A registered task. Default: `files` if `train` is given, else `embedded`.",
    )
    kind: str | None = Field(
        None,
        description="What is predicted; `lm` is masked-lm for an encoder and causal-lm for a "
        "decoder. Default: for tables classification (regression if every label is a fraction), "
        "for text files lm.",
    )
    train: str | None = Field(
        None,
        description="Training file (jsonl, csv, tsv, parquet, txt) or hub dataset, of which "
        "`NAME[:1000]` are the first rows of each split; several with their shares as in "
        "`a.jsonl:0.7,b.jsonl:0.3`. If a stage names its own, the run's validation, test and "
        "columns do not apply to it.",
    )
    validation: str | None = Field(
        None, description="Validation file or hub split. Default: a share of the training rows."
    )
    test: str | None = Field(None, description="Test file or hub split; optional.")
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the training rows held out when there is no validation file."
    )
    rows: Positive | None = Field(
        None,
        description="Training rows to use, sampled evenly from the classes. Default: all. The "
        "task's default teacher always learns from all rows.",
    )
    text: str | None = Field(None, description="Column of the text; found by name if unset.")
    text_pair: str | None = Field(None, description="Column of the second text, for pairs.")
    label: str | None = Field(None, description="Column of the label; found by name if unset.")
    target: str | None = Field(
        None,
        description="Column with the text that causal-lm learns to write after the row's text; "
        "only this is learned. Default: the model learns the texts themselves.",
    )
    chat: bool | None = Field(
        None,
        description="Whether causal-lm formats texts and targets as turns of a conversation, with "
        "the tokenizer's chat template. Default: always for messages; for prompts and answers "
        "that are found by name, if there is a template; never for columns that are named here.",
    )
    group: str | None = Field(
        None,
        description="Column with equal values in rows that belong together, such as the answers "
        "to one question. They are held out together, and `group_accuracy` is the share of the "
        "groups whose rows are all predicted correctly.",
    )
    source: str | None = Field(
        None,
        description="Column that says where each row is from, such as the name of the teacher that "
        "teaches it. Metrics are also reported for the rows of each source.",
    )
    context: str | None = Field(
        None,
        description="Column with privileged context of the training rows, such as a worked "
        "solution or feedback. No model reads it but teachers whose `prompt` has `{context}`.",
    )
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        None,
        description="Names of the classes in the order of the outputs of models that do not name "
        "theirs (LABEL_0, LABEL_1); rows may lack some of them, or only count them (0, 1). "
        "Default: those of the teacher or checkpoint; else the labels of the rows, in numeric or "
        "alphabetical order.",
    )
    check: str | None = Field(
        None,
        description="How to tell right answers from wrong ones when models write answers "
        "(`samples`, `gkd eval --samples`): `package.module:function` of an installed package, "
        "which takes `prompt`, `answer` and `target`, or a regular expression that an answer must "
        "have.",
    )
    max_length: Positive | None = Field(
        None,
        description="Maximum sequence length in tokens; longer rows are truncated. Default: "
        "that of the task, usually 128, or the models' limit if that is less.",
    )
    packing: bool = Field(
        False,
        description="Pack several training rows into one sequence of `max_length` tokens, in "
        "which no token sees another row; causal-lm only. Texts fill every sequence; texts with "
        "targets and conversations are not split.",
    )
    mask_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="Share of tokens that masked-lm predicts."
    )
    augment: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Copies of every labeled training row with some words replaced (TinyBERT's "
        "data augmentation); not used in language modeling.",
    )
    augment_model: str | None = Field(
        None, description="Directory or hub id of the masked language model that proposes words."
    )
    augment_share: FixedShare = Field(
        0.4, description="Probability that a word of a copy is replaced."
    )
    augment_candidates: Positive = Field(
        15, description="Number of likeliest words from which a replacement is drawn."
    )
    default_teacher: Literal["encoder", "decoder"] | None = Field(
        None,
        description="Type of the embedded task's default teacher. Default: that of the previous "
        "stage; else a decoder for causal-lm, an encoder otherwise.",
    )


SHARES = re.compile(r"[^,]+:\d+(\.\d+)?(,[^,]+:\d+(\.\d+)?)+")
"""Several sources of rows with a weight each."""


def data_shares(train: str | None) -> dict[str, float]:
    """Return the sources in a `task.train` with their shares; empty if it names a single one."""
    if train is None or SHARES.fullmatch(train) is None:
        return {}
    pairs = [one.rpartition(":") for one in train.split(",")]
    total = sum(float(weight) for _, _, weight in pairs)
    return {place: float(weight) / total for place, _, weight in pairs}


def task_name(task: TaskConfig) -> str:
    """Return the name of the configured task."""
    if data_shares(task.train):
        return "mixture"
    return task.name or ("embedded" if task.train is None else "files")


class TrainingConfig(Section):
    """The optimization of the student."""

    epochs: Positive = Field(3, description="Passes over the training data.")
    steps: Positive | None = Field(None, description="Optimizer steps; overrides `epochs` if set.")
    batch_size: Positive = Field(32, description="Samples per optimizer step.")
    accumulation: Positive = Field(
        1, description="Micro-batches per optimizer step; must divide `batch_size`."
    )
    lr: Annotated[float, Field(gt=0)] = Field(5e-5, description="Peak learning rate.")
    lr_schedule: LrSchedule = Field(
        "linear",
        description="Decay of the learning rate after the warm-up; `inverse-sqrt` divides it by "
        "the root of the steps, `warmup-stable-decay` keeps it until a linear decay at the end.",
    )
    lr_floor: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the peak learning rate at which linear, cosine, polynomial and "
        "warmup-stable-decay end.",
    )
    lr_decay_share: FixedShare = Field(
        0.2, description="Share of the steps in which warmup-stable-decay decays."
    )
    lr_power: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Power of polynomial; 1 is linear."
    )
    warmup: FixedShare = Field(
        0.1, description="Share of the steps in which the rate increases from 0."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Weight decay, not applied to biases and normalization layers."
    )
    beta1: Beta = Field(0.9, description="AdamW beta 1.")
    beta2: Beta = Field(0.999, description="AdamW beta 2.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW epsilon.")
    clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Maximum gradient norm; 0 disables clipping."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="bf16 and fp16 run both models under autocast; weights and losses stay fp32. "
        "fp16 scales the loss and skips steps whose gradients overflow; bf16 needs neither.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute the student's activations in the backward pass."
    )
    length_bucketing: bool = Field(
        True, description="Batch samples of similar length, which saves padding."
    )
    evaluate_every: Positive | None = Field(
        None, description="Steps between evaluations; once per epoch if unset."
    )
    patience: Positive | None = Field(
        None, description="Stop after this many evaluations without improvement."
    )
    keep_best: bool = Field(
        True, description="Output the student with the best evaluation instead of the last one."
    )
    checkpoint_every: Positive | None = Field(
        None, description="Steps between checkpoints; at every evaluation if unset."
    )
    log_every: Positive = Field(10, description="Steps between log lines and TensorBoard points.")

    @model_validator(mode="after")
    def _floor_fits_schedule(self) -> TrainingConfig:
        if self.lr_floor and self.lr_schedule in ("constant", "inverse-sqrt"):
            raise ValueError(
                f"lr_floor = {self.lr_floor:g} needs a decay to a floor, which lr_schedule = "
                f"{self.lr_schedule!r} does not have. Set lr_floor = 0, or another lr_schedule"
            )
        return self


class OptimConfig(Section):
    """The optimizer; the options of each are in a table of its name, such as `optim.muon`."""

    name: str = Field("adamw", description="A registered optimizer; `gkd optimizers` lists all.")
    options: dict[str, Any] = Field(
        {}, exclude=True, description="Options by optimizer; written as `optim.NAME.OPTION`."
    )


class ParallelConfig(Section):
    """Device placement and parallelism over several processes."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` is cuda if available, else cpu."
    )
    nproc: Positive = Field(
        1, description="Processes on this machine, one per GPU; each gets a share of the rows."
    )
    tensor: Positive = Field(
        1,
        description="Tensor-parallel size: processes that share one copy of the student, each with "
        "a shard of every layer, and see the same rows. Must divide the number of processes.",
    )
    zero: Annotated[int, Field(ge=0, le=3)] = Field(
        0,
        description="What DeepSpeed ZeRO shards over the processes: 1: the optimizer state; 2: "
        "also the gradients; 3: also the student's weights; 0: nothing.",
    )
    timeout: Annotated[float, Field(gt=0, le=LONGEST_WAIT)] = Field(
        1800.0,
        description="Seconds that a process waits for the others, for example while the first one "
        "saves a large student. After that, the run ends and reports where each process was.",
    )
    offload_optimizer: Offload = Field(
        "none", description="Where to offload the optimizer state; nvme needs zero = 3, cpu >= 1."
    )
    offload_params: Offload = Field(
        "none", description="Where to offload the student's weights between uses; needs zero = 3."
    )
    nvme_path: WrittenPath | None = Field(None, description="Directory on a local disk, for nvme.")

    @model_validator(mode="after")
    def _offload_fits_zero(self) -> ParallelConfig:
        needed = {
            "offload_optimizer": {"none": 0, "cpu": 1, "nvme": 3}[self.offload_optimizer],
            "offload_params": {"none": 0, "cpu": 3, "nvme": 3}[self.offload_params],
        }
        for name, zero in needed.items():
            if self.zero < zero:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} needs zero = {zero}"
                    f"{' or more' if zero < 3 else ''}, not {self.zero}"
                )
        if "nvme" in (self.offload_optimizer, self.offload_params) and self.nvme_path is None:
            raise ValueError("nvme needs nvme_path, a directory on a local disk")
        return self


class RolloutConfig(BaseModel):
    """Text that models write during training instead of the rows' own; causal-lm only.

    The options of the engine belong in the same table.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    engine: str = Field(description="The registered engine that continues prompts.")
    student: Share = Field(
        ZERO,
        description="Share of the rows that the student writes, each step with its current "
        "weights: a number or a schedule.",
    )
    teacher: Share = Field(
        ZERO,
        description="Share of the rows that the (first) teacher writes: a number or a schedule.",
    )
    mixture: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of the (first) teacher in the distribution from which each token of the "
        "student's rows is drawn; methods weigh such text by importance. 0: the student alone.",
    )
    prompt_tokens: Positive = Field(
        32,
        description="Number of tokens at the start of a row that are its prompt, unless the data "
        "says what the prompt is. Losses count only what follows the prompt, also in rows of the "
        "data.",
    )
    max_new_tokens: Positive = Field(
        64, description="Maximum number of tokens that a model writes after a prompt."
    )
    replay: Positive | None = Field(
        None,
        description="Number of the student's texts to keep. The student's rows are then drawn "
        "from these, and the share of rows that it writes anew falls from 1 to 0 over the stage. "
        "Default: the student writes all of its rows anew.",
    )
    adaptive: bool = Field(
        False,
        description="Start with the share `student`, and raise it by 0.1 whenever the validation "
        "loss is `loss_rise` above its value at the last raise, or at first above its first value.",
    )
    loss_rise: float = Field(
        0.1, ge=0, description="Rise of the validation loss at which `adaptive` raises the share."
    )

    @model_validator(mode="after")
    def _are_shares(self) -> RolloutConfig:
        for moment in ("start", "end"):
            written: float = sum(getattr(each, moment) for each in (self.student, self.teacher))
            if written > 1 + 1e-9:
                raise ValueError(
                    f"`student` and `teacher` are shares of the same rows, but add up to "
                    f"{written:g} at the {moment} of the stage"
                )
        if self.mixture and not self.uses_student:
            raise ValueError(
                f"`mixture` = {self.mixture:g} has the teacher take part in the student's text, "
                "but the student writes none; set `student`"
            )
        return self

    @property
    def uses_student(self) -> bool:
        """Whether the student ever writes."""
        return self.adaptive or self.student.start > 0 or self.student.end > 0

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher ever writes, alone or with the student."""
        return self.teacher_writes or self.mixture > 0

    @property
    def teacher_writes(self) -> bool:
        """Whether the teacher ever writes rows of its own."""
        return self.teacher.start > 0 or self.teacher.end > 0

    @property
    def teacher_setting(self) -> str:
        """The setting that makes the teacher write, if one does."""
        return "rollout.teacher" if self.teacher_writes else "rollout.mixture"

    @property
    def written(self) -> float:
        """The smallest share of the rows that models write."""
        start, end = (
            getattr(self.student, moment) + getattr(self.teacher, moment)
            for moment in ("start", "end")
        )
        return float(min(start, end))

    @property
    def options(self) -> dict[str, Any]:
        """The options of the engine."""
        return dict(self.model_extra or {})


class WritingConfig(Section):
    """Answers that the (first) teacher writes to all prompts of a stage before its first step.

    They replace the answers in the data and are saved with the run; causal-lm only.
    """

    temperature: float = Field(
        0.0,
        ge=0,
        description="Divides the logits of the teacher; 0 takes the most likely token each time.",
    )
    top_k: int = Field(0, ge=0, description="Draw from the K most likely tokens only; 0 for all.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw from the most likely tokens that together have this probability.",
    )
    samples: Positive = Field(
        1, description="Answers to each prompt; more than one needs a temperature."
    )
    prompt_tokens: Positive = Field(
        32,
        description="First tokens of a row that are its prompt, unless the data says what the "
        "prompt is.",
    )
    max_new_tokens: Positive = Field(64, description="Maximum number of tokens of an answer.")
    ended: bool = Field(
        True,
        description="Leave out answers that were cut at `max_new_tokens`. If they are kept, the "
        "student learns to stop where they were cut.",
    )
    min_tokens: Positive = Field(1, description="Leave out shorter answers.")
    distinct: bool = Field(
        True, description="Leave out an answer that equals an earlier one to the same prompt."
    )
    pattern: str | None = Field(
        None,
        description="Leave out answers in which this regular expression finds no match. Default: "
        "accept any answer.",
    )

    @model_validator(mode="after")
    def _can_differ(self) -> WritingConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"`samples` is {self.samples}, but at `temperature` 0 all are equal; raise it"
            )
        return self

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        try:
            regex.compile(value or "")
        except regex.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return value


class SamplesConfig(Section):
    """Answers that teacher and student write at every evaluation, and at the end; causal-lm only.

    They change nothing about training.
    """

    rows: Positive = Field(8, description="Number of rows whose prompts are answered.")
    new_tokens: Positive = Field(
        64, description="Maximum number of tokens of an answer, unless its target is longer."
    )
    shown: Annotated[int, Field(ge=0)] = Field(
        2, description="Number of answers that the log shows at every evaluation."
    )


class ProbeConfig(Section):
    """Distances between features of teacher and student, measured while the student trains.

    They change nothing about training.
    """

    features: Annotated[list[str], Field(min_length=1)] = Field(
        ["all"],
        description="The features of the student to compare with the teacher's: `all`, or sites "
        "such as `hidden[*]`, `attention[last]` and `logits`.",
    )
    every: Positive = Field(100, description="Steps between measurements.")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0, 2.0, 4.0],
        description="Temperatures of the divergences of attention and logits.",
    )
    layers: str | list[tuple[Positive, Positive]] = Field(
        "spaced",
        description="The blocks to compare: a layer map such as `spaced` or `last`, or [student, "
        "teacher] pairs.",
    )


class OutputConfig(Section):
    """Output files and directories."""

    dir: WrittenPath | None = Field(
        None,
        description="Run directory. Default: runs/NAME-N with the next free number, where NAME is "
        "the recipe or the method.",
    )
    tensorboard: bool = Field(True, description="Write TensorBoard events to DIR/tensorboard.")
    every_log: bool = Field(
        False,
        description="Write a log for every process, log-RANK.txt, in addition to the first one's "
        "log.txt.",
    )
    checkpoints: Positive = Field(
        2,
        description="Checkpoints of a stage to keep: the newest, and those before it in case it is "
        "damaged. Each holds the best student so far.",
    )
    reuse: bool = Field(
        True,
        description="Copy the student of a stage that an earlier run trained with the same "
        "settings, data, models and code, instead of training it again.",
    )
    compare_on: Literal["test", "validation"] = Field(
        "test",
        description="Rows on which the models are compared at the end. As long as settings are "
        "chosen, `validation` leaves the test rows alone, and is faster if they are many. Without "
        "test rows, it is always `validation`.",
    )


class TrackingConfig(Section):
    """Trackers, which record the run in addition to its own directory."""

    sinks: list[str] = Field(
        [], description="Registered sinks that also record the run, such as wandb or mlflow."
    )
    options: dict[str, Any] = Field(
        {}, exclude=True, description="Options by sink; written as `tracking.NAME.OPTION`."
    )


class ProcedureConfig(BaseModel):
    """The procedure that generates the stages of a run, with its options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(description="A registered procedure, such as `takd`.")


class StageConfig(BaseModel):
    """One stage: a name, and the settings in which it differs from the run."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="Name of the stage.")


class RunConfig(Section):
    """A run: models, data, method and stages."""

    method: str = Field(
        "soft",
        description="Methods to sum, with weights: `pkd+soft`, `2*pkd+0.5*soft`; several teachers "
        "are averaged, or combined as in `mt-bert(soft)+hard`. Default: `soft+hard` for rows with "
        "labels.",
    )
    recipe: str | None = Field(
        None, description="A shipped recipe; the values in this file override its values."
    )
    paper_values: bool = Field(
        False,
        description="Train with the recipe's values, even if the task adjusts recipes because its "
        "rows and models are far smaller than those of the papers.",
    )
    teachers: list[TeacherConfig] = Field(
        [TeacherConfig()], min_length=1, description="The teachers."
    )
    student: StudentConfig = Field(StudentConfig(), description="The student.")
    task: TaskConfig = Field(TaskConfig(), description="The data.")
    training: TrainingConfig = Field(TrainingConfig(), description="The optimization.")
    optim: OptimConfig = Field(OptimConfig(), description="The optimizer.")
    parallel: ParallelConfig = Field(ParallelConfig(), description="Devices.")
    rollout: RolloutConfig | None = Field(
        None, description="Text that models write during training. Default: none."
    )
    writing: WritingConfig | None = Field(
        None, description="Answers that the teacher writes before the first step. Default: none."
    )
    samples: SamplesConfig | None = Field(
        None, description="Answers that models write at every evaluation. Default: none."
    )
    probe: ProbeConfig | None = Field(
        None, description="Distances measured during training. Default: none."
    )
    output: OutputConfig = Field(OutputConfig(), description="Files.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="Trackers.")
    baseline: bool | None = Field(
        None,
        description="Also train the same student on labels alone, for comparison. Default: if the "
        "rows have labels and it adds at most half to the cost of the run, and on the embedded "
        "task.",
    )
    procedure: ProcedureConfig | None = Field(
        None, description="Generates the stages from options, in recipes such as `takd`."
    )
    seed: Seed = Field(1, description="Seed of all random numbers.")
    stages: list[StageConfig] = Field(
        [],
        description="Stages, run in order; each continues with the previous one's student unless "
        "it says otherwise. Default: one stage with the settings of the run.",
    )
    options: dict[str, Any] = Field(
        {}, exclude=True, description="Method options by method name; written at the top level."
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the sinks that record the run."""
        usual = [TENSORBOARD] if self.output.tensorboard else []
        return tuple(dict.fromkeys([*usual, *self.tracking.sinks]))

    @model_validator(mode="after")
    def _unique_names(self) -> RunConfig:
        for kind, items in (("teacher", self.teachers), ("stage", self.stages)):
            names = [item.name for item in items]
            if len(set(names)) < len(names):
                raise ValueError(f"every {kind} needs a unique name, got {names}")
        return self
