"""`Exam`: models that are evaluated on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from gkd_core.data.encode import TEXTS
from gkd_core.distributed.device import pick_device
from gkd_core.distributed.groups import arrange
from gkd_core.distributed.layout import Layout
from gkd_core.distributed.ranks import processes
from gkd_core.errors import DataError, MethodError
from gkd_core.evaluation import divergence, top_tokens
from gkd_core.evaluation.divergence import DivergenceWatch
from gkd_core.evaluation.evaluate import Predict, calling, evaluate
from gkd_core.evaluation.samples import Sampling, sample_means, write_samples
from gkd_core.evaluation.top_tokens import TopTokens, TopTokenWatch
from gkd_core.hooks.extraction import Extractor
from gkd_core.hooks.paths import LOGITS
from gkd_core.models.load import load_teacher
from gkd_core.models.save import count_parameters
from gkd_core.models.sites import find_sites
from gkd_core.parallel.placement import place_teacher
from gkd_core.teachers.kept import ask_once, shared_file
from gkd_core.training.agreement import answered
from gkd_core.training.stage_models import prepare_model, shard_reader
from gkd_core.vocabulary.weights import renumber

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.config.schema import Placement
    from gkd_core.contract.batch import Batch
    from gkd_core.contract.task import Split
    from gkd_core.data.encode import Encoded
    from gkd_core.kinds.task_kind import Evaluation, TaskKind
    from gkd_core.models.sites import Sites
    from gkd_core.training.stage_spec import StageSpec
    from gkd_core.vocabulary.reduced import ReducedVocabulary


@dataclass(frozen=True)
class ComparedModel:
    """A model to compare.

    Attributes:
        name: Its name in the table.
        model: Directory or hub id.
        tokenizer: Its tokenizer.
        trust_remote_code: Whether code that comes with it may run.
        tensor: Processes that share one copy of it.
        placement: Where its weights are kept between uses.
        called: Its short name, of the file of its predictions. Default: the last part of `model`.
        vocabulary: The tokens of a student, if the model reads rows in their ids.
        is_shared: Whether other runs find what it predicts, and it what they have.
    """

    name: str
    model: str
    tokenizer: PreTrainedTokenizerFast
    trust_remote_code: bool = False
    tensor: int = 1
    placement: Placement = "replicated"
    called: str = ""
    vocabulary: ReducedVocabulary | None = None
    is_shared: bool = False

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that it was trained with."""
        return self.tokenizer if self.vocabulary is None else self.vocabulary.origin

    @property
    def is_whole(self) -> bool:
        """Whether one process holds it by itself."""
        return self.tensor == 1 and (self.placement != "zero3" or processes(1) == 1)


