"""The server, through FastAPI's own client: real speech, several requests at once."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile
import torch
from fastapi.testclient import TestClient

from audiovq.audio import load_audio
from audiovq.models.tokenizer import AudioTokenizer

RECIPE = Path(__file__).parents[3] / "recipes/serving"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer) -> AudioTokenizer:
    return tiny_tokenizer("istft", "residual")


@pytest.fixture(scope="module")
def serve(tokenizer, tmp_path_factory):
    """The recipe's module, with a tiny model."""
    folder = tmp_path_factory.mktemp("serving") / "model"
    tokenizer.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(folder))
        patch.setattr(sys, "path", [str(RECIPE), *sys.path])
        import serve

        return serve


@pytest.fixture
def client(serve) -> Iterator[TestClient]:
    with TestClient(serve.app) as client:
        yield client


def test_requests_that_come_together_are_one_batch_and_get_the_codes_of_each_alone(
    client, serve, tokenizer, speech_folder, monkeypatch
):
    """The first batch takes until all others have come; these are encoded together."""
    paths = [min((speech_folder / name).glob("*.ogg")) for name in ("june", "carlo", "allison", "ivrvoice")]
    batches: list[int] = []
    encode = serve.encode

    def counted(waves):
        batches.append(len(waves))
        deadline = time.monotonic() + 30
        while sum(batches) + client.app.state.waiting.qsize() < len(paths) and time.monotonic() < deadline:
            time.sleep(0.01)
        return encode(waves)

    monkeypatch.setattr(serve, "encode", counted)
    with ThreadPoolExecutor(len(paths)) as threads:
        answers = list(threads.map(lambda path: client.post("/encode", content=path.read_bytes()), paths))
    assert len(batches) <= 2
    assert sum(batches) == len(paths)
    for path, answer in zip(paths, answers, strict=True):
        wave, rate = load_audio(path, 16000)
        assert answer.json() == {"codes": tokenizer.encode(wave, rate)[0].tolist(), "num_samples": wave.shape[-1]}


def test_the_first_codebooks_can_be_asked_for(client, tokenizer, speech_folder):
    path = min((speech_folder / "june").glob("*.ogg"))
    answer = client.post("/encode?codebooks=2", content=path.read_bytes())
    assert answer.json()["codes"] == tokenizer.encode(*load_audio(path, 16000), 2)[0].tolist()
    assert client.post("/decode", json=answer.json()).status_code == 200
    for wrong in (0, tokenizer.num_codebooks + 1, "all"):
        assert client.post(f"/encode?codebooks={wrong}", content=path.read_bytes()).status_code == 422


def test_codes_come_back_as_a_wav_of_the_same_length(client, tokenizer, speech_folder):
    path = min((speech_folder / "june").glob("*.ogg"))
    sent = client.post("/encode", content=path.read_bytes()).json()
    answer = client.post("/decode", json=sent)
    assert answer.headers["content-type"] == "audio/wav"
    wave, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    expected = tokenizer.decode(torch.tensor(sent["codes"]), sent["num_samples"])[0, 0]
    assert rate == 16000
    assert torch.allclose(torch.tensor(wave), expected.clamp(-1, 1), atol=1e-4)


WRONG = {
    "no audio": ("/encode", {"content": b"no audio"}, 400, "the audio: "),
    "nothing": ("/encode", {"content": b""}, 400, "the audio: "),
    "ragged": ("/decode", {"json": {"codes": [[1, 2], [3]]}}, 400, "expected sequence of length 2"),
    "no frames": ("/decode", {"json": {"codes": [[]]}}, 400, "expected codes of at least one frame"),
    "out of range": ("/decode", {"json": {"codes": [[40000]]}}, 400, "expected codes from 0 to 31"),
    "another length": ("/decode", {"json": {"codes": [[1]], "num_samples": 99}}, 400, "99 samples are 5 frames"),
    "negative": ("/decode", {"json": {"codes": [[-1]]}}, 422, "greater than or equal to 0"),
}


@pytest.mark.parametrize(("path", "sent", "status", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_answered_with_a_reason(client, path, sent, status, message):
    answer = client.post(path, **sent)
    assert answer.status_code == status
    assert message in answer.text
    assert "/tmp" not in answer.text


def test_a_batch_that_fails_is_answered_and_the_next_one_works(client, serve, speech_folder, monkeypatch):
    data = min((speech_folder / "june").glob("*.ogg")).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(serve, "encode", lambda waves: [][0])
        with pytest.raises(IndexError):
            client.post("/encode", content=data)
    assert client.post("/encode", content=data).status_code == 200


def test_a_request_that_was_given_up_does_not_end_the_service(serve):
    async def ask():
        waiting = asyncio.Queue()
        task = asyncio.create_task(serve.encode_batches(waiting))
        answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
        answers[0].cancel()
        for answer in answers:
            await waiting.put((torch.zeros(400), answer))
        found = await asyncio.wait_for(asyncio.gather(*answers[1:]), 30)
        task.cancel()
        return [codes.shape for codes in found]

    first, second = asyncio.run(ask())
    assert first == second


def test_a_long_file_makes_no_others_as_long(serve, tokenizer, monkeypatch):
    shapes, encode = [], serve.tokenizer.encode
    monkeypatch.setattr(serve, "BATCH_SECONDS", 2)
    monkeypatch.setattr(
        serve.tokenizer, "encode", lambda waves, rate: shapes.append(tuple(waves.shape)) or encode(waves, rate)
    )
    waves = [torch.randn(length) / 10 for length in (3000, 64000, 5000)]
    found = serve.encode(waves)
    assert shapes == [(1, 1, 64000), (2, 1, 5000)]
    for wave, codes in zip(waves, found, strict=True):
        assert torch.equal(codes, tokenizer.encode(wave[None], 16000)[0])
