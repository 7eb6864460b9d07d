"""Judges of decoded speech: they hear how it sounds, who speaks, what is said and at which pitch.

A judge hears the original and its reconstruction one by one, at 16 kHz and on the CPU, and compares what it has heard.
Their packages come with `pip install 'audiovq[judges]'`, but for Resemblyzer, whose own requirements are obsolete;
pitch needs none.
"""

from __future__ import annotations

import contextlib
import io
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from audiovq.errors import AudioVQError, ConfigError
from audiovq.evaluation.metrics import Metric, MetricError, Weighted, check_signals, is_silent

if TYPE_CHECKING:
    from jaxtyping import Float, Float32
    from torch import Tensor

    Wave = Float32[np.ndarray, " time"]

RATE = 16000
"""Rate in Hz at which all judges hear."""
SHORTEST = 0.5
"""Seconds of signal, or of voice, below which MOS and speaker are guesses."""
MODEL_FILES = ("config.json", "model.bin", "tokenizer.json")
"""Files of a faster-whisper model without which it would ask the Hugging Face Hub, or fail."""

Heard = TypeVar("Heard")


class JudgeError(AudioVQError):
    """A judge that cannot run; the message says what is missing and how to get it."""


class Judge(ABC, Generic[Heard]):
    """A network that hears speech; called with an original and its reconstruction, as every metric is."""

    model: str
    """Package, version and weights."""
    hears_silence = False
    """Whether a silent reconstruction has a value."""
    _last: tuple[Tensor, Heard] | None = None

    @abstractmethod
    def hear(self, wave: Wave, original: Heard | None) -> Heard:
        """What the judge hears in a signal at 16 kHz; `original` is what it heard in its original, None if it is that.

        Raises:
            MetricError: the signal cannot be judged.
        """

    @abstractmethod
    def compare(self, original: Heard, decoded: Heard) -> float:
        """The judgement."""

    def __call__(
        self, reference: Float[Tensor, "1 time"], degraded: Float[Tensor, "1 time"], sample_rate: int
    ) -> float:
        """The judgement of one pair of signals.

        Raises:
            MetricError: the signals are silent or not finite, or cannot be judged.
        """
        check_signals(reference, degraded, silence=self.hears_silence)
        original = self.original(reference, sample_rate)
        return self.compare(original, self.hear(_at_16_khz(degraded, sample_rate), original))

    def original(self, reference: Float[Tensor, "1 time"], sample_rate: int) -> Heard:
        """What the judge hears in an original; it remembers the last, which may have several reconstructions."""
        if self._last is None or self._last[0] is not reference:
            self._last = (reference, self.hear(_at_16_khz(reference, sample_rate), None))
        return self._last[1]


