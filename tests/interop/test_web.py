"""The page that encodes and decodes in a browser: in headless Chromium, on real speech."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.audio import load_audio
from audiovq.errors import ExportError
from audiovq.files import read_json
from audiovq.interop import web
from audiovq.interop.web import PAGE, RUNTIME_FILES, cached_package, export_web
from audiovq.models.tokenizer import AudioTokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT = 120
START = """
import os, sys
read, write, *command = sys.argv[1:]
os.dup2(int(read), 3)
os.dup2(int(write), 4)
os.execv(command[0], command)
"""
"""Starts a program with pipes in the places where Chromium looks for them."""


@pytest.fixture
def graphs(onnx_folder, monkeypatch) -> None:
    """Exports have the graphs that the tests of ONNX made, since tracing takes a while."""

    def write_graphs(_, folder: Path) -> dict:
        for name in ("encoder.onnx", "decoder.onnx"):
            shutil.copyfile(onnx_folder / name, folder / name)
        return read_json(onnx_folder / "config.json")

    monkeypatch.setattr(web, "write_graphs", write_graphs)


@pytest.fixture
def package(tmp_path) -> Path:
    """A package as npm packs it, with files of a few bytes."""
    path = tmp_path / "onnxruntime-web-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in RUNTIME_FILES:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    return path


def test_a_folder_holds_all_that_the_page_asks_for(run, graphs, package, tmp_path, shipped):
    command = ("export", "speech-16k", "--format", "web", "-o", tmp_path / "out", "--onnxruntime-web")
    assert run(*command, package)[0] == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    pages = {path.name for path in PAGE.iterdir()}
    runtime = {f"ort/{name}" for name in RUNTIME_FILES}
    assert found == {"config.json", "decoder.onnx", "encoder.onnx", "export.json", *pages, *runtime}
    assert read_json(tmp_path / "out/config.json")["weights_sha256"] == shipped.weights_sha256
    code, _, err = run(*command, package)
    assert code == 2
    assert "add --force" in err
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert run(*command, tmp_path / "unpacked/package", "--force")[0] == 0


def test_packages_that_are_none_are_named(run, graphs, tmp_path):
    command = ("export", "speech-16k", "--format", "web", "-o", tmp_path / "out", "--onnxruntime-web")
    (tmp_path / "text.tgz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for package, message in (
        (tmp_path / "text.tgz", "is no .tgz of npm's package"),
        (tmp_path / "empty", f"it has no dist/{RUNTIME_FILES[0]}"),
        (tmp_path / "missing.tgz", "No such file"),
    ):
        code, out, err = run(*command, package)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"audiovq: {package}")
        assert message in err
    assert not (tmp_path / "out").exists()


def test_a_download_is_used_if_it_is_the_pinned_one_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(web, "download", lambda url: b"content")
    with pytest.raises(ExportError, match="another SHA-512 than expected"):
        cached_package()
    assert list(tmp_path.rglob("*.tgz")) == []
    monkeypatch.setattr(web, "SHA512", web.digest_of(b"content"))
    path = cached_package()
    assert path.read_bytes() == b"content"
    monkeypatch.setattr(web, "download", lambda url: pytest.fail("was downloaded twice"))
    assert cached_package() == path


def test_without_a_network_the_error_says_how_to_do_without(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(web, "URL", "http://127.0.0.1:9/onnxruntime-web.tgz")
    with pytest.raises(ExportError, match=r"cannot be downloaded .*npm pack .*--onnxruntime-web") as error:
        cached_package()
    assert "\n" not in str(error.value)


# --- in a browser -----------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, told what to do by its debugging protocol, through pipes."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        options.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # There is no other machine.
        command = [sys.executable, "-c", START, str(read), str(write), CHROMIUM, *options]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._number, self._rest, self._session = 0, b"", None
        self.requested: list[str] = []
        self._downloads = profile.with_name("downloads")
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self._downloads))
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Network.enable")
        self("Page.enable")

    def __call__(self, method: str, **parameters) -> dict:
        """Call a method of the protocol; requests that the page made meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                data = os.read(self._read, 1 << 16)
                assert data, "Chromium ended"
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def evaluate(self, expression: str):
        """The value of JavaScript in the page; promises are awaited."""
        result = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self) -> str:
        """Wait until the page is done or has failed; returns which."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            state = self.evaluate("document.body?.dataset.state")
            if state in ("done", "error"):
                return state
            time.sleep(0.2)
        raise TimeoutError(self.evaluate("document.body.innerText"))

    def download(self, link: str) -> bytes:
        """What is saved when a link is clicked."""
        shutil.rmtree(self._downloads, ignore_errors=True)
        self.evaluate(f"document.getElementById('{link}').click()")
        for _ in range(10 * TIMEOUT):
            for path in self._downloads.glob("*.*"):
                if path.suffix in (".json", ".wav"):  # Under another name while it is written.
                    return path.read_bytes()
            time.sleep(0.1)
        raise TimeoutError(link)

    def close(self) -> None:
        os.close(self._write)  # Which ends Chromium.
        self._process.wait(30)
        os.close(self._read)


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator:
    """Serve a folder as `python -m http.server` does."""
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def share_of_other_frames(browser: Browser, address: str, tokenizer: AudioTokenizer, path: Path) -> float:
    """The share of a file's frames that get other codes in the browser than in Python."""
    browser("Page.navigate", url=f"{address}/?wav={path.name}")
    time.sleep(0.5)
    assert browser.wait() == "done", browser.evaluate("document.body.innerText")
    codes = np.array(json.loads(browser.download("download-codes"))["codes"])
    expected = tokenizer.encode(load_audio(path, 16000)[0], 16000, 3)[0].numpy()
    assert codes.shape == expected.shape
    return np.mean((codes != expected).any(0))


