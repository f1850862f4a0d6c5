"""A stage that several runs need at the same time is trained by one of them."""

import threading

from gkd_core.runs.fingerprint import StageFingerprint
from gkd_core.runs.reuse import alone

FINGERPRINT = StageFingerprint("settings", "data", "models", "code")


def test_second_run_waits_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_CACHE", str(tmp_path))
    events, waits, ended = [], threading.Event(), threading.Event()

    def say(text):
        events.append(text)
        waits.set()

    def second():
        with alone(FINGERPRINT, say):
            events.append("second")
        ended.set()

    with alone(FINGERPRINT, events.append):
        threading.Thread(target=second).start()
        assert waits.wait(10)
        events.append("first")
    assert ended.wait(10)
    assert events == [
        "another run is training this stage; waiting for its student",
        "first",
        "second",
    ]


def test_nothing_is_waited_for_without_a_cache_or_without_reuse(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GKD_CACHE", str(tmp_path / "file"))
    said = []
    with alone(FINGERPRINT, said.append), alone(FINGERPRINT, said.append):
        pass
    with alone(None, said.append), alone(None, said.append):
        pass
    assert said == []