class Exam:
    """Models that are evaluated on the same rows, one after the other.

    Args:
        spec: The stage whose rows are used.
        compared: The models.
        judge: The one with which the others are compared, and which answers for labels that the
            rows lack; None if there is none.
        adapters: Site adapters registered by plugins.
        sampling: The texts that language models write; None if they write none.

    Attributes:
        judge: The model with which the others are compared.
        readings: The rows, and what makes batches of them, by tokenizer.
        holds_all: Whether one process can hold all models at once.

    Raises:
        DataError: The rows have no labels, and there is no judge.
    """

    def __init__(
        self,
        spec: StageSpec,
        compared: Sequence[ComparedModel],
        judge: ComparedModel | None,
        adapters: Sequence[type[Sites]],
        sampling: Sampling | None,
    ) -> None:
        self.judge = judge
        self._spec = spec
        self._sampling = sampling
        self._adapters = adapters
        _, self._split = spec.judged
        self._device = pick_device(spec.config.parallel.device)
        self._top: TopTokens | None = None
        self._known: Predict | None = None
        self.holds_all = all(one.is_whole for one in compared)
        judged = self._answered() if spec.is_unlabeled(self._split) else self._split
        self.readings = {
            one.tokenizer: (spec.encode(judged, one.tokenizer), spec.collator(one.tokenizer))
            for one in compared
        }

    @property
    def cut(self) -> str:
        """The number of texts that the tokenizer that cuts most has cut, and where."""
        most = max(
            (encoded for encoded, _ in self.readings.values()), key=attrgetter("num_truncated")
        )
        limit = f"cut at {self._spec.max_length} tokens (task.max_length)"
        return f"{limit}: {most.cut}" if most.cut else ""

    def load(self, compared: ComparedModel) -> tuple[PreTrainedModel, int]:
        """Return a model, or this process's shard of it, and its number of weights."""
        spec, placement = self._spec, compared.placement
        groups = arrange(Layout(processes(1), compared.tensor))
        model = load_teacher(
            compared.model,
            spec.kind,
            spec.data.classes,
            compared.trust_remote_code,
            compared.name,
            None if groups is None else shard_reader(groups.tensor),
        )
        if compared.vocabulary is not None:
            renumber(model, compared.vocabulary.kept)
        prepare_model(model, spec, compared.tokenizer)
        size = count_parameters(model)
        if placement == "replicated":
            return model.to(self._device), size
        blocks = find_sites(model, self._adapters).blocks
        copies = None if groups is None else groups.data
        place_teacher(model, blocks, placement, self._device, copies)
        return model, size

    def evaluate(self, compared: ComparedModel, model: PreTrainedModel) -> Evaluation:
        """Return the evaluation of a model, with what can only be known of it and the judge now."""
        kind = self._spec.kind
        encoded, collator = self.readings[compared.tokenizer]
        predict = self._shared(compared, model) or _predict(model, kind, self._adapters)
        apart = self._divergence_watch(compared, predict)
        top = None
        if kind.is_lm and TEXTS in encoded.extra:
            top = TopTokenWatch(apart or predict)
        found = evaluate(model, encoded, collator, kind, self._device, top or apart or predict)
        if top is not None:
            found = self._with_top_tokens(found, top.tokens(), encoded, compared)
        if apart is not None:
            apart_by_row = kind.divergences(apart.values(len(encoded)), encoded)
            found = replace(found, columns={**found.columns, divergence.COLUMN: apart_by_row})
        measured = self._spec.measured(found, self._split)
        if self._sampling is None:
            return measured
        written = write_samples(model.eval(), compared.tokenizer, encoded, self._sampling)
        return replace(
            measured,
            columns={**measured.columns, **written},
            metrics={**measured.metrics, **sample_means(written)},
        )

    def samples(self, compared: ComparedModel, most: int) -> list[Batch]:
        """Return the first rows as a model reads them, as batches of one sample each."""
        encoded, collator = self.readings[compared.tokenizer]
        first = range(min(most, len(encoded)))
        return [collator.collate(encoded, [row], epoch=0).to(self._device) for row in first]

    def _shared(self, compared: ComparedModel, model: PreTrainedModel) -> Predict | None:
        """Return a function of the logits that runs share; None if each run computes its own."""
        kind = self._spec.kind
        if not compared.is_shared or processes(1) > 1 or kind.is_lm or kind.masks:
            return None
        try:
            reader = Extractor(model.eval(), find_sites(model, self._adapters))
        except MethodError:
            return None
        encoded, collator = self.readings[compared.tokenizer]
        file = shared_file(model, encoded, self._spec.data, "fp32", self._device)
        with torch.no_grad():
            answers = ask_once(
                reader, reader, encoded, collator, self._device, kind.predicted, file
            )
        return None if answers is None else lambda batch: answers.of(batch)[LOGITS]

    def _divergence_watch(
        self, compared: ComparedModel, predict: Predict
    ) -> DivergenceWatch | None:
        """Return what measures how far a model is from the judge, if nothing kept will tell."""
        judge = self.judge
        if self._spec.kind.keeps_scores or judge is None or not self.holds_all:
            return None
        if compared is judge:
            self._known = predict
            return DivergenceWatch(predict, None)
        if self._known is None or compared.tokenizer is not judge.tokenizer:
            return None
        return DivergenceWatch(predict, self._known)

    def _with_top_tokens(
        self, found: Evaluation, tokens: TopTokens, encoded: Encoded, compared: ComparedModel
    ) -> Evaluation:
        """Return an evaluation with the top tokens, and where they are those of the judge."""
        columns = {**found.columns, top_tokens.COLUMN: top_tokens.by_text(tokens, encoded)}
        if compared is self.judge:
            self._top = tokens
        if self._top is not None and compared.tokenizer is getattr(self.judge, "tokenizer", None):
            columns["same_top1"] = top_tokens.same_tokens(tokens, self._top, encoded)
        return replace(found, columns=columns)

    def _answered(self) -> Split:
        """Return rows without labels with the answers of the model that judges the others."""
        if self.judge is None:
            raise DataError(
                f"the rows of {self._spec.data.source} have no labels to evaluate by. Name the "
                "column (task.label), or give labeled rows"
            )
        model, _ = self.load(self.judge)
        predict = _predict(model, self._spec.kind, self._adapters)
        tokenizer = self.judge.tokenizer
        return answered(self._spec, self._split, model, tokenizer, self._device, predict)


def _predict(model: PreTrainedModel, kind: TaskKind, adapters: Iterable[type[Sites]]) -> Predict:
    """Return a function that predicts, from a language model without storing all its logits.

    The model is called if it is no language model, or its head is unknown.
    """
    if not kind.is_lm:
        return calling(model)
    try:
        reader = Extractor(model, find_sites(model, adapters))
    except MethodError:
        return calling(model)
    return lambda batch: reader.predict(batch.inputs)
