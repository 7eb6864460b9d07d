"""Words of the shipped speech and when they are said, by a recogniser: labels for the probe of experiment 10.

    python recipes/estimators/local/words.py FOLDER_OF_A_FASTER_WHISPER_MODEL

writes words.json beside run.sh. The labels are kept with the recipe, so that nobody who repeats the bench needs a
recogniser.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from audiovq.audio.files import load_audio
from audiovq.files import write_text

RECIPE = Path(__file__).resolve().parents[1]
SPEECH = RECIPE.parent / "mini/data"
RATE = 16000
"""That the recogniser listens at, in Hz."""


def recognise(folder: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Start, end and text of the words of each file, by its path within the data; a file's name says its language."""
    from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
    found = {}
    for path in sorted(SPEECH.rglob("*.ogg")):
        wave, _ = load_audio(path, RATE)
        segments, _ = model.transcribe(wave[0].numpy(), path.name.partition("-")[0], beam_size=5, word_timestamps=True)
        words = [word for segment in segments for word in segment.words or ()]
        name = path.relative_to(SPEECH).as_posix()
        found[name] = [(round(w.start, 2), round(w.end, 2), plain(w.word)) for w in words if plain(w.word)]
    return found


def plain(word: str) -> str:
    """A word without case and punctuation."""
    return "".join(letter for letter in word.casefold() if letter.isalnum() or letter == "'").strip("'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a faster-whisper model")
    model = parser.parse_args().model
    words = recognise(model)
    data = {"recogniser": f"faster-whisper, {model.resolve().name}", "words": words}
    text = json.dumps(data, ensure_ascii=False).replace('], "', '],\n"').replace('{"', '{\n"')
    write_text(RECIPE / "words.json", f"{text}\n")


if __name__ == "__main__":
    main()
