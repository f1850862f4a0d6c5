"""Python code that loads an export, for its model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd_core.analysis.loading_code import CHOICES, loading_code
from gkd_core.deploy.onnx_graph import GRAPH

if TYPE_CHECKING:
    from gkd_core.kinds.task_kind import TaskKind

PLACE, NOTE = ".", "the folder of this card"

DECODER = f"""\
from pathlib import Path

from gkd_core.deploy.onnx_model import OnnxDecoder
from transformers import AutoTokenizer

student = Path({PLACE!r})  # {NOTE}
tokenizer = AutoTokenizer.from_pretrained(student)
model = OnnxDecoder(student / {GRAPH!r})
ids = tokenizer("A text", return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.continue_greedily(ids, 8)[0]))"""

SESSION = f"""\
import onnxruntime
from transformers import AutoTokenizer

student = {PLACE!r}  # {NOTE}
tokenizer = AutoTokenizer.from_pretrained(student)
session = onnxruntime.InferenceSession(f"{{student}}/{GRAPH}")
read = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="np")
names = [each.name for each in session.get_inputs()]
print(session.run(None, {{name: read[name]INDEX for name in names}}))"""


def code_of_export(kind: TaskKind, is_graph: bool) -> str:
    """Return code that loads an export in whose directory it runs, and asks it something.

    Args:
        kind: The kind of task.
        is_graph: Whether it is an ONNX graph.
    """
    if not is_graph:
        return loading_code(PLACE, NOTE, kind.auto, False)
    if kind.generates:
        return DECODER
    if kind.auto.__name__.endswith(CHOICES):
        texts = '[["A text.", "A choice."], ["A text.", "Another."]]'
        return SESSION.replace("TEXTS", texts).replace("INDEX", "[None]")
    return SESSION.replace("TEXTS", '["A text."]').replace("INDEX", "")
