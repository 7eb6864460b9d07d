import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from audiovq.audio.files import load_audio
from audiovq.audio.resampling import resample
from audiovq.errors import ConfigError
from audiovq.evaluation import judges, report
from audiovq.evaluation.evaluate import evaluate
from audiovq.evaluation.judges import Judge, Judges, load_judges, split_words, word_error_rate
from audiovq.evaluation.metrics import Metric, MetricError, Weighted, measure, summarize

RATE = 16000


def needs(*packages: str):
    missing = [name for name in packages if not find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs the packages {', '.join(missing)}")


@pytest.fixture(scope="module")
def whisper() -> Path:
    """Folder of a small faster-whisper model."""
    pytest.importorskip("faster_whisper")
    folder = os.environ.get("AUDIOVQ_WER_MODEL")
    if not folder:
        pytest.skip("needs AUDIOVQ_WER_MODEL, the folder of a faster-whisper model")
    return Path(folder)


def loaded(name: str, **settings) -> Metric:
    found = load_judges([name], **settings)
    assert found.unable == {}
    return found.metrics[name]


def noisy(wave: torch.Tensor, level: float) -> torch.Tensor:
    return wave + level * torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))


class LoudnessJudge(Judge[float]):
    """A judge without a network, which keeps what it was given to hear."""

    model = "Loudness 1.0"

    def __init__(self):
        self.heard: list[tuple[np.ndarray, float | None]] = []

    def hear(self, wave, original):
        self.heard.append((wave, original))
        return float(np.abs(wave).max())

    def compare(self, original, decoded):
        return decoded / original


@pytest.fixture
def loudness(monkeypatch) -> LoudnessJudge:
    """Stands in for the judge `mos`."""
    judge = LoudnessJudge()
    monkeypatch.setattr(judges, "_load", lambda *_: (judge, {"mos": Metric("Loudness", "", True, 2, judge)}))
    return judge


@pytest.fixture
def pulses():
    """Pulse trains, as voices have them: `pulses(f0)` is 2 s at that pitch in Hz, silent in its last half second."""

    def make(f0: float) -> torch.Tensor:
        t = torch.arange(2 * RATE) / RATE
        wave = sum(torch.cos(2 * torch.pi * f0 * k * t) / k for k in range(1, 20))
        return 0.1 * torch.as_tensor(wave)[None] * (t < 1.5)

    return make


# --- which judges --------------------------------------------------------------------------------------------


def test_an_unknown_judge_is_a_mistake_in_the_call():
    with pytest.raises(ConfigError, match="unknown judge 'ears'; there are mos, wer, speaker, pitch"):
        load_judges(["mos", "ears"])


def test_a_judge_without_its_package_says_what_to_install(monkeypatch):
    for package in ("distillmos", "resemblyzer", "faster_whisper"):
        monkeypatch.setitem(sys.modules, package, None)  # Which makes its import fail.
    found = load_judges(["mos", "speaker", "wer"])
    assert found.metrics == {}
    assert list(found.unable) == ["mos", "speaker", "wer"]
    assert all("pip install 'audiovq[judges]'" in reason and "\n" not in reason for reason in found.unable.values())
    assert found.unable["speaker"].endswith("pip install --no-deps Resemblyzer")


@needs("jiwer", "faster_whisper")
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "needs a folder with a faster-whisper model; get one by `hf download"),
        ([], "is no faster-whisper model, config.json and model.bin and tokenizer.json missing"),
        (["config.json", "model.bin", "tokenizer.json"], "cannot be loaded as a faster-whisper model"),
    ],
)
def test_a_recognizer_without_a_model_cannot_run_and_says_why(tmp_path, files, reason):
    for name in files or ():
        (tmp_path / name).write_text("{}")
    found = load_judges(["wer"], wer_model=None if files is None else tmp_path)
    assert found.metrics == {}
    assert reason in found.unable["wer"]
    assert "\n" not in found.unable["wer"]


class Recogniser:
    """In place of faster-whisper's: hears two words in whatever sounds, and keeps how it was asked."""

    supported_languages = ("en", "fr")
    asked: ClassVar[list[dict[str, object]]] = []

    def __init__(self, folder: str, **settings: object):
        self.folder = folder

    def transcribe(self, wave: np.ndarray, **settings: object):
        self.asked.append(settings)
        texts = (" Hello,", " WORLD!") if settings["language"] is None else (" hello", " word")
        return iter([SimpleNamespace(text=text) for text in texts]), SimpleNamespace(language="fr")


@pytest.fixture
def recogniser(monkeypatch, tmp_path) -> Path:
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=Recogniser))
    monkeypatch.setattr(judges, "version", lambda name: "1.0")
    monkeypatch.setattr(Recogniser, "asked", [])
    for name in judges.MODEL_FILES:
        (tmp_path / name).write_text("{}")
    return tmp_path


