"""Hashes of content are those of SHA-256, and depend on content alone."""

import hashlib

from gkd_core import digest


def test_of_bytes_is_sha256_of_all_parts():
    assert digest.of_bytes([b"a", b"bc"]) == hashlib.sha256(b"abc").hexdigest()


def test_of_value_does_not_depend_on_the_order_of_keys():
    assert digest.of_value({"a": 1, "b": [2]}) == digest.of_value({"b": [2], "a": 1})
    assert digest.of_value({"a": 1}) != digest.of_value({"a": 2})
    assert len(digest.of_value(None)) == digest.SHORT


def test_of_files_depends_on_names_and_content_and_not_on_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    before = digest.of_files([one, two])
    assert digest.of_files([two, one]) == before
    two.write_text("3")
    assert digest.of_files([one, two]) != before
    two.write_text("2")
    assert digest.of_files([one, two]) == before
    assert digest.of_files([two.rename(tmp_path / "three"), one]) != before
