"""`gkd export --push`: a fake hub on loopback."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_secret"


class _Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks of the hub to make a repository and commit small files to it."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode()
        self.server.heard.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            return self._say(403, {"error": "not yours"})
        if self.path.endswith("/repos/create"):
            self.server.made.append(json.loads(body))
            return self._say(200, {"url": f"{self.server.url}/me/student"})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._say(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.url}/me/student/commit/abc"
            return self._say(200, {"commitUrl": url, "commitOid": "abc", "pullRequestUrl": None})
        return self._say(200, {"warnings": [], "errors": []})  # of the card's header

    def do_GET(self):
        return self._say(200, {"id": "me/student", "sha": "abc", "siblings": [], "tags": []})

    def _say(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that `huggingface_hub` talks to, with somebody logged in."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.heard, server.made, server.files, server.refuses = [], [], {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_export_is_pushed_as_it_is_with_the_token_of_the_store(invoke, finished, hub, tmp_path):
    done = invoke("export", finished, "--to", "out", "--push", "me/student")
    assert done.code == 0, done.err
    assert f"pushed to   {hub.url}/me/student" in done.out
    assert hub.made[0]["visibility"] == "private"
    written = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert hub.files == written
    assert {"README.md", "lineage.json", "model.safetensors"} <= set(written)
    assert {token for _, token in hub.heard} == {f"Bearer {TOKEN}"}
    assert not any(TOKEN.encode() in content for content in written.values())


def test_nothing_is_uploaded_unless_asked(invoke, finished, hub):
    assert invoke("export", finished, "--to", "out").code == 0
    assert hub.heard == []


def test_a_refusal_of_the_hub_leaves_the_export_and_says_how_to_go_on(
    invoke, finished, hub, tmp_path
):
    hub.refuses = True
    done = invoke("export", finished, "--to", "out", "--push", "me/student")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "was written to out, but not pushed to me/student" in said
    assert "hf upload me/student out" in said
    assert (tmp_path / "out" / "lineage.json").is_file()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("a/b/c", {}, "Give it as OWNER/NAME"),
        ("me/student", {"HF_HUB_OFFLINE": True}, "which HF_HUB_OFFLINE switches off"),
        ("me/student", {"HF_TOKEN_PATH": "/nowhere/token"}, "log in once with `hf auth login`"),
    ],
)
def test_what_cannot_be_pushed_is_not_exported(
    invoke, finished, hub, tmp_path, monkeypatch, name, change, said
):
    from huggingface_hub import constants

    for setting, value in change.items():
        monkeypatch.setattr(constants, setting, value)
    done = invoke("export", finished, "--to", "out", "--push", name)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()
    assert hub.heard == []
