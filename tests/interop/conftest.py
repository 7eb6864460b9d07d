"""What the tests of exported models share: models of several kinds, speech, and a Hub on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

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
    """As much of the Hub as uploading and downloading small models takes, and reading and writing data sets."""

    repositories: dict[str, dict[str, bytes]]
    """Files by the name of their repository, which is `datasets/...` for one of data."""

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
        elif found := re.fullmatch("/api/(?:models/)?(.+)/paths-info/.+", path):
            asked = urllib.parse.parse_qs(body.decode())["paths"]
            self._answer([entry for entry in self._entries(found[1]) if entry["path"] in asked])
        elif found := re.fullmatch("/api/(?:models/)?(.+)/commit/main", path):
            files, lines = self.repositories[found[1]], [json.loads(line) for line in body.splitlines()]
            status = 200
            if any(line["key"] == "deletedFile" and line["value"]["path"] not in files for line in lines):
                lines, status = [], 404
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            done = {"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/{found[1]}/commit/{COMMIT}"}
            self._answer(done, status)
        else:
            self._answer({"error": path}, 404)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        pattern = r"(?:/api)?/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(/resolve|/revision|/tree)?(?:/\w+)?/?(.*)"
        asked = re.fullmatch(pattern, urllib.parse.unquote(path))
        name, kind, rest = asked.groups() if asked else ("", "", "")
        files = self.repositories.get(name)
        if kind == "/resolve" and files and rest in files:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            content = files[rest][int(wanted[1]) : int(wanted[2]) + 1] if wanted else files[rest]
            self._send(content, 206 if wanted else 200, {"ETag": f'"{rest}"', "X-Repo-Commit": COMMIT})
        elif kind == "/tree" and files is not None:
            deep = "recursive=true" in query.lower()
            below = [entry for entry in self._entries(name) if entry["path"].startswith(f"{rest}/".lstrip("/"))]
            if below or not rest:
                self._answer([entry for entry in below if deep or "/" not in entry["path"][len(rest) :].strip("/")])
            else:
                self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        elif kind != "/resolve" and files is not None:
            self._answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        else:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            self._send(b"", 404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _entries(self, name: str) -> list[dict]:
        """Files and folders as the Hub lists them."""
        files = self.repositories[name]
        folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} - {"."}
        listed = [{"type": "file", "path": path, "size": len(data), "oid": path} for path, data in files.items()]
        return [*listed, *({"type": "directory", "path": path, "oid": path} for path in sorted(folders))]

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
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield handler.repositories
    server.shutdown()
    thread.join()
    server.server_close()
