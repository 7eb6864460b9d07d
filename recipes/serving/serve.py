"""Codes over HTTP: `uvicorn --app-dir recipes/serving serve:app`; README.md says what to send."""

import asyncio
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated

import soundfile
import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from torch.nn.utils.rnn import pad_sequence

import audiovq
from audiovq.batching import batch_by_length
from audiovq.errors import AudioError, AudioVQError

MOST = 16  # Requests that are encoded at a time.
BATCH_SECONDS = 320  # Of sound in a batch, padding included: a long file is one by itself.
tokenizer = audiovq.AudioTokenizer.from_pretrained(os.environ.get("MODEL", "speech-16k"))
model_thread = ThreadPoolExecutor(1)


class Codes(BaseModel):
    codes: list[list[Annotated[int, Field(ge=0, lt=65536)]]]
    num_samples: int | None = None


def read(data: bytes) -> torch.Tensor:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(data)
        file.flush()
        try:
            return audiovq.load_audio(file.name, tokenizer.sample_rate)[0][0]
        except AudioError as error:
            raise AudioError(str(error).replace(file.name, "the audio")) from error


def encode(waves: list[torch.Tensor]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    limit = BATCH_SECONDS * tokenizer.sample_rate
    for batch in batch_by_length(range(len(waves)), lambda number: len(waves[number]), limit):
        padded = pad_sequence([waves[number] for number in batch], batch_first=True)[:, None]
        for number, codes in zip(batch, tokenizer.encode(padded, tokenizer.sample_rate), strict=True):
            found[number] = codes[:, : tokenizer.num_frames(len(waves[number]))]
    return [found[number] for number in range(len(waves))]


def decode(sent: Codes) -> bytes:
    wave, file = tokenizer.decode(torch.tensor(sent.codes, dtype=torch.long), sent.num_samples), io.BytesIO()
    soundfile.write(file, wave[0, 0].numpy(), tokenizer.sample_rate, format="WAV")
    return file.getvalue()


async def encode_batches(waiting: asyncio.Queue) -> None:
    """All that came in while the model was busy is the next batch."""
    while True:
        items = [await waiting.get()]
        items += [waiting.get_nowait() for _ in range(min(MOST - 1, waiting.qsize()))]
        waves, answers = zip(*items, strict=True)
        try:
            found = await asyncio.get_running_loop().run_in_executor(model_thread, encode, list(waves))
        except Exception as error:  # Those who wait hear of it, whatever it is.
            found = [error] * len(answers)
        for answer, codes in zip(answers, found, strict=True):
            if not answer.done():  # Who asked may have gone.
                (answer.set_exception if isinstance(codes, Exception) else answer.set_result)(codes)


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.waiting = asyncio.Queue()
    task = asyncio.create_task(encode_batches(app.state.waiting))
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/encode")
async def encode_audio(
    request: Request, codebooks: Annotated[int | None, Query(ge=1, le=tokenizer.num_codebooks)] = None
) -> Codes:
    wave = await asyncio.to_thread(read, await request.body())
    answer = asyncio.get_running_loop().create_future()
    await app.state.waiting.put((wave, answer))
    return Codes(codes=(await answer)[:codebooks].tolist(), num_samples=len(wave))


@app.post("/decode")
async def decode_codes(sent: Codes) -> Response:
    wav = await asyncio.get_running_loop().run_in_executor(model_thread, decode, sent)
    return Response(wav, media_type="audio/wav")


@app.exception_handler(AudioVQError)
@app.exception_handler(ValueError)  # Codes that are no rectangle.
def refuse(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 400)
