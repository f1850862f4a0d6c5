"""Five data sets on which a default method is chosen: rows for students and for teachers.

For each data set a folder with `few`, `many` (a student's labeled rows), `weak`, `strong` (its
teacher's rows, none of them a student's), `validation` and `test`:

- `sst2`, `rte`: from the folders given, in which the official validation rows are the test;
- `embedded`: paragraphs of Python's docstrings by chapter of the documentation, 12 classes;
- `modules`: the same paragraphs by module, of the modules that have enough of them;
- `packages`: descriptions of Debian's packages by section, from `apt-cache dumpavail`, without
  the words of the package's name.

    apt-get update
    python tests/benchmarks/default_method_data.py FOLDER --sst2 DIR --rte DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from gkd_core.data import docstrings

Row = dict[str, str]

SIZES = {"few": 200, "many": 1500, "weak": 600, "strong": 6000, "validation": 500, "test": 2000}
"""Rows of each file; of a data set with fewer rows, all but `few` have the same share of them."""

FEWEST_GROUPS = 12
"""Groups of alike rows that a class has at least."""

MOST_ALIKE = 3
"""Rows of a group that are kept."""


def sst2(folder: Path) -> tuple[list[Row], list[Row]]:
    """Return SST-2's phrases for training, and its test rows."""
    return tuple(
        [{"text": row["sentence"], "label": row["label"]} for row in _read_tsv(folder / name)]
        for name in ("train.tsv", "test.tsv")
    )


def rte(folder: Path) -> tuple[list[Row], list[Row]]:
    """Return RTE's pairs for training, and its validation rows."""
    return tuple(
        [
            {"text": row["premise"], "text_pair": row["hypothesis"], "label": row["label"]}
            for row in map(json.loads, (folder / name).read_text().splitlines())
        ]
        for name in ("train.jsonl", "val.jsonl")
    )


def paragraphs(*, by_module: bool) -> list[list[Row]]:
    """Return groups of alike paragraphs of the standard library's docstrings."""
    passages = docstrings.unique(docstrings.collect(Path(sysconfig.get_path("stdlib"))))
    members: dict[int, list[Row]] = {}
    for group, passage in zip(docstrings.groups(passages), passages, strict=True):
        label = _module(passage.origin) if by_module else str(passage.label)
        members.setdefault(group, []).append({"text": passage.text, "label": label})
    return [group[:MOST_ALIKE] for group in members.values()]


def packages() -> list[Row]:
    """Return the description of every package that `apt-cache` knows, with its section."""
    listed = subprocess.run(
        ["apt-cache", "dumpavail"], capture_output=True, text=True, check=True
    ).stdout
    rows = {}
    for entry in listed.split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", entry, re.MULTILINE))
        description = re.search(r"^Description(?:-en)?: (.+(?:\n .+)*)", entry, re.MULTILINE)
        if description and {"Package", "Section"} <= fields.keys():
            text = _without_name(fields["Package"], description[1]).strip()
            if text:
                rows[text] = {"text": text, "label": fields["Section"]}
    return list(rows.values())


def _without_name(package: str, description: str) -> str:
    words = [re.escape(word) for word in re.split(r"[-.+]", package) if len(word) > 2]
    plain = " ".join(description.split())
    return re.sub("|".join(words), "", plain, flags=re.IGNORECASE) if words else plain


def _module(origin: str) -> str:
    path = Path(origin.rpartition(":")[0]).with_suffix("")
    return ".".join(path.parts).removesuffix(".__init__")


def _read_tsv(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def frequent(groups: Iterable[Sequence[Row]]) -> list[Sequence[Row]]:
    """Return the groups without the rows of classes that few groups have."""
    groups = list(groups)
    counts = Counter(label for group in groups for label in {row["label"] for row in group})
    kept = ([row for row in group if counts[row["label"]] >= FEWEST_GROUPS] for group in groups)
    return [group for group in kept if group]


def deal(groups: Sequence[Sequence[Row]], sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Deal shuffled groups to files, each whole, so that alike rows never meet in two files.

    Every file begins with a group of each class, so that models and rows have the same classes.
    """
    waiting = random.Random(0).sample(list(groups), len(groups))
    left = sum(map(len, groups)) - sizes["few"]
    share = min(1.0, left / (sum(sizes.values()) - sizes["few"]))
    dealt = {name: _one_of_each_class(waiting) for name in sizes}
    for name, size in sizes.items():
        wanted = size if name == "few" else int(size * share)
        while waiting and len(dealt[name]) < wanted:
            dealt[name] += waiting.pop()
    return dealt


def _one_of_each_class(waiting: list[Sequence[Row]]) -> list[Row]:
    """Take a group for each class out of the waiting ones, and return their rows."""
    missing = {row["label"] for group in waiting for row in group}
    taken: list[Row] = []
    for group in list(waiting):
        if missing & {row["label"] for row in group}:
            waiting.remove(group)
            taken += group
            missing -= {row["label"] for row in group}
    return taken


def with_test(train: list[Row], test: list[Row]) -> dict[str, list[Row]]:
    """Deal training rows, and take the test rows as they are."""
    sizes = {name: size for name, size in SIZES.items() if name != "test"}
    return deal([[row] for row in train], sizes) | {"test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--rte", type=Path, required=True)
    given = parser.parse_args()
    for name, files in {
        "sst2": with_test(*sst2(given.sst2)),
        "rte": with_test(*rte(given.rte)),
        "embedded": deal(paragraphs(by_module=False), SIZES),
        "modules": deal(frequent(paragraphs(by_module=True)), SIZES),
        "packages": deal(frequent([row] for row in packages()), SIZES),
    }.items():
        folder = given.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, rows in files.items():
            (folder / f"{file}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
        classes = len({row["label"] for rows in files.values() for row in rows})
        print(name, f"{classes} classes", {file: len(rows) for file, rows in files.items()})


if __name__ == "__main__":
    main()
