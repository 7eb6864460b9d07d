"""Packing: what comes with audiovq is the trained model in half precision, and its card says what was measured."""

from __future__ import annotations

import json

import pack
import pytest
import torch
from safetensors.torch import load_file

from audiovq.models.pretrained import QUALITY, pretrained_models
from audiovq.models.tokenizer import AudioTokenizer

CARD = "# tiny\n\n<!-- quality -->\nold\n<!-- end of quality -->\n\nmade by hand\n"


@pytest.fixture
def packed(placed_tokenizer, tmp_path):
    """A packed model with a card, beside the one that it was made of."""
    placed_tokenizer("istft", "residual").save_pretrained(tmp_path / "trained")
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    pack.pack(str(tmp_path / "trained"), folder)
    return folder


def test_weights_are_rounded_and_the_card_stays(packed, mini_speech):
    whole, half = (load_file(path / "model.safetensors") for path in (packed.parents[1] / "trained", packed))
    floating = [name for name in whole if whole[name].is_floating_point()]
    assert floating
    assert [name for name in floating if not torch.equal(half[name], whole[name].half())] == []
    assert (packed / "README.md").read_text() == CARD
    codes = AudioTokenizer.from_pretrained(packed, "cpu").encode(mini_speech, 16000)
    assert codes.shape[1] == 3


def test_without_a_card_of_its_own_a_model_gets_one_that_names_it_and_takes_figures(placed_tokenizer, tmp_path):
    first, packed = placed_tokenizer("istft", "residual"), tmp_path / "packed"
    for trained in (first, placed_tokenizer("istft", "vq")):  # Packed again, the card is the new model's.
        trained.save_pretrained(tmp_path / "trained")
        pack.pack(str(tmp_path / "trained"), packed)
        tokenizer, card = AudioTokenizer.from_pretrained(packed, "cpu"), (packed / "README.md").read_text()
        assert f"| weights sha256 | {tokenizer.weights_sha256} |" in card
        assert f"| codes sha256 | {tokenizer.codes_sha256} |" in card
    row = {"family": "packed", "kbps": tokenizer.bitrate / 1000, "metrics": {"pesq_wb": {"mean": 1.5}}}
    for pesq in (1.5, 2.5):
        row["metrics"]["pesq_wb"]["mean"] = pesq
        pack.quality({"systems": [row], "conditions": []}, packed)
    card = (packed / "README.md").read_text()
    assert (card.count("## Quality"), card.count("| 1.5 |"), card.count("| 2.5 |")) == (1, 0, 1)
    with pytest.raises(SystemExit, match="nothing was measured of"):
        pack.quality({"systems": [{**row, "family": "other"}], "conditions": []}, packed)


def test_the_card_and_the_list_of_models_have_what_was_measured(packed):
    tokenizer = AudioTokenizer.from_pretrained(packed, "cpu")

    def row(family: str, books: int, pesq: float):
        metrics = {"pesq_wb": {"mean": pesq, "low": 1, "high": 2}, "wer": {"mean": None}, "other": {"mean": 3.0}}
        return {"family": family, "kbps": tokenizer.bitrate_of(books) / 1000, "metrics": metrics}

    rows = [row("tiny", 3, 1.61239), row("Codec 2", 1, 9.0), row("tiny", 1, 1.25)]
    pack.quality({"systems": rows, "conditions": ["by hand", "two clips"]}, packed)
    (found,) = pretrained_models(packed.parent)
    assert [(rate.codebooks, dict(rate.metrics)) for rate in found.rates] == [
        (1, {"PESQ-WB": 1.25}),
        (3, {"PESQ-WB": 1.612}),
    ]
    card = (packed / "README.md").read_text()
    assert "old" not in card
    assert "made by hand" in card
    low, high = (f"{tokenizer.bitrate_of(books) / 1000:g}" for books in (1, 3))
    assert f"| codebooks | kbit/s | PESQ-WB |\n|---:|---:|---:|\n| 1 | {low} | 1.25 |\n| 3 | {high} | 1.61 |\n" in card
    assert "- two clips\n" in card
    assert json.loads((packed / QUALITY).read_text())["conditions"] == ["by hand", "two clips"]


def test_a_page_shows_the_model_beside_codecs_between_its_marks():
    def row(family: str, system: str, kbps: float, mean: float):
        return {
            "family": family,
            "system": system,
            "kbps": kbps,
            "metrics": {name: {"mean": mean} for name in pack.NAMES},
        }

    rows = [row("tiny", "tiny, 1 of 2 codebooks", 0.5, 1.234), row("tiny", "tiny, 2 of 2 codebooks", 1.0, 2.0)]
    rows += [row("Opus", "Opus 6k", 5.514, 3.0), row("Speex", "Speex quality 0", 4.0, 1.0)]
    table = pack.overview({"systems": rows}, "tiny").splitlines()[2:]
    assert table == [
        "| **`tiny`**, 1 codebook | 0.5 | 1.23 | 1.23 | 1.23 | 1 | 1.23 | 1.23 |",
        "| **`tiny`**, 2 codebooks | 1 | 2.00 | 2.00 | 2.00 | 2 | 2.00 | 2.00 |",
        "| Opus 6k | 5.51 | 3.00 | 3.00 | 3.00 | 3 | 3.00 | 3.00 |",
    ]
    assert pack.marked("a\n<b>\nold\n<e>\nz", "<b>", "<e>", "new\n") == "a\n<b>\nnew\n<e>\nz"
    with pytest.raises(SystemExit, match="expected the marks"):
        pack.marked("a\n<b>\n", "<b>", "<e>", "new")
