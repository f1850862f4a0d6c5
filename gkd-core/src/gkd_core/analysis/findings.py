"""`Findings`: what `gkd eval` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gkd_core.analysis.comparison import Compared
from gkd_core.analysis.written_answers import in_words, measured, side_by_side
from gkd_core.evaluation.pairs import ModelPair
from gkd_core.evaluation.predictions import Pairing
from gkd_core.kinds.language_model import bits_per_byte
from gkd_core.kinds.task_kind import TaskKind


@dataclass(frozen=True)
class Findings:
    """The result of an evaluation.

    Attributes:
        compared: The models, and what they say of each row.
        kind: The kind of task.
        pair: The model against another; None if there is none.
        pairing: The rows of the pair, if the other had rows of its own.
    """

    compared: Compared
    kind: TaskKind
    pair: ModelPair | None
    pairing: Pairing | None = None

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        found = asdict(self.compared.with_intervals())
        if bits := self._bits_per_byte():
            found["bits_per_byte"] = bits
        if written := list(side_by_side(self.compared.predictions)):
            found["written"] = written
        if means := measured(self.compared.predictions):
            found["written_answers"] = means
        if self.pair is not None:
            found["against"] = asdict(self.pair)
        if (pairing := self.pairing) is not None:
            found["against"]["unpaired"] = [pairing.only_ours, pairing.only_theirs]
        return found

    def show(self) -> None:
        """Print the table of the models, and what else there is."""
        console = Console(highlight=False)
        console.print(self.compared.comparison.table())
        for name, bits in self._bits_per_byte().items():
            console.print(f"{bits:.4f} bits per byte: {name}", markup=False, soft_wrap=True)
        for name, means in measured(self.compared.predictions).items():
            console.print(f"{in_words(means)}: {name}", markup=False, soft_wrap=True)
        for sample in side_by_side(self.compared.predictions):
            prompt, *written = sample.items()
            console.print(f"\n{prompt[1]}", markup=False)
            for name, text in written:
                console.print(f"  {name}: {text}", markup=False)
        if self.pair is not None:
            console.print()
            console.print(_pair_table(self.pair, self.kind))
        if (pairing := self.pairing) is not None and pairing.only_ours + pairing.only_theirs:
            console.print(
                f"compared on the rows of both; the model has {pairing.only_ours:,} others, the "
                f"predictions have {pairing.only_theirs:,}",
                markup=False,
            )

    def _bits_per_byte(self) -> dict[str, float]:
        """Return the bits per byte of each model that predicts every token of its texts."""
        predictions = self.compared.predictions
        if not self.kind.generates:
            return {}
        return {
            predictions.names[file]: bits_per_byte(
                table["nll"].to_numpy(), table["bytes"].to_numpy()
            )
            for file, table in predictions.models.items()
            if "nll" in table.column_names
        }


def _pair_table(pair: ModelPair, kind: TaskKind) -> Table:
    """Return the facts about two models as lines of a name and a value."""
    table = Table(
        title=f"{pair.model} against {pair.against}, {pair.rows:,} rows",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_header=False,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _pair_lines(pair, kind):
        table.add_row(name, value)
    return table


def _pair_lines(pair: ModelPair, kind: TaskKind) -> Iterator[tuple[str, str]]:
    if pair.difference is not None:
        found = pair.difference
        inside = ""
        if found.interval is not None:
            inside = f" ({found.interval.level:.0%} interval {found.interval:+.4f})"
        yield f"difference in {pair.metric}", f"{found.value:+.4f}{inside}"
    if pair.agreement is not None:
        what = "likeliest token" if kind.is_lm else "answer"
        yield f"same {what}", f"{pair.agreement:.1%}"
    if pair.kl is not None:
        yield "KL divergence", f"{pair.kl:.4f} nats from the other's distribution"
    for name, calibration in pair.calibration.items():
        yield "calibration error", f"{calibration.error:.4f} {name}"
    if pair.mcnemar is not None:
        test = pair.mcnemar
        yield (
            "McNemar's test",
            f"p = {test.p:.4g}; only {pair.model} is right on {_rows(test.only_first)}, only "
            f"{pair.against} on {_rows(test.only_second)}",
        )


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
