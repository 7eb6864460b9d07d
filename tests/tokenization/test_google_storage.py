"""`gs://` paths, through gcsfs, with as much of Google's storage on this machine as they need."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audiovq.storage import locate
from audiovq.tokenization.run import tokenize
from audiovq.tokens import TokenSet

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # It would ask Google for credentials.
    gcsfs = pytest.importorskip("gcsfs")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

HEAD = rb"--\S+\s+Content-Type: [^\n]+\n\r?\n"
PARTS = re.compile(HEAD + rb"({.*?})\s+" + HEAD + rb"(.*?)\r?\n--\S+--\s*", re.DOTALL)
"""What is sent in one request: JSON with the name, and the content."""


class Storage(BaseHTTPRequestHandler):
    """One bucket, called `bucket`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/bucket/o/?(.*)", path)
        name = urllib.parse.unquote(found[1]) if found else ""
        if found and not name:
            self._answer(self._listed(asked.get("prefix", ""), asked.get("delimiter", "")))
        elif name not in self.files:
            self._answer({"error": {"code": 404, "message": "No such object"}}, 404)
        elif asked.get("alt") == "media":
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()  # type: ignore[union-attr]
            self._send(self.files[name][int(first) : int(last) + 1], 206)
        else:
            self._answer(self._about(name))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/b/bucket/o" not in self.path:
            self._answer({"error": {"code": 404, "message": "The specified bucket does not exist."}}, 404)
            return
        about, content = PARTS.fullmatch(body).groups()  # type: ignore[union-attr]
        name = json.loads(about)["name"]
        self.files[name] = content
        self._answer(self._about(name))

    def do_DELETE(self) -> None:
        self.files.pop(urllib.parse.unquote(self.path.partition("?")[0].partition("/o/")[2]))
        self._send(b"", 204)

    def _about(self, name: str) -> dict:
        data = self.files[name]
        return {"name": name, "bucket": "bucket", "size": str(len(data)), "generation": str(zlib.crc32(data))}

    def _listed(self, prefix: str, delimiter: str) -> dict:
        rests = [name[len(prefix) :] for name in sorted(self.files) if name.startswith(prefix)]
        deeper = {rest.partition("/")[0] for rest in rests if delimiter and "/" in rest}
        items = [self._about(prefix + rest) for rest in rests if not delimiter or "/" not in rest]
        return {"items": items, "prefixes": [f"{prefix}{folder}/" for folder in sorted(deeper)]}

    def _answer(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status)

    def _send(self, content: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def files(monkeypatch) -> Iterator[dict[str, bytes]]:
    """The bucket's files."""
    handler = type("Handler", (Storage,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield handler.files
    server.shutdown()
    thread.join()
    server.server_close()


def test_speech_of_a_bucket_is_read_in_place_and_its_codes_are_written_there(files, six_files, model, tmp_path, run):
    local = tokenize(model, [six_files], tmp_path / "local", unit_seconds=2.0)
    files |= {f"wavs/{path.name}": path.read_bytes() for path in six_files.iterdir()} | {"codes.txt": b"mine"}
    given, output = [locate("gs://bucket/wavs")], locate("gs://bucket/codes")
    made = tokenize(model, given, output, unit_seconds=2.0)
    assert made.summary is not None
    assert local.summary is not None
    assert (made.done, made.summary.frames) == (4, local.summary.frames)
    codes = {row.utt_id: row.codes.tolist() for row in TokenSet(output)}
    assert codes == {row.utt_id: row.codes.tolist() for row in TokenSet(tmp_path / "local")}

    del files[next(name for name in files if name.endswith(".parquet"))]
    again = tokenize(model, given, output, unit_seconds=2.0)
    assert (again.done, again.resumed, again.summary) == (1, 3, made.summary)
    tokenize(model, given, output, unit_seconds=3.0, force=True)
    assert {row.utt_id: row.codes.tolist() for row in TokenSet(output)} == codes
    assert len([name for name in files if name.endswith(".parquet")]) == 3
    assert files["codes.txt"] == b"mine"

    code, out, err = run("tokenize", model, six_files, "--output", "gs://none/codes")
    assert (code, out) == (2, "")
    assert "there is no such bucket or repository" in err
