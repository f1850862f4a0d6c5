"""Trackers: what a sink is told, and that a broken one costs nobody a run."""

from __future__ import annotations

import json

import pytest
from pydantic import Field

from gkd_core.api import PluginError, Sink, hookimpl
from gkd_core.config.render import complete, json_schema, to_toml
from gkd_core.config.resolve import resolve
from gkd_core.errors import ConfigError
from gkd_core.plugins import registry as installed
from gkd_core.tracking.recorder import TextLog


class Diary(Sink):
    """Writes down what it is told."""

    name = "diary"

    class Config(Sink.Config):
        breaks_at: str = Field("", description="The method that fails.")
        ink: bool = Field(True, description="Whether there is ink.")

    def __init__(self, config=None):
        super().__init__(config)
        self.told = []

    def _write(self, event, *values):
        if event == self.config.breaks_at:
            raise ValueError("the pen\nbroke")
        self.told.append((event, *values))

    def check(self):
        if not self.config.ink:
            raise ConfigError("tracking.diary.ink = false leaves nothing to write with")

    def start(self, run, settings):
        self._write("start", run.directory, settings["method"])

    def start_stage(self, name, total, done):
        self._write("start_stage", name, total, done)

    def log(self, step, values):
        self._write("log", step.stage, step.index, sorted(values))

    def end_stage(self):
        self._write("end_stage")

    def say(self, text):
        self._write("say", text)

    def summarize(self, values):
        self._write("summarize", sorted(values))

    def add_file(self, path):
        self._write("add_file", path.name)

    def finish(self, error):
        self._write("finish", type(error).__name__)


class Plugin:
    @hookimpl
    def gkd_register_sinks(self):
        return [Diary]


@pytest.fixture
def keep_diary(prepare_run, registry_with, tmp_path):
    """Run with a diary: `keep_diary("breaks_at=say")` -> the diary, and the lines of the log."""

    def _keep(*options, ending=None):
        registry = registry_with(Plugin())
        chosen = ("tracking.sinks=['diary']", *(f"tracking.diary.{text}" for text in options))
        config = resolve(registry, settings=chosen).config
        (diary,) = (sink for sink in registry.make_sinks(config) if sink.name == "diary")
        log = TextLog(tmp_path / "log.txt")
        run = prepare_run("method=soft", *chosen, registry=registry, listeners=[log], sinks=[diary])
        with run.recorder.record(run.info, run.resolved.values()):
            run.execute()
            if ending is not None:
                raise ending
        return diary, (tmp_path / "log.txt").read_text().splitlines()

    return _keep


def test_sink_is_told_everything_in_order(keep_diary, tmp_path):
    diary, _ = keep_diary()
    told = [entry for entry in diary.told if entry[0] != "say"]
    assert told[:2] == [("start", tmp_path / "run", "soft"), ("start_stage", "distil", 6, 0)]
    of_step = ["loss/soft", "loss/total"]
    of_step += ["train/gradient_norm", "train/lr", "train/samples_per_second"]
    evaluated = ["validation/accuracy", "validation/loss", "validation/macro_f1"]
    assert told[2:-2] == [
        *(("log", "distil", index, of_step) for index in (1, 3, 5)),
        ("log", "distil", 5, evaluated),
    ]
    assert told[-2:] == [("end_stage",), ("finish", "NoneType")]
    assert any(entry[0] == "say" and "teacher blocks" in entry[1] for entry in diary.told)


def test_sink_is_told_what_ended_the_run(keep_diary):
    told = []

    class Kept(RuntimeError):
        pass

    original = Diary.finish
    try:
        Diary.finish = lambda self, error: told.append(error)
        with pytest.raises(Kept):
            keep_diary(ending=Kept())
    finally:
        Diary.finish = original
    assert [type(error) for error in told] == [Kept]


@pytest.mark.parametrize("place", ["start", "start_stage", "log", "say", "end_stage", "finish"])
def test_broken_sink_is_named_once_and_the_run_goes_on(keep_diary, place, tmp_path):
    diary, lines = keep_diary(f"breaks_at={place}")
    said = [line for line in lines if "tracker diary" in line]
    assert len(said) == 1
    assert said[0].startswith("tracker diary stops recording this run: plugin 'test'")
    assert "ValueError: the pen broke" in said[0]
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
    if place in ("start", "start_stage"):
        assert not any(entry[0] == "log" for entry in diary.told), "it is told nothing more"


def test_what_a_sink_lacks_is_said_before_the_run(keep_diary, tmp_path):
    with pytest.raises(ConfigError, match="leaves nothing to write with"):
        keep_diary("ink=false")
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_there_unless_it_is_refused(registry_with):
    registry = registry_with(Plugin())

    def names(*settings):
        return resolve(registry, settings=settings).config.trackers

    assert names() == ("tensorboard",)
    assert names("tracking.sinks=['diary','tensorboard']") == ("tensorboard", "diary")
    assert names("output.tensorboard=false") == ()
    assert names("output.tensorboard=false", "tracking.sinks=['diary']") == ("diary",)


def test_options_stand_in_the_table_of_their_sink(registry_with, tmp_path):
    registry = registry_with(Plugin())
    settings = ["tracking.sinks=['diary']", "tracking.diary.ink=false"]
    resolved = resolve(registry, settings=settings)
    assert resolved.config.tracking.options["diary"].ink is False
    assert complete(resolved)["tracking"] == {
        "sinks": ["diary"],
        "diary": {"breaks_at": "", "ink": False},
    }
    (tmp_path / "again.toml").write_text(to_toml(resolved))
    assert not resolve(registry, files=[tmp_path / "again.toml"]).differences(resolved)
    schema = json_schema(registry)["$defs"]["TrackingConfig"]["properties"]
    assert schema["diary"]["properties"]["ink"]["default"] is True
    json.dumps(schema)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["tracking.sinks=['diery']"], r"tracking.sinks \(--set\): unknown tracker 'diery'.*diary"),
        (
            ["tracking.diery.ink=true"],
            r"`tracking.diery` \(--set\) is neither a setting nor a trac",
        ),
        (["tracking.diary.inc=true"], r"`tracking.diary.inc` \(--set\) is not a .*ink"),
        (["tracking.sinks='diary'"], r"tracking.sinks must be a list .*, got 'diary'"),
        (["tracking.sinks=[3]"], r"tracking.sinks.0 must be a string, got 3"),
        (["stages.0.name=one", "stages.0.tracking.sinks=[]"], "cannot differ between stages"),
    ],
)
def test_wrong_settings_are_named(registry_with, settings, said):
    with pytest.raises(ConfigError, match=said):
        resolve(registry_with(Plugin()), settings=settings)


def test_options_of_a_sink_that_records_nothing_are_told(registry_with):
    resolved = resolve(registry_with(Plugin()), settings=["tracking.diary.ink=false"])
    assert resolved.warnings == ("[tracking.diary] is set (--set), but no stage uses diary",)


def test_trackers_may_change_when_a_run_is_resumed():
    from gkd_core.runs.resumption import changed_settings

    before = resolve(installed()).values()
    tracked = resolve(installed(), settings=["tracking.sinks=['tensorboard']"])
    assert not list(changed_settings(before, tracked))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "Diary"}, "lower-case"),
        ({"__doc__": None}, "docstring"),
        ({"Config": int}, "subclass of `Sink.Config`"),
    ],
)
def test_sink_that_violates_the_contract_is_refused(body, said):
    with pytest.raises(PluginError, match=said):
        type("Bad", (Sink,), {"name": "bad", "__doc__": "A sink."} | body)