@pytest.mark.slow
def test_a_browser_encodes_and_decodes_as_python_does(browser, serve, graphs, shipped, speech_folder, tmp_path):
    package = os.environ.get("AUDIOVQ_ONNXRUNTIME_WEB")
    try:
        package = package or cached_package()
    except ExportError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    export_web(shipped, tmp_path / "out", onnxruntime_web=package)
    wave, _ = load_audio(min((speech_folder / "june").glob("*.ogg")), 16000)
    wide, _ = load_audio(min((speech_folder / "carlo").glob("*.ogg")), 44100)
    soundfile.write(tmp_path / "out/speech.wav", wave[0].numpy(), 16000)
    wave, _ = load_audio(tmp_path / "out/speech.wav", 16000)
    address = serve(tmp_path / "out")
    browser("Page.navigate", url=f"{address}/?wav=speech.wav")
    assert browser.wait() == "done", browser.evaluate("document.body.innerText")

    record = json.loads(browser.download("download-codes"))
    expected = shipped.encode(wave, 16000, 3)
    assert record["weights_sha256"] == shipped.weights_sha256
    assert record["num_samples"] == wave.shape[-1]
    assert np.mean((np.array(record["codes"]) != expected[0].numpy()).any(0)) < 0.01

    found, _ = soundfile.read(io.BytesIO(browser.download("download-sound")))
    decoded = shipped.decode(np.array(record["codes"]), wave.shape[-1])[0, 0].numpy().clip(-1, 1)
    error = np.abs(found * 32768 / 32767 - decoded)
    # Where rounding of the pitch decides that there is one harmonic more or less, a hop or so differs a little.
    assert np.square(error).sum() < 1e-5 * np.square(decoded).sum()
    assert np.mean(np.abs(error) > 1e-3) < 0.02

    # At another rate and in stereo, the page resamples as Python does; of other formats it knows the rate.
    wide, short = wide[:, :66150], wave[0, :24000].numpy()
    note = "document.getElementById('original-note').textContent"
    soundfile.write(tmp_path / "out/stereo.flac", np.stack([wide[0], wide[0] / 2], 1), 44100)
    soundfile.write(tmp_path / "out/vorbis.ogg", wide[0].numpy(), 44100, subtype="VORBIS")
    soundfile.write(tmp_path / "out/16k.mp3", short, 16000)
    for name in ("stereo.flac", "vorbis.ogg", "16k.mp3"):
        assert share_of_other_frames(browser, address, shipped, tmp_path / "out" / name) < 0.01
        assert browser.evaluate(note) == ""
    # Opus it cannot decode at the rate that Python does, and says so.
    soundfile.write(tmp_path / "out/16k.opus", short, 16000, format="OGG", subtype="OPUS")
    assert 0.1 < share_of_other_frames(browser, address, shipped, tmp_path / "out/16k.opus") < 0.7
    assert "made of sound at 16 kHz" in browser.evaluate(note)

    browser.evaluate("document.querySelectorAll('#rates input')[0].click()")
    assert browser.wait() == "done"
    assert len(json.loads(browser.download("download-codes"))["codes"]) == 1
    # Pictures show something: more than a few colours.
    for name in ("original", "codes", "decoded"):
        canvas = f"document.getElementById('{name}-picture')"
        pixels = f"new Uint32Array({canvas}.getContext('2d').getImageData(0, 0, {canvas}.width, 20).data.buffer)"
        assert browser.evaluate(f"new Set({pixels}).size") > 10
    # What is no sound is named, and the page goes on with the next file.
    choose = """
        const files = new DataTransfer(), input = document.getElementById("file");
        files.items.add(new File(["no sound"], "notes.txt"));
        input.files = files.files;
        input.dispatchEvent(new Event("change"));
    """
    browser.evaluate(choose)
    assert browser.wait() == "error"
    assert "holds no sound" in browser.evaluate("document.getElementById('status').textContent")
    assert browser.evaluate("!document.getElementById('choose').disabled")
    assert len(browser.requested) > 5
    assert all(url.startswith((address, f"blob:{address}", "data:")) for url in browser.requested)
