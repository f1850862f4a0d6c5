"""Distill a student from a teacher and rows that are loaded already."""

import json
import sys

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gkd_core import run


def main(teacher: str, rows: str) -> None:
    """Distill a student of two blocks, and print how it compares."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    with open(rows, encoding="utf-8") as file:
        data = Dataset.from_list([json.loads(line) for line in file])

    found = run(
        teacher=(model, tokenizer),
        student=2,
        data=data,
        method="pkd+soft",
        output="runs/from-python",
        settings={"training.epochs": 1},
    )
    print(found.comparison)
    found.student.save_pretrained("my-student")
    found.tokenizer.save_pretrained("my-student")


if __name__ == "__main__":
    main(*sys.argv[1:])
