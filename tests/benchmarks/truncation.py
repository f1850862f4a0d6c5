"""What is left of the divergence from a teacher of which only the likeliest words are known.

The student has some blocks of the teacher and is not trained. Printed for each k: the teacher's
probability of its k likeliest words, the share of KL(teacher || student), and the cosine between
the gradient of the logits and that of the whole divergence. `tail` is what gkd does, all other
words as one; `cut` leaves them out of the sum; `renormalized` makes the k words of both sides a
distribution. The text is the docstrings of Python's standard library:

    python tests/benchmarks/truncation.py TEACHER [BLOCKS] [TOKENS]

With `curve` in the place of BLOCKS, students of 12 blocks learn from `tail`, `cut` and the whole
distribution of the same rows, and the held-out KL is printed along the way.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkd_core.api import Items, TopKLogits, kl

WORDS = (1, 8, 64)
LENGTH = 128
MODULES = ("argparse", "csv", "decimal", "email.message", "json", "logging", "pathlib", "tarfile")
ROWS, STEPS, RATE, SHOWN, HELD_OUT = 4, 40, 3e-4, 10, 8


def tail(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """Return the KL over the likeliest words and all others as one."""
    over = Items.where("token", torch.ones(len(student), dtype=torch.bool))
    return kl(student, TopKLogits.of(teacher, k), over).values


def cut(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """Return the part of the sum that the likeliest words have."""
    log_p, ids = teacher.log_softmax(-1).topk(k)
    log_q = student.log_softmax(-1).gather(-1, ids)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def renormalized(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """Return the KL over the likeliest words alone."""
    log_p, ids = teacher.topk(k)
    log_p, log_q = log_p.log_softmax(-1), student.gather(-1, ids).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def whole(student: Tensor, teacher: Tensor, k: int) -> Tensor:
    """Return the KL over all words."""
    return functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


LOSSES = {"tail": tail, "cut": cut, "renormalized": renormalized}


def main() -> None:
    """Print the table, or the curves."""
    torch.manual_seed(0)
    place, blocks, tokens = Path(sys.argv[1]), *sys.argv[2:4], *("24", "512")[len(sys.argv) - 2 :]
    teacher = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    rows = read(place)
    if blocks == "curve":
        print_curves(teacher, rows)
    else:
        print_table(teacher, some_blocks(teacher, int(blocks)), rows[: int(tokens) // LENGTH])


def read(place: Path) -> Tensor:
    """Return the rows of the text, `[N, LENGTH]`."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    text = "\n\n".join(docstrings())
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the classes and functions of some modules."""
    for name in MODULES:
        module = importlib.import_module(name)
        for _, member in sorted(vars(module).items(), key=lambda item: item[0]):
            if inspect.isclass(member) or inspect.isfunction(member):
                yield f"{member.__name__}: {inspect.getdoc(member) or ''}"


def some_blocks(teacher: torch.nn.Module, blocks: int) -> torch.nn.Module:
    """Return a student that has blocks of a Llama-like teacher at equal distances."""
    student = copy.deepcopy(teacher)
    chosen = torch.linspace(0, len(teacher.model.layers) - 1, blocks).round().int().tolist()
    student.model.layers = torch.nn.ModuleList(student.model.layers[number] for number in chosen)
    return student


@torch.no_grad()
def print_table(teacher: torch.nn.Module, student: torch.nn.Module, rows: Tensor) -> None:
    """Print the shares and cosines of each k, over all tokens of the rows."""
    sums = {(name, k): torch.zeros(4, dtype=torch.float64) for name in LOSSES for k in WORDS}
    mass, total, tokens = dict.fromkeys(WORDS, 0.0), 0.0, rows.numel()
    for row in rows:
        known, learned = (
            model(row[None], use_cache=False).logits[0].float() for model in (teacher, student)
        )
        value, gradient = solve(whole, learned, known, 0)
        total += value
        for k in WORDS:
            mass[k] += float(known.softmax(-1).topk(k).values.sum())
            for name, loss in LOSSES.items():
                part, slope = solve(loss, learned, known, k)
                products = (slope * gradient).sum(), slope.square().sum(), gradient.square().sum()
                sums[name, k] += torch.tensor([part, *map(float, products)], dtype=torch.float64)
    print(f"{tokens} tokens, {known.shape[-1]} words, KL {total / tokens:.3f}")
    for k in WORDS:
        shown = []
        for name in LOSSES:
            part, inner, own, theirs = sums[name, k].tolist()
            cosine = inner / max((own * theirs) ** 0.5, 1e-30)
            shown.append(f"{name} share {part / total:6.3f} cosine {cosine:.4f}")
        print(f"k {k:3}  mass {mass[k] / tokens:.3f}  " + "  ".join(shown))


def solve(loss, student: Tensor, teacher: Tensor, k: int) -> tuple[float, Tensor]:
    """Return the sum of a loss over the tokens, and its gradient."""
    with torch.enable_grad():
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, k).sum()
    return float(value), torch.autograd.grad(value, leaf)[0]


def print_curves(teacher: torch.nn.Module, rows: Tensor) -> None:
    """Train a student by each loss, with k of 1 and 8; print its KL on held-out rows."""
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    sides = [("whole", whole, 0)]
    sides += [(f"{name} {k}", LOSSES[name], k) for k in (1, 8) for name in ("tail", "cut")]
    for name, loss, k in sides:
        student = some_blocks(teacher, 12)
        optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.0)
        shown = []
        for step in range(STEPS + 1):
            if step % SHOWN == 0:
                shown.append(f"{divergence(teacher, student, held_out):.3f}")
            batch = rows[torch.arange(step * ROWS, (step + 1) * ROWS) % len(rows)]
            with torch.no_grad():
                known = teacher(batch).logits.flatten(0, 1)
            loss(student(batch, use_cache=False).logits.flatten(0, 1), known, k).mean().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(f"{name:8} held-out KL after every {SHOWN} steps: {' '.join(shown)}", flush=True)


@torch.no_grad()
def divergence(teacher: torch.nn.Module, student: torch.nn.Module, rows: Tensor) -> float:
    """Return the mean KL from the teacher to the student over some rows."""
    sides = (
        (model(row[None], use_cache=False).logits[0] for model in (student, teacher))
        for row in rows
    )
    return float(torch.cat([whole(*pair, 0) for pair in sides]).mean())


if __name__ == "__main__":
    main()