class OpinionJudge(Judge[float]):
    """Mean opinion score of the reconstruction, 1 to 5, as DistillMOS predicts it (Stahl and Gamper, 2025)."""

    def __init__(self):
        import distillmos

        with contextlib.redirect_stdout(io.StringIO()):  # It tells where its weights are.
            self.network = distillmos.ConvTransformerSQAModel(segmenting_in_forward=False).eval()
        self.model = f"DistillMOS {version('distillmos')}"

    def hear(self, wave: Wave, original: float | None) -> float:
        """Mean over windows of 7.68 s, at most 1 s apart; one after the other, since each takes 0.1 GB of memory."""
        import torch
        from distillmos.sqa import MAX_HOP_LEN, SEQ_LEN

        if len(wave) < SHORTEST * RATE:
            raise MetricError(f"the signals are shorter than {SHORTEST:g} s")
        padded = np.pad(wave, (0, max(0, SEQ_LEN - len(wave))))
        rest = len(padded) - SEQ_LEN
        starts = np.linspace(0, rest, -(-rest // MAX_HOP_LEN) + 1).astype(int)
        with torch.inference_mode():
            scores = [self.network(torch.from_numpy(padded[None, start : start + SEQ_LEN])) for start in starts]
        return float(torch.cat(scores).mean())

    def compare(self, original: float, decoded: float) -> float:
        return decoded


class SpeakerJudge(Judge[np.ndarray]):
    """Cosine similarity of the voices, up to 1: Resemblyzer's embeddings (GE2E; Wan et al., 2018)."""

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # It imports SciPy by old names.
            from resemblyzer import VoiceEncoder, preprocess_wav

        self.encoder, self.trim_silence = VoiceEncoder("cpu", verbose=False), preprocess_wav
        self.model = f"Resemblyzer {version('resemblyzer')}"

    def hear(self, wave: Wave, original: np.ndarray | None) -> np.ndarray:
        voice = self.trim_silence(wave.clip(-1, 1))
        if len(voice) < SHORTEST * RATE:
            name = "original" if original is None else "reconstruction"
            raise MetricError(f"less than {SHORTEST:g} s of voice in the {name}")
        return np.asarray(self.encoder.embed_utterance(voice))

    def compare(self, original: np.ndarray, decoded: np.ndarray) -> float:
        return float(original @ decoded)


class PitchJudge(Judge[np.ndarray]):
    """F0 frame error in percent (Chu & Alwan, 2009, "Reducing F0 Frame Error of F0 tracking algorithms").

    That is the share of frames which are voiced in one signal alone, or whose pitch is more than a fifth off; over a
    set, that of all frames.
    """

    hears_silence = True

    def __init__(self):
        from audiovq.data.pitch import TRACKERS, default_tracker

        name = default_tracker()
        self.track = TRACKERS[name]
        package = {"swift": "swift-f0", "pyin": "librosa"}[name]
        self.model = f"{name} of {package} {version(package)}"

    def hear(self, wave: Wave, original: np.ndarray | None) -> np.ndarray:
        if len(wave) < SHORTEST * RATE:
            raise MetricError(f"the signals are shorter than {SHORTEST:g} s")
        pitch = self.track(wave).astype(np.float32)
        if original is None and not pitch.any():
            raise MetricError("no voice in the original")
        return pitch

    def compare(self, original: np.ndarray, decoded: np.ndarray) -> float:
        same = np.where(original > 0, np.abs(decoded - original) <= 0.2 * original, decoded == 0)
        return Weighted(100 * float(1 - same.mean()), len(same))


class Transcript(NamedTuple):
    """What a recogniser understood."""

    words: list[str]
    language: str | None


class WordJudge(Judge[Transcript]):
    """Word error rate in percent, against what the recogniser itself understands in the original.

    It is 100 (S + D + I) / N, where N words are understood in the original; over a set, the errors of all utterances
    to the words of all. Words are told apart by spaces, without case, punctuation and symbols.
    """

    hears_silence = True

    def __init__(self, folder: Path | None, language: str | None):
        import jiwer  # noqa: F401
        import torch
        from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]

        from audiovq.files import sha256_of

        if folder is None:
            raise JudgeError(
                "needs a folder with a faster-whisper model; get one by `hf download Systran/faster-whisper-base "
                "--local-dir whisper-base`, and name it with --wer-model or AUDIOVQ_WER_MODEL"
            )
        missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
        if missing:
            raise JudgeError(f"{folder}: is no faster-whisper model, {' and '.join(missing)} missing")
        try:
            self.recognizer = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads()
            )
        except (RuntimeError, ValueError) as error:
            raise JudgeError(f"{folder}: cannot be loaded as a faster-whisper model: {error}") from error
        if language is not None and language not in self.recognizer.supported_languages:
            known = ", ".join(self.recognizer.supported_languages)
            raise ConfigError(f"{folder}: does not know the language {language!r}; it knows {known}")
        digest = sha256_of(folder / "model.bin")[:12]
        spoken = f", language {language}" if language else ""
        self.model = f"faster-whisper {version('faster-whisper')}, {folder.resolve().name} (sha256 {digest}){spoken}"
        self.language = language

    def hear(self, wave: Wave, original: Transcript | None) -> Transcript:
        language = self.language if original is None else original.language
        if is_silent(wave):
            return Transcript([], language)  # Of silence, Whisper makes words up.
        # Without sampling, which the default falls back to, the same sound is always the same text.
        segments, info = self.recognizer.transcribe(
            wave, language=language, beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return Transcript(split_words(" ".join(segment.text for segment in segments)), info.language)

    def compare(self, original: Transcript, decoded: Transcript) -> float:
        return word_error_rate(original.words, decoded.words)


def word_error_rate(reference: list[str], words: list[str]) -> Weighted:
    """Substitutions, deletions and insertions (package `jiwer`) in percent of the reference's words, its weight.

    Raises:
        MetricError: the reference has no words.
    """
    import jiwer

    if not reference:
        raise MetricError("no words are understood in the original")
    found = jiwer.process_words(" ".join(reference), " ".join(words))
    errors = found.substitutions + found.deletions + found.insertions
    return Weighted(100 * errors / len(reference), len(reference))


def split_words(text: str) -> list[str]:
    """Words of a text without case, punctuation and symbols; an apostrophe splits no word."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("'", "").replace("\u2019", "")
    return "".join(" " if unicodedata.category(mark)[0] in "PS" else mark for mark in plain).split()


@dataclass(frozen=True)
class Judges:
    """The judges of an evaluation."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    """What they judge, as metrics, by the names that these have in metrics.json."""
    models: dict[str, str] = field(default_factory=dict)
    """Package, version and weights of each."""
    unable: dict[str, str] = field(default_factory=dict)
    """Why the others cannot run."""

    def lines(self) -> list[str]:
        """Who judges, and who cannot, for people."""
        by = [f"{self.metrics[name].title} by {model}" for name, model in self.models.items()]
        return by + [f"judge {name} cannot run: {reason}" for name, reason in self.unable.items()]


JUDGES = ("mos", "wer", "speaker", "pitch")


def known_judges(names: Iterable[str]) -> list[str]:
    """The names without repetition; raises `ConfigError` if there is no judge of one."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in JUDGES:
            raise ConfigError(f"unknown judge {name!r}; there are {', '.join(JUDGES)}")
    return names


def load_judges(names: Iterable[str], wer_model: Path | None = None, wer_language: str | None = None) -> Judges:
    """Load judges by their names; those that cannot run are listed with the reason.

    Args:
        wer_model: folder of a faster-whisper model.
        wer_language: language of the speech, as Whisper calls it, such as `en`; None: what it finds in each original.

    Raises:
        ConfigError: there is no such judge, or the recogniser does not know the language.
    """
    judges = Judges()
    for name in known_judges(names):
        try:
            judge, metrics = _load(name, wer_model, wer_language)
        except ImportError as error:
            judges.unable[name] = f"{error}; {_install(name)}"
        except JudgeError as error:
            judges.unable[name] = str(error)
        else:
            judges.models[name] = judge.model
            judges.metrics.update(metrics)
    return judges


def _load(name: str, wer_model: Path | None, wer_language: str | None) -> tuple[Judge[Any], dict[str, Metric]]:
    if name == "wer":
        judge = WordJudge(wer_model, wer_language)
        return judge, {"wer": Metric("WER", "%", False, 1, judge)}
    if name == "speaker":
        judge = SpeakerJudge()
        return judge, {"speaker": Metric("Speaker similarity", "", True, 3, judge)}
    if name == "pitch":
        judge = PitchJudge()
        return judge, {"pitch": Metric("F0 frame error", "%", False, 1, judge)}
    judge = OpinionJudge()

    def of_original(reference: Tensor, degraded: Tensor, sample_rate: int) -> float:
        check_signals(reference, reference)
        return judge.original(reference, sample_rate)

    return judge, {
        "mos": Metric("MOS", "", True, 2, judge),
        "mos_original": Metric("MOS of the originals", "", True, 2, of_original),
    }


def _install(name: str) -> str:
    more = " && pip install --no-deps Resemblyzer" if name == "speaker" else ""
    return f"pip install 'audiovq[judges]'{more}"


def _at_16_khz(wave: Float[Tensor, "1 time"], sample_rate: int) -> Wave:
    from audiovq.audio.resampling import resample

    return resample(wave.detach().cpu().float(), sample_rate, RATE)[0].numpy()
