"""The `optim` table: names, options, where they are written."""

from __future__ import annotations

import json

import pytest

from gkd_core.config.render import complete, json_schema, to_toml
from gkd_core.config.resolve import resolve
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry

FILE = """
[optim]
name = "muon"
[optim.muon]
momentum = 0.9
[[stages]]
name = "first"
[[stages]]
name = "second"
[stages.optim]
name = "adafactor"
adafactor.clip_threshold = 2.0
"""


def _resolve(*settings, files=()):
    return resolve(registry(), settings=list(settings), files=files)


def test_default_is_adamw():
    optim = _resolve().config.optim
    assert (optim.name, list(optim.options)) == ("adamw", ["adamw"])


def test_options_are_those_of_the_optimizer():
    resolved = _resolve("optim.name=muon", "optim.muon.momentum=0.5")
    assert resolved.config.optim.options["muon"].momentum == 0.5
    assert complete(resolved)["optim"]["muon"]["momentum"] == 0.5
    assert resolved.origin("optim.muon.momentum") == "--set"


def test_stages_choose_their_own(tmp_path):
    (tmp_path / "run.toml").write_text(FILE)
    first, second = _resolve(files=[tmp_path / "run.toml"]).stages
    assert (first.config.optim.name, second.config.optim.name) == ("muon", "adafactor")
    assert first.config.optim.options["muon"].momentum == 0.9
    assert second.config.optim.options["adafactor"].clip_threshold == 2.0


def test_complete_file_gives_the_same_run(tmp_path):
    (tmp_path / "run.toml").write_text(FILE)
    resolved = _resolve(files=[tmp_path / "run.toml"])
    (tmp_path / "again.toml").write_text(to_toml(resolved))
    again = _resolve(files=[tmp_path / "again.toml"])
    assert complete(again) == complete(resolved)
    assert not again.differences(resolved)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optim.name=moun"], r"optim.name \(--set\): unknown optimizer 'moun'.*muon"),
        (["optim.moun.momentum=1"], r"`optim.moun` \(--set\) is neither a setting nor an opt"),
        (["optim.muon.momentun=1"], r"`optim.muon.momentun` \(--set\) is not a .*momentum"),
        (["optim.muon.momentum=1.5"], r"optim.muon.momentum must be a number.*got 1.5 \(--set\)"),
        (["optim=muon"], r"optim must be a table, got 'muon'"),
        (["optim.name=3"], r"optim.name must be a string, got 3"),
        (["optim.muon=3"], r"optim.muon"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        _resolve(*settings)


def test_options_of_another_optimizer_have_no_effect_and_are_told():
    (warning,) = _resolve("optim.muon.momentum=0.5").warnings
    assert warning == "[optim.muon] is set (--set), but no stage uses muon"
    assert not _resolve("optim.muon.momentum=0.5", "optim.name=muon").warnings


def test_schema_describes_the_options_of_every_optimizer():
    schema = json_schema(registry())
    optim = schema["$defs"]["OptimConfig"]["properties"]
    assert optim["muon"]["properties"]["momentum"]["default"] == 0.95
    assert "options" not in optim
    json.dumps(schema)


def test_fingerprint_depends_on_the_options_of_the_chosen_optimizer_alone(prepare_run):
    from gkd_core.runs.fingerprint import Fingerprints

    def settings(*given):
        run = prepare_run("method=soft", *given)
        return Fingerprints(run.registry).of(run.last).settings

    muon = settings("optim.name=muon")
    assert muon != settings()
    assert muon != settings("optim.name=muon", "optim.muon.momentum=0.5")
    assert muon == settings("optim.name=muon", "optim.adafactor.eps2=0.5")
