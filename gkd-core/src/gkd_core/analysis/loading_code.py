"""Python code that loads a saved model and asks it something, to be shown to people."""

from __future__ import annotations

from typing import Any

CHOICES = "MultipleChoice"
"""The end of the name of a class that reads each text with several choices."""

READING = {
    False: ['inputs = tokenizer("A text.", return_tensors="pt")'],
    True: [
        'pairs = [["A text.", "A choice."], ["A text.", "Another."]]',
        'read = tokenizer(pairs, padding=True, return_tensors="pt")',
        "inputs = {name: value.unsqueeze(0) for name, value in read.items()}",
    ],
}
"""How a text is read, without and with choices."""


def loading_code(place: str, note: str, auto: Any, trusts: bool) -> str:
    """Return code that loads a model with transformers.

    Args:
        place: Its directory.
        note: What to know about the directory.
        auto: The Auto class.
        trusts: Whether code that comes with it must run.
    """
    is_usual = auto.__module__.startswith("transformers.")
    module = "transformers" if is_usual else auto.__module__
    trust = ", trust_remote_code=True" if trusts else ""
    return "\n".join(
        [
            "from transformers import AutoTokenizer",
            f"from {module} import {auto.__name__}",
            "",
            f"student = {place!r}  # {note}",
            f"tokenizer = AutoTokenizer.from_pretrained(student{trust})",
            f"model = {auto.__name__}.from_pretrained(student{trust}).eval()",
            *READING[auto.__name__.endswith(CHOICES)],
            "print(model(**inputs))",
        ]
    )
