"""A cache that cannot be used costs time, but never ends a run."""

import warnings

import pytest

from gkd_core.data import cache
from gkd_core.data.cache import read_entry, set_aside, write_entry


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A new cache, of which nothing has been said yet."""
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "cache"))
    cache._unwritable.clear()
    return tmp_path / "cache"


def test_what_is_kept_is_found(folder):
    assert read_entry(folder / "rows" / "a.json", list) is None
    write_entry(folder / "rows" / "a.json", ["é", 1])
    assert read_entry(folder / "rows" / "a.json", list) == ["é", 1]
    (folder / "old.json").write_text('{"of": "version 0.1"}')
    assert read_entry(folder / "old.json", dict) == {"of": "version 0.1"}


DAMAGES = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-5],
    "another value": lambda text: text.replace("mine", "mind"),
    "another digest": lambda text: text.replace('"digest": "', '"digest": "0'),
    "another kind": lambda text: "7",
    "nested": lambda text: "[" * 100_000,
    "no text": lambda text: "\udcff",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_named_and_set_aside(folder, damage):
    path = folder / "a.json"
    write_entry(path, ["mine"])
    path.write_bytes(DAMAGES[damage](path.read_text()).encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=r"a\.json in the cache is damaged .* a\.json\.damaged"):
        assert read_entry(path, list) is None
    assert [path.name for path in folder.iterdir()] == ["a.json.damaged"]
    write_entry(path, ["mine"])
    assert read_entry(path, list) == ["mine"]


def test_damaged_directory_takes_the_place_of_an_earlier_one(folder):
    for content in ("first", "second"):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_text(content)
        with pytest.warns(UserWarning, match=r"model in the cache is damaged \(cut\)"):
            set_aside(folder / "model", "cut")
    assert (folder / "model.damaged" / "weights").read_text() == "second"


def test_cache_that_cannot_be_used_is_one_warning(folder):
    folder.write_text("a file where the cache should be")
    with pytest.warns(UserWarning, match="cannot be used .* Set GKD_CACHE to another directory"):
        write_entry(folder / "rows" / "a.json", ["mine"])
    with warnings.catch_warnings(action="error"):
        write_entry(folder / "rows" / "b.json", ["mine"])
        assert read_entry(folder / "rows" / "a.json", list) is None
