"""Select the speech in recipes/mini/data from the prompts of the Asterisk PBX and code it as Opus.

The prompts are in Debian's packages asterisk-core-sounds-{en,es,fr,it,ru}-g722 (version 1.6.1), which install
them below /usr/share/asterisk/sounds. Run once, with ffmpeg at hand; the result is part of the repository:

    python recipes/mini/local/build_data.py /usr/share/asterisk/sounds recipes/mini/data
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

# Folder of a voice in the packages: the speaker and the language that it stands for.
VOICES = {
    "en_US_f_Allison": ("allison", "en"),
    "es_MX_f_Allison": ("allison", "es"),
    "fr_CA_f_June": ("june", "fr"),
    "it_IT_m_Carlo": ("carlo", "it"),
    "ru_RU_f_IvrvoiceRU": ("ivrvoice", "ru"),
}
TONES = {"ascending-2tone", "beep", "beeperr", "confbridge-join", "confbridge-leave", "descending-2tone"}
NO_SPEECH = TONES | {"tt-monkeys"}
# In at least one voice these hold a recording, or a part of one, that another prompt also holds: speech of
# the training split would come back in the test split.
REPEATED = {
    "conf-lockednow",
    "confbridge-binaural-off",
    "confbridge-mute-out",
    "confbridge-rest-list-vol-out",
    "confbridge-rest-talk-vol-in",
    "pbx-invalid",
    "vm-tempgreeting2",
}
SECONDS_PER_SPEAKER = 350.0
SHORTEST, LONGEST = 3.0, 12.0  # Seconds of a prompt.
BYTES_PER_SECOND = 8000  # G.722 at 64 kbit/s.


def select(folder: Path, seconds: float) -> list[Path]:
    """Prompts of one voice, in a random order that is the same everywhere, up to a total of `seconds`."""
    prompts = [
        path
        for path in folder.rglob("*.g722")
        if SHORTEST <= length(path) <= LONGEST
        and path.parent.name != "silence"
        and path.stem not in NO_SPEECH | REPEATED
    ]
    prompts.sort(key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
    chosen, total = [], 0.0
    for path in prompts:
        if total + length(path) <= seconds:
            chosen.append(path)
            total += length(path)
    return chosen


def length(path: Path) -> float:
    """Seconds of a G.722 file, which has no header."""
    return path.stat().st_size / BYTES_PER_SECOND


def convert(source: Path, target: Path) -> None:
    """Code a prompt as mono Opus in OGG, with 16 kHz as the rate of the input."""
    target.parent.mkdir(parents=True, exist_ok=True)
    read = ["-f", "g722", "-i", str(source)]
    write = ["-c:a", "libopus", "-b:a", "30k", "-fflags", "+bitexact", "-flags", "+bitexact", str(target)]
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *read, *write], check=True)


def main(sounds: Path, output: Path) -> None:
    speakers = [speaker for speaker, _ in VOICES.values()]
    for voice, (speaker, language) in VOICES.items():
        folder = sounds / voice
        chosen = select(folder, SECONDS_PER_SPEAKER / speakers.count(speaker))
        if not chosen:
            sys.exit(f"{folder}: holds no prompts; is asterisk-core-sounds-{language}-g722 installed?")
        for path in chosen:
            name = "-".join(path.relative_to(folder).with_suffix(".ogg").parts)
            convert(path, output / speaker / f"{language}-{name}")
        print(f"{voice}: {len(chosen)} prompts, {sum(map(length, chosen)) / 60:.1f} minutes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} SOUNDS OUTPUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