@needs("jiwer")
def test_words_are_compared_with_those_of_the_original_in_its_language(recogniser, speech):
    found = load_judges(["wer"], wer_model=recogniser)
    judge = found.metrics["wer"].function
    rate = judge(speech, 0.5 * speech, RATE)
    assert (rate, rate.weight) == (50.0, 2)  # One of two words is another, without case and punctuation.
    assert [asked["language"] for asked in Recogniser.asked] == [None, "fr"]
    assert {asked["temperature"] for asked in Recogniser.asked} == {0.0}
    # Whatever a recogniser makes up of silence, nothing was said.
    assert judge(speech, torch.zeros_like(speech), RATE) == 100.0
    assert len(Recogniser.asked) == 2
    assert "faster-whisper 1.0, " in found.models["wer"]


@needs("jiwer")
def test_a_language_that_the_recogniser_does_not_know_is_a_mistake_in_the_call(recogniser):
    with pytest.raises(ConfigError, match="does not know the language 'xx'; it knows en, fr"):
        load_judges(["wer"], wer_model=recogniser, wer_language="xx")


# --- what they are given -------------------------------------------------------------------------------------


def test_judges_hear_at_16_khz_and_an_original_once(speech):
    judge, original = LoudnessJudge(), resample(speech, RATE, 24000)
    for gain in (0.5, 0.25):
        assert judge(original, gain * original, 24000) == pytest.approx(gain)
    lengths = {len(wave) for wave, _ in judge.heard}
    assert lengths == {speech.shape[-1]}
    assert [original is None for _, original in judge.heard] == [True, False, False]
    judge(original.clone(), original, 24000)
    assert len(judge.heard) == 5


def test_signals_that_no_metric_takes_no_judge_hears(speech):
    judge = LoudnessJudge()
    for bad in (torch.zeros_like(speech), speech * torch.nan, speech[:, 1:]):
        with pytest.raises(MetricError):
            judge(speech, bad, RATE)
    assert judge.heard == []


# --- words ---------------------------------------------------------------------------------------------------


def test_words_are_told_apart_without_case_and_punctuation():
    assert split_words("Don\u2019t — “HELP”, (he's) 1st-rate…\u00a0\uff21") == split_words("dont help hes 1st rate a")
    assert split_words(" ... ") == []
    assert split_words("नमस्ते") == ["नमस्ते"]  # Vowel signs are no punctuation.


@needs("jiwer")
def test_wrong_missing_and_added_words_are_errors():
    reference = ["the", "cat", "sat", "on", "the", "mat"]
    assert word_error_rate(reference, reference) == 0
    for words, errors in (("the dog sat on the mat", 1), ("cat sat on", 3), ("the cat sat on the big red mat", 2)):
        assert word_error_rate(reference, words.split()) == pytest.approx(100 * errors / 6)
    assert word_error_rate(reference, []) == 100
    assert word_error_rate(["a"], ["b", "c", "d"]) == 300
    with pytest.raises(MetricError, match="no words are understood in the original"):
        word_error_rate([], ["a"])


def test_error_rates_are_summed_over_all_words_and_are_no_mean_of_means():
    summary = summarize([Weighted(100.0, 1), Weighted(10.0, 9), MetricError("none")])
    assert summary.mean == pytest.approx(100 * (1 + 0.9) / 10)
    assert (summary.n, summary.failed) == (2, 1)


def test_the_interval_of_weighted_values_is_that_of_equal_ones_when_weights_are_equal():
    values = [1.0, 2.0, 4.0, 4.5]
    plain, weighted = summarize(values), summarize(Weighted(value, 7) for value in values)
    assert weighted.mean == plain.mean
    assert weighted.ci95 == pytest.approx(plain.ci95)


def test_the_interval_of_an_error_rate_holds_the_true_rate_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        words = rng.integers(5, 60, 40)
        found = summarize(Weighted(100 * rng.binomial(n, 0.2) / n, n) for n in words)
        assert found.ci95
        held += found.ci95[0] <= 20 <= found.ci95[1]
    assert 0.92 < held / 400 < 0.98


# --- the judges ----------------------------------------------------------------------------------------------


@needs("distillmos", "xls_r_sqa")
@pytest.mark.parametrize("seconds", [1.0, 7.68, 10.3])
def test_mos_is_what_the_package_itself_predicts(speech, seconds, capsys):
    import distillmos

    wave = speech.repeat(1, 8)[:, : round(seconds * RATE)]
    expected = distillmos.ConvTransformerSQAModel().eval()(wave).item()
    capsys.readouterr()
    assert loaded("mos").function(wave, wave, RATE) == pytest.approx(expected, abs=1e-4)
    assert capsys.readouterr().out == ""


@needs("distillmos", "xls_r_sqa")
def test_noise_lowers_mos_but_not_that_of_the_original(speech):
    found = load_judges(["mos"]).metrics
    results = [measure(speech, noisy(speech, level), RATE, found) for level in (0.0, 0.01, 0.1)]
    assert results[0]["mos"] == results[0]["mos_original"] > results[1]["mos"] > results[2]["mos"]
    assert len({result["mos_original"] for result in results}) == 1


