"""How transformers finds audiovq's classes where no import was added: through `trust_remote_code=True`.

An exported folder holds one file of code, and that only imports audiovq. So the code that runs is always the one that
is installed.
"""

from __future__ import annotations

from typing import ClassVar

FILE = "import_audiovq.py"
CODE = '''"""For transformers' trust_remote_code=True; needs `pip install 'audiovq[transformers]'`."""

from audiovq.interop.transformers import AudioVQConfig, AudioVQFeatureExtractor, AudioVQModel
'''
CLASSES = {
    "AutoConfig": "AudioVQConfig",
    "AutoModel": "AudioVQModel",
    "AutoModelForAudioTokenization": "AudioVQModel",
    "AutoFeatureExtractor": "AudioVQFeatureExtractor",
}


def auto_map(*autos: str) -> dict[str, str]:
    """Which class of the file stands for each `Auto...` class of transformers."""
    return {auto: f"{FILE.removesuffix('.py')}.{CLASSES[auto]}" for auto in autos}


class InPackage:
    """A class that transformers does not copy the source of into what it saves; the package has it."""

    _auto_class: ClassVar[str | None] = None

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Called by transformers when it came here through `trust_remote_code`; there is nothing to do."""
