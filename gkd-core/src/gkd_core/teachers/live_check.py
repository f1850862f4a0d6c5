"""The distance of a server's answers from those of the same model on this machine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gkd_core.kinds.causal_lm import CausalLM
from gkd_core.models.load import load_teacher
from gkd_core.teachers.answer_form import IDS, LOG_PROBS, Columns


@torch.no_grad()
def divergence_from_live(
    model: str, origin: str, answers: Iterable[tuple[Tensor, Tensor, Columns]]
) -> float:
    """Return the mean KL per token from a server's likeliest words to the model's own.

    Both are over the server's words and, as one outcome, all others.

    Args:
        model: Directory or hub id of the model, which is loaded for this call only.
        origin: The setting that names it.
        answers: Of each text, its token ids `[S]`, the positions that were asked about `[T]`, and
            what the server answered: ids `[T, K]`, log-probabilities `[T, K + 1]`.

    Raises:
        ConfigError: The model cannot be loaded.
    """
    live = load_teacher(model, CausalLM(), (), False, origin)
    terms = [_divergence(live, *answer) for answer in answers]
    return float(torch.cat(terms).mean()) if terms else 0.0


def _divergence(live: torch.nn.Module, ids: Tensor, places: Tensor, answer: Columns) -> Tensor:
    own = live(input_ids=ids[None]).logits[0, places].double().log_softmax(-1)
    known = own.gather(-1, answer[IDS].long())
    rest = (1 - known.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(torch.float64).tiny).log()
    served = answer[LOG_PROBS].double()
    terms = served.exp() * (served - torch.cat([known, rest], -1))
    return terms.where(served > -torch.inf, 0.0).sum(-1)
