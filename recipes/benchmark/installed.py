"""What an installed audiovq takes: space on disk, with what it requires and by extra, and processor time to start."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from codec import table
from packaging.requirements import Requirement

import audiovq

PACKAGE = "audiovq"
CUDA = ("nvidia-", "cuda-", "triton")
"""How the packages begin that PyTorch brings for GPUs."""
COMMANDS = {
    "import audiovq": [sys.executable, "-c", "import audiovq"],
    "audiovq --help": [sys.executable, "-m", "audiovq", "--help"],
}


def required(name: str, extras: Iterable[str] = ()) -> set[str]:
    """Installed packages that `name[extras]` needs, and those that they need, by normalised name."""
    found: set[tuple[str, str]] = set()
    waiting = [(_normalised(name), extra) for extra in ("", *extras)]
    while waiting:
        package, extra = found_now = waiting.pop()
        if found_now in found:
            continue
        try:
            requirements = distribution(package).requires or []
        except PackageNotFoundError:
            continue
        found.add(found_now)
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(_normalised(requirement.name), each) for each in ("", *requirement.extras)]
    return {package for package, _ in found}


def bytes_of(package: str) -> int:
    """Bytes of the files that pip lists of a package; of audiovq those of its folder, even if it is editable."""
    if package == PACKAGE:
        files: Iterable[Path] = Path(audiovq.__file__).parent.rglob("*")
    else:
        files = (Path(str(file.locate())) for file in distribution(package).files or [])
    return sum(file.stat().st_size for file in files if file.is_file())


def sizes(extras: Iterable[str]) -> dict[str, float]:
    """MiB of audiovq with all that it requires, of parts of that, and of what each extra adds."""
    base = required(PACKAGE)
    parts: dict[str, Callable[[str], bool]] = {
        "audiovq and all that it requires": lambda name: True,
        "audiovq": lambda name: name == PACKAGE,
        "PyTorch": lambda name: name == "torch",
        "CUDA": lambda name: name.startswith(CUDA),
    }
    found = {title: [name for name in base if chosen(name)] for title, chosen in parts.items()}
    found |= {f"{PACKAGE}[{extra}] adds": list(required(PACKAGE, [extra]) - base) for extra in extras}
    return {title: sum(map(bytes_of, names)) / 2**20 for title, names in found.items()}


def processor_seconds(command: list[str], rounds: int) -> float:
    """Median over runs of a command's user and system time."""

    def run() -> float:
        before = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return statistics.median(run() for _ in range(rounds))


def main() -> None:
    """Print how large the audiovq of this environment is, and how long it takes to answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="", help="whose sizes are measured, by comma; they have to be installed")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each command (15)")
    args = parser.parse_args()
    space = [{"what": what, "mib": mib} for what, mib in sizes(filter(None, args.extras.split(","))).items()]
    print(table({"installed": "{what}", "MiB": "{mib:,.0f}"}, space))
    time = [{"what": what, "seconds": processor_seconds(line, args.rounds)} for what, line in COMMANDS.items()]
    print("", table({"command": "{what}", "processor seconds": "{seconds:.2f}"}, time), sep="\n")


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
