"""The recipe's own modules can be imported, as they import each other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "recipes/speech/local"))
