"""What a token data set holds and how its codes are used: figures, a table for the terminal and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from audiovq.errors import TokenError
from audiovq.files import atomic_path
from audiovq.text import printable
from audiovq.tokens import TokenizerInfo, TokenSet, code_counts

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64
    from matplotlib.axes import Axes

SHOWN_SPEAKERS = 20
"""Speakers in the table and by name in the picture, those with most audio."""
PICTURES = (".png", ".svg", ".pdf")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # Speakers and folders are named as they like.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@dataclass
class CodeUse:
    """Utterances that are counted together, such as all of a speaker."""

    counts: Int64[np.ndarray, "books codes"]
    """How often each code occurs."""
    utterances: int = 0
    seconds: float = 0.0

    @property
    def frames(self) -> int:
        return int(self.counts[0].sum())

    @property
    def perplexity(self) -> float:
        """2^entropy, with the mean of the codebooks' entropies; at most K, and at most the number of frames."""
        return 2 ** float(np.mean(entropies(self.counts)))


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of a token data set."""

    folder: str
    tokenizer: TokenizerInfo
    total: CodeUse
    speakers: dict[str | None, CodeUse]
    """Most audio first; None holds the utterances without a speaker."""

    @property
    def codes(self) -> CodeStatistics:
        return code_statistics(self.total.counts, self.tokenizer.codebook_sizes, self.tokenizer.frame_rate)


def measure_tokens(tokens: TokenSet) -> TokenStatistics:
    """Count a token data set, one row group in memory at a time, and [Q, K] counts for each speaker.

    Raises:
        TokenError: a shard is damaged, holds a code outside the codebook, or there are no utterances.
    """
    tokens.require_one_model()
    info = tokens.info
    speakers: dict[str | None, CodeUse] = {}
    for row in tokens:
        counts = code_counts(tokens, row)
        if row.speaker not in speakers:
            speakers[row.speaker] = CodeUse(np.zeros((info.num_codebooks, max(info.codebook_sizes)), np.int64))
        part = speakers[row.speaker]
        part.counts += counts
        part.utterances += 1
        part.seconds += row.num_samples / row.sample_rate
    if not speakers:
        raise TokenError(f"{tokens.folder}: holds no utterances")
    total = CodeUse(
        np.sum([part.counts for part in speakers.values()], axis=0),
        sum(part.utterances for part in speakers.values()),
        sum(part.seconds for part in speakers.values()),
    )
    ranked = sorted(speakers.items(), key=lambda item: -item[1].seconds)
    return TokenStatistics(str(tokens.folder), info, total, dict(ranked))


def statistics_record(statistics: TokenStatistics) -> dict[str, Any]:
    """All figures, as plain data."""
    codes, info = statistics.codes, statistics.tokenizer
    return {
        "tokens": statistics.folder,
        "weights_sha256": info.weights_sha256,
        "utterances": statistics.total.utterances,
        "hours": statistics.total.seconds / 3600,
        "frames": codes.frames,
        "nominal_bitrate": codes.nominal_bitrate,
        "empirical_bitrate": codes.empirical_bitrate,
        "model_codebooks": info.model_codebooks,
        "codebooks": [
            {"size": size, "entropy": entropy, "perplexity": perplexity, "used": used, "dead": dead}
            for size, entropy, perplexity, used, dead in zip(
                codes.sizes, codes.entropy, codes.perplexity, codes.used, codes.dead, strict=True
            )
        ],
        "speakers": [
            {
                "speaker": speaker,
                "utterances": part.utterances,
                "hours": part.seconds / 3600,
                "frames": part.frames,
                "perplexity": part.perplexity,
            }
            for speaker, part in statistics.speakers.items()
        ],
    }


def format_statistics(statistics: TokenStatistics) -> str:
    """The figures as lines of text; of the speakers, those with most audio."""
    record = statistics_record(statistics)
    number, of_model = len(record["codebooks"]), record["model_codebooks"]
    chosen = f" with {number} of the model's {of_model} codebooks" if number < of_model else ""
    text = [
        _title(statistics),
        f"bitrate {record['nominal_bitrate']:.0f} bit/s{chosen}, empirical {record['empirical_bitrate']:.0f} bit/s",
        "",
    ]
    books = [
        (
            str(number),
            f"{book['entropy']:.2f} of {math.log2(book['size']):.2f}",
            f"{book['perplexity']:.1f}",
            f"{book['used']} of {book['size']}",
            book["dead"],
        )
        for number, book in enumerate(record["codebooks"])
    ]
    text += [*_columns(("codebook", "bits a code", "perplexity", "codes used", "dead"), books), ""]
    speakers = [
        (_name(one["speaker"]), one["utterances"], f"{one['hours']:.2f}", one["frames"], f"{one['perplexity']:.1f}")
        for one in record["speakers"]
    ]
    text += _columns(("speaker", "utterances", "hours", "frames", "perplexity"), speakers[:SHOWN_SPEAKERS])
    if len(speakers) > SHOWN_SPEAKERS:
        text.append(f"and {len(speakers) - SHOWN_SPEAKERS} more speakers with less audio (--json lists all)")
    return "\n".join(text)


def _title(statistics: TokenStatistics) -> str:
    total = statistics.total
    hours = total.seconds / 3600
    return f"{total.utterances} utterances, {hours:.2f} hours, {total.frames} frames: {statistics.folder}"


def _columns(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """A table whose first column is a name and whose others are numbers."""
    lines = [titles, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    for name, *cells in lines:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *numbers])


def _name(speaker: str | None) -> str:
    return "(unknown)" if speaker is None else printable(speaker)


@dataclass(frozen=True)
class CodeStatistics:
    """Use of the codes over a whole set of utterances; lists hold one number a codebook."""

    frames: int
    """Frames that were counted. Neither perplexity nor codes used can be larger: a small set bounds both."""
    sizes: list[int]
    """Codes K that there are."""
    entropy: list[float]
    """Entropy in bits of the pooled histogram of codes."""
    perplexity: list[float]
    """2^entropy: the number of codes that, used equally, would have this entropy. At most K."""
    used: list[int]
    """Codes that occur at least once."""
    dead: list[int]
    """Codes that never occur."""
    nominal_bitrate: float
    """Bits a second with log2 K bits a code."""
    empirical_bitrate: float
    """Bits a second with `entropy` bits a code: what an ideal coder needs that knows how frequent each code
    is, but nothing of its context. Like all entropies from counts, an underestimate while frames are few."""


def code_statistics(counts: np.ndarray, sizes: Sequence[int], frame_rate: float) -> CodeStatistics:
    """Statistics of pooled counts [Q, K] of codebooks of these sizes, at a frame rate in Hz."""
    entropy, used = entropies(counts), (counts > 0).sum(axis=1).tolist()
    return CodeStatistics(
        frames=int(counts[0].sum()),
        sizes=list(sizes),
        entropy=entropy.tolist(),
        perplexity=np.exp2(entropy).tolist(),
        used=used,
        dead=[size - number for size, number in zip(sizes, used, strict=True)],
        nominal_bitrate=frame_rate * sum(map(math.log2, sizes)),
        empirical_bitrate=frame_rate * float(entropy.sum()),
    )


def entropies(counts: np.ndarray) -> Float64[np.ndarray, " books"]:
    """Entropy in bits of each codebook, of counts [Q, K] of its codes."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0), axis=1)


