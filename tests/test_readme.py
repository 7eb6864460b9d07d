"""The README's commands and Python, run in order on a handful of the shipped recordings."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile

from audiovq.config import load_config
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
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README) if "://" not in link]
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


def rows_of(path: str, *, without_spread: bool = False) -> dict[str, list[str]]:
    """The first table row of each name in a page; the mean alone of figures with their spread."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / path).read_text(encoding="utf-8").splitlines():
        name, *cells = line.strip("| ").split(" | ")
        if line.startswith("| ") and len(cells) > 3:
            found.setdefault(name, [cell.partition(" ± ")[0] if without_spread else cell for cell in cells])
    return found


def test_the_readme_shows_what_was_measured_of_other_codecs():
    measured = rows_of("recipes/speech/RESULTS.md", without_spread=True)
    others = [row for row in rows_of("README.md").items() if row[0].startswith(("original", "Codec 2", "Opus"))]
    assert len(others) == 7
    for name, cells in others:
        kbps, pesq, stoi, estoi, _, *rest = measured[name]  # The README leaves the mel distance out.
        assert cells == [kbps, pesq, stoi, estoi, *rest], name


def test_the_readme_describes_its_models_as_their_configs_do():
    from audiovq.models.autoencoder import Autoencoder
    from audiovq.models.tokenizer import AudioTokenizer

    rows = re.findall(r"^\| \[`[\w-]+`\]\(([^)]+\.yaml)\) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert len(rows) == 5
    for path, codes, bitrate, parameters in rows:
        config = load_config(ROOT / path).model_part()
        tokenizer = AudioTokenizer(Autoencoder(config), config)
        sizes = f"{tokenizer.num_codebooks} x {tokenizer.codebook_size}"
        assert codes == f"{tokenizer.frame_rate:g} a second, {sizes}", path
        assert re.findall(r"\d+", bitrate)[-1] == f"{tokenizer.bitrate:g}", path
        assert parameters == f"{tokenizer.num_parameters / 1e6:.1f} M", path
        if path.startswith("recipes/speech"):
            assert f"Latency is known: of `speech-16k` {1000 * tokenizer.latency:g} ms" in " ".join(README.split())


def test_extras_that_are_named_can_be_installed():
    from importlib.metadata import metadata

    known = {*(metadata("audiovq").get_all("Provides-Extra") or ())}
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "audiovq").rglob("*.py"))]
    lists = [found for text in texts for found in re.findall(r"pip install '(?:audiovq|\.)\[([\w,]+)\]'", text)]
    named = {name for names in lists for name in names.split(",")}
    assert named >= {"media", "tensorboard", "onnx", "transformers"}
    assert named <= known
