"""Agreement with a teacher, whose answers take the place of labels that rows do not have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gkd_core.evaluation.evaluate import Predict, evaluate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from gkd_core.contract.task import Split
    from gkd_core.training.stage_spec import StageSpec


def answered(
    spec: StageSpec,
    split: Split,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    predict: Predict | None = None,
) -> Split:
    """Return rows without labels with the answers of a teacher as labels.

    Every rank must call this; all return the same.

    Args:
        spec: The stage.
        split: The rows.
        teacher: The teacher, on its device.
        tokenizer: Its tokenizer.
        device: Its device.
        predict: Computes the logits of a batch. Default: calls the teacher.
    """
    kind, classes = spec.kind, spec.data.classes
    rows = spec.encode(replace(split, labels=kind.any_labels(split, classes)), tokenizer)
    found = evaluate(teacher, rows, spec.collator(tokenizer), kind, device, predict)
    return replace(split, labels=kind.answers(found.predictions, split, classes))
