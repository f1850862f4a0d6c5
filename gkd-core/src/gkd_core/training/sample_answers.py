"""`SampleAnswers`: what teacher and student write to a few prompts while a stage trains."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gkd_core.evaluation.samples import Sampling, sample_means, write_samples
from gkd_core.training.moving_teacher import moving_teachers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.data.encode import Encoded
    from gkd_core.training.stage import Stage
    from gkd_core.training.stage_spec import StageSpec

LONGEST = 400
"""Characters of a prompt or an answer that the log shows."""

Columns = Mapping[str, Sequence[Any]]


class SampleAnswers:
    """Answers of the models of a stage to the first validation prompts.

    Those of teachers are written once, unless they follow the student.

    Args:
        spec: The stage.
        sampling: How many are written.
    """

    def __init__(self, spec: StageSpec, sampling: Sampling) -> None:
        self._spec = spec
        self._sampling = sampling
        self._of_teachers: dict[str, Columns] | None = None

    def write(self, stage: Stage, say: Callable[[str], None]) -> dict[str, float]:
        """Let the models write; return the measures of the student's answers.

        Every rank must call this, and all write the same: their weights may be sharded.

        Args:
            stage: The stage with its models.
            say: Told of some answers, those of all models side by side.
        """
        if self._of_teachers is None or any(moving_teachers(stage)):
            self._of_teachers = dict(self._teachers(stage))
        own = self._written(stage.student.model, self._spec.tokenizer, stage.validation)
        for line in self._side_by_side({**self._of_teachers, "student": own}):
            say(line)
        return sample_means(own)

    def _teachers(self, stage: Stage) -> Iterator[tuple[str, Columns]]:
        spec = self._spec
        for teacher, extractor in zip(spec.live_teachers, stage.live_teachers, strict=True):
            split = stage.validation
            if teacher.tokenizer is not spec.tokenizer:
                split = spec.encode(spec.data.validation, teacher.tokenizer)
            yield (
                teacher.info.name,
                self._written(extractor.model, teacher.tokenizer, split),
            )

    def _written(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, split: Encoded
    ) -> Columns:
        was_training = model.training
        model.eval()
        try:
            return write_samples(model, tokenizer, split, self._sampling)
        finally:
            model.train(was_training)

    def _side_by_side(self, written: Mapping[str, Columns]) -> Iterator[str]:
        """Yield the first prompts, each with its target and the answer of every model."""
        samples = self._spec.config.samples
        shown = 0 if samples is None else samples.shown
        prompts, targets = next(iter(written.values()))["prompt"], self._spec.data.validation.target
        answered = [row for row, prompt in enumerate(prompts) if prompt is not None]
        for row in answered[:shown]:
            yield f"prompt: {_short(prompts[row])}"
            if targets is not None:
                yield f"  target: {_short(targets[row])}"
            for name, columns in written.items():
                yield f"  {name}: {_short(columns['generated'][row] or '')}"


def _short(text: str) -> str:
    return textwrap.shorten(text, LONGEST, placeholder=" ...")