# --- picture -------------------------------------------------------------------------------------------------


def require_picture(path: str | Path) -> None:
    """Raise `TokenError` unless `draw_statistics` can write a file of this name."""
    if Path(path).suffix not in PICTURES:
        raise TokenError(f"{path}: expected the name of a picture, which ends in {', '.join(PICTURES)}")


def draw_statistics(statistics: TokenStatistics, path: str | Path) -> None:
    """Draw use of the codes, audio of each speaker and perplexity of each speaker.

    Raises:
        TokenError: the name is not that of a picture.
    """
    require_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        figure.suptitle(_title(statistics), fontsize=9)
        use, audio, perplexity = figure.subplots(1, 3)
        _draw_code_use(use, statistics)
        _draw_audio(audio, statistics)
        _draw_perplexity(perplexity, statistics)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _draw_code_use(axes: Axes, statistics: TokenStatistics) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    codes = statistics.codes
    for book, counts in enumerate(statistics.total.counts):
        label = f"codebook {book}: perplexity {codes.perplexity[book]:.0f}, {codes.dead[book]} dead"
        shares = np.sort(counts)[::-1][: codes.used[book]] / codes.frames
        axes.plot(np.arange(1, len(shares) + 1), shares * 100, label=label, lw=1.5)
    for size in sorted(set(codes.sizes)):
        axes.axhline(100 / size, color="0.4", ls="--", lw=1, label=f"all {size} codes alike")
    axes.set(title="Use of the codes", xlabel="code, most frequent first", ylabel="% of frames", yscale="log")
    axes.set_xlim(0, max(codes.sizes))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(fontsize=7)


def _draw_audio(axes: Axes, statistics: TokenStatistics) -> None:
    speakers = list(statistics.speakers.items())
    hours = [part.seconds / 3600 for _, part in speakers]
    if len(speakers) <= SHOWN_SPEAKERS:
        axes.barh([_name(speaker) for speaker, _ in speakers], hours)
        axes.set_ylim(max(len(speakers), 8) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="hours")
    else:
        axes.stairs(hours, np.arange(len(hours) + 1), fill=True)
        axes.set(xlabel=f"{len(hours)} speakers, most audio first", ylabel="hours", xlim=(0, len(hours)))
    axes.set(title="Audio of each speaker")


def _draw_perplexity(axes: Axes, statistics: TokenStatistics) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    parts, together = list(statistics.speakers.values()), statistics.total.perplexity
    found = [part.perplexity for part in parts]
    axes.scatter([part.frames for part in parts], found, s=12, alpha=0.7)
    axes.axhline(together, color="0.4", ls="--", lw=1, label="all speakers together")
    axes.set(title="Perplexity of each speaker", xlabel="frames", ylabel="perplexity", xscale="log")
    axes.set_ylim(0, 1.2 * max(together, *found))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(fontsize=7)
