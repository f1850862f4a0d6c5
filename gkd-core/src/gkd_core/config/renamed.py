"""Settings that version 0.1 called otherwise."""

from __future__ import annotations

from gkd_core.config.formats import SettingKey

RENAMED: dict[SettingKey, str] = {
    ("student", "afresh"): "new_student",
    ("task", "own_teacher"): "default_teacher",
}
"""The current name of each, by table and old name."""


def new_name(key: SettingKey) -> str | None:
    """Return the current name of a setting that was renamed; None for others."""
    return RENAMED.get(key[-2:])


def renew(key: SettingKey) -> SettingKey:
    """Return a key with the name that the setting has now."""
    return (*key[:-1], new_name(key) or key[-1]) if key else key
