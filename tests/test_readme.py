"""The README's commands and Python, run in order on a handful of the shipped recordings."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile

from audiovq.models.release import PRETRAINED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["training.steps=2", "training.valid_every=2", "training.valid_utterances=1"]
SMALL = [*SHORT, "data.batch_size=2", "bottleneck.codebook_size=16", "latent_dim=4", "decoder.layers=1"]
SMALL_OF = {
    "mini.yaml": [
        *(*SMALL, "encoder.layers=1", "encoder.dim=8", "decoder.dim=8"),
        *("data.crop_seconds=0.5", "data.pitch=swift", "loss.fft_sizes=[256]"),
    ],
    "vqvae_wavenet.yaml": [
        *SMALL,
        *("sample_rate=4000", "decoder.residual_channels=4", "decoder.skip_channels=4"),
        "training.precision=fp32",  # Accelerate keeps the precision of the first run for the whole process.
    ],
    "speech.yaml": [
        *(*SHORT, "data.batch_size=2", "data.crop_seconds=0.5", "data.pitch=swift", "loss.fft_sizes=[256]"),
        "training.precision=fp32",
    ],
    "prior.yaml": [*SHORT, "batch_size=2", "layers=2", "residual_channels=4", "skip_channels=4"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray")
def test_the_readme_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run):
    speech = tmp_path / "speech"
    for speaker in ("allison", "carlo"):
        (speech / speaker).mkdir(parents=True)
        for path in sorted((ROOT / "recipes/mini/data" / speaker).glob("*.ogg"))[:3]:
            shutil.copy(path, speech / speaker)
    wave, rate = soundfile.read(next((speech / "allison").iterdir()))
    soundfile.write(speech / "hello.wav", wave, rate)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)

    listed = commands("audiovq")
    assert {
        *("prepare", "train", "evaluate", "tokenize", "encode", "decode", "convert", "info", "train-prior", "sample")
    } <= {words[0] for words in listed}
    for words in listed:
        small = SMALL_OF[Path(words[1]).name] if words[0] in {"train", "train-prior"} else []
        code, _, err = run(*words, *small)
        assert code == 0, f"audiovq {shlex.join(words)}: {err}"

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["codes"].ndim == 3  # type: ignore[attr-defined]
    for table in ("dataset", "table", "pandas_frame", "polars_frame", "hugging_face"):
        assert len(names[table]) == 1, table  # type: ignore[arg-type]


def test_make_targets_of_the_readme_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [words[0] for words in commands("make")]
    assert named
    assert set(named) <= set(targets)


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_shows_the_quality_that_was_measured_of_the_shipped_model():
    quality = json.loads((PRETRAINED / "speech-16k/quality.json").read_text())
    for rate in quality["rates"]:
        books = rate["codebooks"]
        title = f"| **`speech-16k`**, {books} codebook{'s' * (books > 1)} | {rate['bitrate'] / 1000:g} |"
        (line,) = [line for line in README.splitlines() if line.startswith(title)]
        shown = [float(text) for text in line.removeprefix(title).strip(" |").split(" | ")]
        rounding = [0.51 if name == "WER %" else 0.0056 for name in rate["metrics"]]
        measured = rate["metrics"].values()
        assert all(abs(a - b) < most for a, b, most in zip(shown, measured, rounding, strict=True)), line