@needs("distillmos", "xls_r_sqa")
def test_mos_of_too_short_a_signal_is_no_number(speech):
    with pytest.raises(MetricError, match=r"shorter than 0\.5 s"):
        loaded("mos").function(speech[:, :7000], speech[:, :7000], RATE)


@needs("resemblyzer", "webrtcvad")
def test_a_voice_is_more_like_itself_than_like_another(speech_folder):
    similarity = loaded("speaker").function
    one, other = (load_audio(min((speech_folder / name).glob("*.ogg")), RATE)[0] for name in ("june", "carlo"))
    length = min(one.shape[-1], other.shape[-1])
    one, other = one[:, :length], other[:, :length]
    assert similarity(one, one, RATE) == pytest.approx(1, abs=1e-5)
    assert similarity(one, noisy(one, 0.001), RATE) > 0.9 > similarity(one, other, RATE)


@needs("resemblyzer", "webrtcvad")
def test_a_reconstruction_without_a_voice_has_no_similarity(speech):
    noise = noisy(torch.zeros_like(speech), 1e-4)
    with pytest.raises(MetricError, match=r"less than 0\.5 s of voice in the reconstruction"):
        loaded("speaker").function(speech, noise, RATE)


@needs("jiwer")
def test_words_that_drown_in_noise_are_errors(whisper, speech):
    wer = loaded("wer", wer_model=whisper, wer_language="en").function
    clean, drowned, silent = (wer(speech, wave, RATE) for wave in (speech, noisy(speech, 0.3), 0 * speech))
    assert isinstance(clean, Weighted)
    assert clean == 0 < drowned
    assert silent == 100
    assert clean.weight == silent.weight >= 3


@needs("jiwer")
def test_the_recognizer_is_named_and_takes_the_shortest_signal(whisper):
    found = load_judges(["wer"], wer_model=whisper, wer_language="en")
    assert "faster-whisper" in found.models["wer"]
    assert found.models["wer"].endswith("language en")
    click = torch.full((1, 1), 0.5)
    with pytest.raises(MetricError, match="no words"):
        found.metrics["wer"].function(click, click, RATE)
    with pytest.raises(ConfigError, match="does not know the language 'klingon'"):
        load_judges(["wer"], wer_model=whisper, wer_language="klingon")


# --- in an evaluation ----------------------------------------------------------------------------------------


def test_the_report_says_who_judged_and_who_could_not(utterances, noisy_tokenizer, loudness, tmp_path):
    found = load_judges(["mos"])
    panel = Judges(found.metrics, found.models, {"wer": "no <model>"})
    evaluation = evaluate(noisy_tokenizer(), utterances[:2], "model", "data", judges=panel)
    assert len(loudness.heard) == 4  # Noise is not judged.

    lines = report.format_table(evaluation).splitlines()
    (row,) = [line for line in lines if line.startswith("Loudness  ")]
    assert row.split()[-1] == "2"
    assert {"Loudness by Loudness 1.0", "judge wer cannot run: no <model>"} <= set(lines)
    page = report.render_page(evaluation)
    assert "Loudness by Loudness 1.0" in page
    assert "judge wer cannot run: no &lt;model&gt;" in page

    report.write_report(evaluation, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"]["mos"]["n"] == 2
    assert "wer" not in written["metrics"]
    assert "mos" not in written["mean_spectrum_noise"]
    assert written["judges"] == {"mos": {"model": "Loudness 1.0"}, "wer": {"cannot_run": "no <model>"}}


def test_an_utterance_keeps_the_weight_of_its_value(utterances, noisy_tokenizer, tmp_path):
    panel = Judges({"wer": Metric("WER", "%", False, 1, lambda *_: Weighted(25.0, 8))}, {"wer": "x"})
    report.write_report(evaluate(noisy_tokenizer(), utterances[:1], "model", "data", judges=panel), tmp_path)
    line = json.loads((tmp_path / "utterances.jsonl").read_text())
    assert line["metrics"]["wer"] == 25
    assert line["weights"] == {"wer": 8}


# --- pitch ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pyin", "swift"])
def pitch(request, monkeypatch) -> Metric:
    if request.param == "swift":
        pytest.importorskip("swift_f0")
    monkeypatch.setattr("audiovq.data.pitch.default_tracker", lambda: request.param)
    return loaded("pitch")


def test_the_frame_error_counts_wrong_pitch_and_wrong_voicing(pitch, pulses):
    voice = pulses(150.0)
    assert pitch.function(voice, voice, RATE) == 0
    assert pitch.function(voice, pulses(160.0), RATE) < 5  # Within a fifth.
    off = pitch.function(voice, pulses(220.0), RATE)
    assert off == pytest.approx(75, abs=6)  # All of the voiced frames.
    assert pitch.function(voice, torch.zeros_like(voice), RATE) == pytest.approx(off, abs=3)
    assert off.weight == pytest.approx(2 * RATE / 256, abs=2)


def test_the_frame_error_needs_a_voice(pitch):
    click = torch.zeros(1, RATE)
    click[:, RATE // 2] = 0.5
    with pytest.raises(MetricError, match="no voice in the original"):
        pitch.function(click, click, RATE)
