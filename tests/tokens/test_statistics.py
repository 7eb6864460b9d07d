from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import entropy

from audiovq.errors import TokenError
from audiovq.tokens import TokenizerInfo, TokenRow, TokenSet, write_shard, write_tokenizer_info
from audiovq.tokens.statistics import draw_statistics, format_statistics, measure_tokens, statistics_record

K, RATE, HOP = 16, 16000, 320


def write_set(folder: Path, rows: list[tuple[str | None, np.ndarray]], books: int = 2) -> TokenSet:
    write_tokenizer_info(folder, TokenizerInfo("ab" * 32, RATE, HOP, RATE / HOP, books, K, {}))
    made = [
        TokenRow(f"utt{number}", speaker, RATE, HOP * codes.shape[1], codes.astype(np.uint16), "a.wav")
        for number, (speaker, codes) in enumerate(rows)
    ]
    write_shard(folder / "part-0.parquet", made[: len(made) // 2])
    write_shard(folder / "part-1.parquet", made[len(made) // 2 :])
    return TokenSet(folder)


@pytest.fixture
def rows() -> list[tuple[str | None, np.ndarray]]:
    """Utterances of three speakers, in no order; codes 13 to 15 of the first codebook never occur."""
    random = np.random.default_rng(0)
    speakers = ["b", "a", None, "a", "b", "b"]
    return [(name, random.integers(0, [[13], [16]], (2, 50 + 7 * i))) for i, name in enumerate(speakers)]


def bits(codes: np.ndarray) -> float:
    return float(entropy(np.unique(codes, return_counts=True)[1], base=2))


def test_figures_are_those_of_all_codes_together(tmp_path, rows):
    record = statistics_record(measure_tokens(write_set(tmp_path, rows)))
    together = np.concatenate([codes for _, codes in rows], axis=1)
    assert (record["utterances"], record["frames"]) == (6, together.shape[1])
    assert record["hours"] == pytest.approx(together.shape[1] * HOP / RATE / 3600)
    for book, found in zip(together, record["codebooks"], strict=True):
        assert found["entropy"] == pytest.approx(bits(book))
        assert found["perplexity"] == pytest.approx(2 ** bits(book))
    assert [(book["used"], book["dead"]) for book in record["codebooks"]] == [(13, 3), (16, 0)]
    assert record["nominal_bitrate"] == pytest.approx(50 * 2 * 4)
    assert record["empirical_bitrate"] == pytest.approx(50 * sum(bits(book) for book in together))


def test_speakers_are_counted_each_for_itself_most_audio_first(tmp_path, rows):
    record = statistics_record(measure_tokens(write_set(tmp_path, rows)))
    assert [speaker["speaker"] for speaker in record["speakers"]] == ["b", "a", None]
    for found in record["speakers"]:
        own = [codes for speaker, codes in rows if speaker == found["speaker"]]
        frames = sum(codes.shape[1] for codes in own)
        assert (found["utterances"], found["frames"]) == (len(own), frames)
        assert found["hours"] == pytest.approx(frames * HOP / RATE / 3600)
        mean = np.mean([bits(book) for book in np.concatenate(own, axis=1)])
        assert found["perplexity"] == pytest.approx(2**mean)


def test_codes_used_alike_and_a_single_code_are_the_extremes(tmp_path):
    codes = np.stack([np.arange(10 * K) % K, np.full(10 * K, 7)])
    first, second = statistics_record(measure_tokens(write_set(tmp_path, [("a", codes)])))["codebooks"]
    assert (first["entropy"], first["perplexity"], first["dead"]) == (pytest.approx(4), pytest.approx(K), 0)
    assert (second["entropy"], second["perplexity"], second["dead"]) == (0, 1, K - 1)


def test_the_table_names_the_speakers_with_most_audio(tmp_path):
    many = [(f"s{number}", np.zeros((1, number + 1), int)) for number in range(23)]
    text = format_statistics(measure_tokens(write_set(tmp_path, many, books=1)))
    assert [line.split()[0] for line in text.splitlines()[-21:-1]] == [f"s{number}" for number in range(22, 2, -1)]
    assert text.splitlines()[-1] == "and 3 more speakers with less audio (--json lists all)"


def test_a_code_outside_the_codebook_and_an_empty_set_are_refused(tmp_path, rows):
    tokens = write_set(tmp_path, [*rows, ("a", np.array([[0, K], [0, 0]]))])
    with pytest.raises(TokenError, match=r"utterance 'utt6' holds code 16, the codebook has 16; .* verify"):
        measure_tokens(tokens)
    with pytest.raises(TokenError, match="holds no utterances"):
        measure_tokens(write_set(tmp_path, []))


@pytest.mark.parametrize("speakers", [1, 3, 30])
def test_a_picture_is_drawn_for_few_speakers_and_many(tmp_path, speakers):
    rows = [(f"${number}$_{{x", np.arange(9).reshape(1, 9) + number % 5) for number in range(speakers)]
    statistics = measure_tokens(write_set(tmp_path, rows, books=1))
    draw_statistics(statistics, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] > 1500
    for panel in np.array_split(picture[100:-100, :, :3], 3, axis=1):
        assert (panel != 1).any(axis=-1).mean() > 0.01
    with pytest.raises(TokenError, match=r"expected the name of a picture, which ends in \.png, \.svg, \.pdf"):
        draw_statistics(statistics, tmp_path / "a.gif")


def test_axes_are_labelled_with_numbers_and_not_with_formulas(tmp_path):
    codes = np.repeat(np.arange(8), np.arange(8, 16))[None]  # Shares within one power of ten.
    draw_statistics(measure_tokens(write_set(tmp_path, [("a", codes)], books=1)), tmp_path / "a.svg")
    assert "mathdefault" not in (tmp_path / "a.svg").read_text()
