"""`AnswerStore`: answers that are kept as they come, so that nobody is asked twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from gkd_core.data.cache import set_aside, warn_unwritable
from gkd_core.teachers.answer_form import Columns
from gkd_core.teachers.answer_shard import AnswerShard, is_whole, shard_name


class AnswerStore:
    """Answers about documents in a directory, which several processes may add to.

    Args:
        folder: The directory; it is made when something is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: bytes) -> Columns | None:
        """Return the answer about a document; None if nobody was asked, or it is damaged."""
        found = self._known.get(key)
        with suppress(ValueError):
            return None if found is None else found[0].document(found[1])
        return None

    def add(self, keys: Sequence[bytes], answers: Sequence[Columns]) -> None:
        """Keep answers by token; a directory that cannot be written is a warning."""
        lengths = [len(next(iter(own.values()))) for own in answers]
        shard = AnswerShard.of(keys, lengths, answers)
        self._note(shard)
        try:
            shard.save(self.folder, shard_name(len(self._known)))
        except OSError as error:
            warn_unwritable(error)

    @cached_property
    def _known(self) -> dict[bytes, tuple[AnswerShard, int]]:
        """The position of the answer to each document."""
        known: dict[bytes, tuple[AnswerShard, int]] = {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                if not is_whole(path):
                    raise OSError("its content is not what was written")
                known |= _places(AnswerShard.load(path))
            except (OSError, SafetensorError, KeyError) as error:
                set_aside(path, str(error))
        return known

    def _note(self, shard: AnswerShard) -> None:
        self._known.update(_places(shard))


def _places(shard: AnswerShard) -> dict[bytes, tuple[AnswerShard, int]]:
    return {key.tobytes(): (shard, place) for place, key in enumerate(shard.keys.numpy())}
