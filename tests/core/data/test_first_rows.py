"""The first rows of a dataset of the hub: nothing else is read, and they are read once."""

import json
import logging

import datasets
import pytest

from gkd_core.config.schema import TaskConfig
from gkd_core.data.hub import Hub
from gkd_core.errors import ConfigError, DataError
from gkd_core.plugins import registry

FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
)


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "gkd"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.fixture
def directory(tmp_path):
    """A dataset of two files, of which the second is damaged, with 30 rows in the first."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    write(folder, range(30))
    (folder / "train-00001-of-00002.jsonl").write_text("{no json")
    return folder


def write(folder, numbers):
    rows = [{"text": f"row {number}", "label": number % 2} for number in numbers]
    path = folder / "train-00000-of-00002.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(train, **settings):
    task = Hub(TaskConfig(name="hub", train=str(train), **settings), registry().kinds)
    task.check()
    assert task.files()
    return task.load("masked-lm", 1)


def texts(data):
    return sorted([*data.train.text, *data.validation.text], key=lambda text: int(text[4:]))


class Repository:
    """A dataset of the hub, with a revision and the rows that were taken of it."""

    def __init__(self, monkeypatch):
        self.revision, self.taken, self.down = "one", [], None
        monkeypatch.setattr(datasets, "load_dataset_builder", self._builder)

    @property
    def cache_dir(self):
        return f"nobody___nothing/default/0.0.0/{self.revision}"

    def as_streaming_dataset(self):
        def rows():
            for number in range(1000):
                self.taken.append(number)
                yield {"text": f"row {number}", "label": number % 2}

        return {"train": datasets.IterableDataset.from_generator(rows, FEATURES)}

    def _builder(self, path, configuration):
        if self.down is not None:
            raise self.down
        return self


@pytest.fixture
def repository(monkeypatch):
    return Repository(monkeypatch)


def test_no_other_rows_are_taken_and_these_once(repository):
    first = load("nobody/nothing[:20]")
    assert (texts(first), first.classes) == ([f"row {n}" for n in range(20)], ("yes", "no"))
    assert repository.taken == list(range(20))
    assert load("nobody/nothing[:20]").rows_hash == first.rows_hash
    assert repository.taken == list(range(20))


def test_another_revision_is_read_anew(repository):
    load("nobody/nothing[:20]")
    repository.revision = "two"
    load("nobody/nothing[:20]")
    assert repository.taken == [*range(20)] * 2


def test_rows_of_the_last_time_are_used_without_the_hub(repository, caplog):
    first = load("nobody/nothing[:20]")
    repository.down = ConnectionError("no network")
    with caplog.at_level(logging.WARNING):
        again = load("nobody/nothing[:20]")
    assert (again.rows_hash, again.classes) == (first.rows_hash, first.classes)
    assert (
        "nobody/nothing: the first 20 rows are those of the last time (no network)" in caplog.text
    )
    with pytest.raises(DataError, match=r"nothing\[:21\]' .*cannot be loaded: no network"):
        load("nobody/nothing[:21]")


def test_rows_that_were_removed_are_missed_without_the_hub(repository, tmp_path):
    load("nobody/nothing[:20]")
    (tmp_path / "hub").rename(tmp_path / "gone")
    repository.down = ConnectionError("no network")
    with pytest.raises(DataError, match="cannot be loaded: no network"):
        load("nobody/nothing[:20]")


def test_other_files_are_not_read(directory):
    assert texts(load(f"{directory}[:20]")) == [f"row {n}" for n in range(20)]
    with pytest.raises(DataError, match="cannot be loaded"):
        load(directory)


def test_changed_file_is_read_anew(directory):
    load(f"{directory}[:20]")
    write(directory, range(100, 130))
    assert texts(load(f"{directory}[:20]")) == [f"row {n}" for n in range(100, 120)]


def test_all_rows_of_a_smaller_split_are_taken(directory):
    (directory / "train-00001-of-00002.jsonl").unlink()
    assert len(texts(load(f"{directory}[:1000]"))) == 30


def test_dataset_that_was_downloaded_is_enough_without_the_hub(directory, tmp_path):
    (directory / "train-00001-of-00002.jsonl").unlink()
    made = datasets.load_dataset_builder(str(directory))
    made.download_and_prepare()
    place = tmp_path / "hub" / "nobody___dataset" / "default" / "0.0.0" / "revision"
    place.parent.mkdir(parents=True)
    (tmp_path / made.cache_dir).rename(place)
    assert texts(load("nobody/dataset[:20]")) == [f"row {n}" for n in range(20)]


@pytest.mark.parametrize("rows", ["[10:20]", "[:10%]", "[:0]", "[-5:]"])
def test_other_parts_are_refused(rows):
    with pytest.raises(ConfigError, match=r"only the first rows .* as in imdb\[:1000\]"):
        Hub(TaskConfig(name="hub", train=f"imdb{rows}")).check()
