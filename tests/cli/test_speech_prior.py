"""A prior over two codebooks of the model that comes with audiovq, from real speech to new sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from audiovq.audio.files import load_audio
from audiovq.devices import derive_seed
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.sampling.stepping import fastest_stepper
from audiovq.tokens import TokenSet
from audiovq.tokens.codes_file import load_codes

MODEL = "speech-16k"
SETTINGS = {
    **{"layers": 6, "cycle": 6, "residual_channels": 64, "skip_channels": 128, "crop_frames": 64, "batch_size": 8},
    "training": {
        "steps": 50,
        "learning_rate": 1e-2,
        "warmup_steps": 10,
        "log_every": 50,
        "valid_every": 50,
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(MODEL, "cpu")


@pytest.fixture
def speech(speech_folder, tmp_path) -> Path:
    """The shortest recordings of a speaker that the model was not trained on."""
    (tmp_path / "speech").mkdir()
    for path in sorted((speech_folder / "june").glob("*.ogg"), key=lambda path: path.stat().st_size)[:10]:
        shutil.copy(path, tmp_path / "speech")
    return tmp_path / "speech"


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_a_prior_of_two_codebooks_learns_real_codes_and_is_sampled(run, tokenizer, speech, tmp_path, pattern):
    tokens, exp, new = tmp_path / "tokens", tmp_path / "exp", tmp_path / "new"
    assert run("tokenize", MODEL, speech, "-o", tokens, "--codebooks", 2, "--device", "cpu")[0] == 0
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump({**SETTINGS, "pattern": pattern}))
    # What it has learned is asked of what it has heard: ten recordings tell nothing of others.
    sets = (f"tokens={tokens}", f"valid_tokens={tokens}")
    code, out, err = run("train-prior", tmp_path / "prior.yaml", *sets, "-o", exp, "--device", "cpu")
    assert code == 0, err
    lines = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    valid = next(line for line in lines if line["part"] == "valid")
    assert valid["gain_over_unigram"] > 1, "no better than the frequencies of the codes"
    assert valid["gain_over_uniform"] > valid["gain_over_unigram"]
    assert valid["bits_per_second"] == pytest.approx(valid["bits_per_code"] * 2 * 50)
    assert f"{valid['bits_per_second']:.1f} bit/s" in out

    prior = CodePrior.from_pretrained(exp / "release", "cpu")
    assert (prior.codes.num_codebooks, prior.codes.sizes) == (2, [1024, 1024])
    row = min(TokenSet(tokens), key=lambda row: row.num_frames)
    codes = torch.from_numpy(row.codes.astype("int64"))[None]
    scored = prior.network.log_prob(codes).sum()
    torch.testing.assert_close(step_by_step(prior, codes), scored, atol=1e-2, rtol=1e-5)

    prime = speech / f"{row.utt_id}.ogg"
    seconds, samples = row.num_frames / 50 + 1, row.num_frames * 320 + 16000
    sample = ("sample", exp / "release", MODEL, "--num", 2, "--seconds", seconds, "--prime", prime)
    code, _, err = run(*sample, "-o", new, "--device", "cpu")
    assert code == 0, err
    wavs = sorted(new.glob("*.wav"))
    # In one batch, as they were decoded: how a pitch is rounded may decide between one harmonic more or less.
    sampled = torch.stack([torch.as_tensor(load_codes(wav.with_suffix(".npz")).codes.astype("int64")) for wav in wavs])
    decoded = tokenizer.decode(sampled, seed=[derive_seed(0, "decoder", number) for number in range(2)])
    assert decoded.isfinite().all()
    for wav, expected in zip(wavs, decoded, strict=True):
        wave, rate = load_audio(wav)
        file = load_codes(wav.with_suffix(".npz"))
        assert (rate, wave.shape, file.model_codebooks) == (16000, (1, samples), tokenizer.num_codebooks)
        assert file.codes.shape == (2, row.num_frames + 50)
        assert wave.std() > 1e-3
        torch.testing.assert_close(wave, expected.clamp(-1, 1), atol=2e-3, rtol=0)
    first, second = (load_codes(path).codes for path in sorted(new.glob("*.npz")))
    frames = row.num_samples // tokenizer.hop_length
    assert (first[:, :frames] == row.codes[:, :frames]).all()
    assert (second[:, :frames] == row.codes[:, :frames]).all()
    assert (first != second).any()


def step_by_step(prior: CodePrior, codes: torch.Tensor) -> torch.Tensor:
    """log p of codes, as a sampler that happens to draw them comes by it."""
    network = prior.network
    steps, stepper = network.pattern.arrange(codes, network.silence), fastest_stepper(network.network, 1)
    previous, total = stepper.start(), torch.zeros(())
    for step in steps.unbind(-1):
        log_p = stepper.step(previous).log_softmax(-1)
        told = step != network.silence
        total = total + log_p.gather(-1, step.clamp(max=network.silence - 1)[..., None])[..., 0][told].sum()
        previous = step
    return total
