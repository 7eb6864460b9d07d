"""What the tests of exported models share: models of several kinds, speech, and a Hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch

from audiovq.audio import load_audio
from audiovq.models.tokenizer import AudioTokenizer

RATE = 16000
COMMIT = "c0" * 20


@pytest.fixture(scope="session")
def waves(speech_folder) -> list[torch.Tensor]:
    """Real speech of three lengths, none of them whole frames: [T] each."""
    names = ("allison/en-conf-invalid.ogg", "june", "carlo")
    paths = [speech_folder / names[0], *(min((speech_folder / name).glob("*.ogg")) for name in names[1:])]
    lengths = (17001, 9123, 25999)
    return [load_audio(path, RATE)[0][0, :length] for path, length in zip(paths, lengths, strict=True)]


@pytest.fixture(scope="session")
def shipped() -> AudioTokenizer:
    return AudioTokenizer.from_pretrained("speech-16k", "cpu")


@pytest.fixture(scope="session")
def export(tmp_path_factory) -> Callable[[AudioTokenizer], Path]:
    """The folder that a tokenizer is exported to, once."""
    from audiovq.interop.transformers import export_transformers

    made: dict[str, Path] = {}

    def write(tokenizer: AudioTokenizer) -> Path:
        key = tokenizer.weights_sha256
        if key not in made:
            made[key] = tmp_path_factory.mktemp("exported") / "model"
            export_transformers(tokenizer, made[key])
        return made[key]

    return write


@pytest.fixture(scope="session")
def onnx_folder(shipped, tmp_path_factory) -> Path:
    """The model that comes with audiovq, as ONNX graphs."""
    from audiovq.interop.onnx import export_onnx

    folder = tmp_path_factory.mktemp("onnx") / "model"
    export_onnx(shipped, folder)
    return folder


class LocalHub(BaseHTTPRequestHandler):
    """As much of the Hub as uploading and downloading small models takes."""

    repositories: dict[str, dict[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address, path = f"http://{self.headers['Host']}", self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repositories.setdefault(name, {})
            self._answer({"url": f"{address}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            whole = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **whole} for file in json.loads(body)["files"]]})
        elif found := re.fullmatch("/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/{found[1]}/commit/{COMMIT}"})
        else:
            self._answer({"error": path}, 404)

    def do_GET(self) -> None:
        asked = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(/resolve|/revision|/tree)?(?:/\w+)?/?(.*)", self.path)
        name, kind, rest = asked.groups() if asked else ("", "", "")
        files = self.repositories.get(name, {})
        if kind == "/resolve" and rest in files:
            self._send(files[rest], 200, {"ETag": f'"{rest}"', "X-Repo-Commit": COMMIT})
        elif kind == "/tree" and files:
            listed = files.items()
            self._answer([{"type": "file", "path": path, "size": len(data), "oid": path} for path, data in listed])
        elif kind != "/resolve" and files:
            self._answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        else:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[dict[str, dict[str, bytes]]]:
    """A Hub on this machine, which huggingface_hub and transformers use meanwhile; the files of its repositories."""
    handler = type("Handler", (LocalHub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub._hf_api", huggingface_hub.HfApi(endpoint=endpoint))
    yield handler.repositories
    server.shutdown()
    thread.join()
    server.server_close()
