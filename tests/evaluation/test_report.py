import base64
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from audiovq.evaluation import report
from audiovq.evaluation.evaluate import evaluate
from audiovq.evaluation.metrics import METRICS, MetricError
from audiovq.evaluation.pictures import code_strip, histogram_path, mel_images

HOSTILE = "<script>alert('x')</script> & \"quotes\""


class Page(HTMLParser):
    """Collects the tags, the addresses and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evaluation(utterances, noisy_tokenizer):
    known = [dataclasses.replace(u, text=HOSTILE, speaker=HOSTILE) for u in utterances[:2]]
    found = evaluate(noisy_tokenizer(), known, "model <i>", "data <i>", examples=1)
    return dataclasses.replace(found, rejected={"<b>bad</b>": "/speech/<b>.wav: is empty (0 bytes)"})


@pytest.fixture(scope="module")
def failed(evaluation):
    """The same evaluation, in which PESQ has no value for any utterance and STOI none for one."""
    first, second = evaluation.scores
    first = dataclasses.replace(
        first, model={**first.model, "pesq_wb": MetricError("no speech"), "stoi": MetricError("too short")}
    )
    second = dataclasses.replace(second, model={**second.model, "pesq_wb": MetricError("no speech")})
    return dataclasses.replace(evaluation, scores=[first, second])


def content(address: str, media_type: str) -> bytes:
    head, _, data = address.partition(",")
    assert head == f"data:{media_type};base64"
    return base64.b64decode(data)


def test_the_page_needs_nothing_outside_itself(evaluation):
    text = report.render_page(evaluation)
    addresses = [a for _, attrs in Page(text).tags for key, a in attrs.items() if key in {"src", "href"}]
    assert len(addresses) == 6  # Two players, two spectrograms, the codes and an empty icon.
    assert all(address.startswith("data:") for address in addresses)
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_what_users_wrote_is_text_and_not_markup(evaluation):
    page = Page(report.render_page(evaluation))
    assert len(page.attributes("script")) == 1
    assert not page.attributes("i")
    assert HOSTILE in page.text
    assert "model <i>" in page.text
    assert "<b>bad</b> /speech/<b>.wav: is empty (0 bytes)" in page.text


def test_the_players_hold_the_original_and_the_decoded_signal(evaluation):
    page = Page(report.render_page(evaluation))
    example = evaluation.examples[0]
    players = page.attributes("audio")
    for attributes, wave in zip(players, (example.original, example.decoded), strict=True):
        samples, rate = soundfile.read(io.BytesIO(content(attributes["src"], "audio/flac")))
        assert rate == 16000
        np.testing.assert_allclose(samples, wave[0].clamp(-1, 1).numpy(), atol=2**-15)


def test_long_examples_are_cut(evaluation, monkeypatch):
    monkeypatch.setattr(report, "EXAMPLE_SECONDS", 1)
    page = Page(report.render_page(evaluation))
    samples, _ = soundfile.read(io.BytesIO(content(page.attributes("audio")[0]["src"], "audio/flac")))
    assert len(samples) == 16000
    assert "the first 1.0 s" in page.text


def test_a_decoder_that_diverges_is_still_shown(evaluation):
    example = evaluation.examples[0]
    diverged = dataclasses.replace(example, decoded=torch.full_like(example.decoded, torch.nan))
    page = Page(report.render_page(dataclasses.replace(evaluation, examples=[diverged])))
    assert len(page.attributes("audio")) == 2


def test_metrics_json_holds_what_was_found(evaluation, tmp_path):
    report.write_report(evaluation, tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["model"]["weights_sha256"] == "ab" * 32
    assert found["data"]["utterances"] == 2
    assert found["data"]["rejected"] == [{"id": "<b>bad</b>", "reason": "/speech/<b>.wav: is empty (0 bytes)"}]
    for name, summary in evaluation.summaries().items():
        assert found["metrics"][name]["mean"] == pytest.approx(summary.mean, abs=1e-6)
        assert found["metrics"][name]["ci95"] == pytest.approx(summary.ci95, abs=1e-6)
        assert found["metrics"][name]["n"] == 2
    assert found["codes"]["perplexity"] == pytest.approx(evaluation.codes.perplexity, abs=1e-6)


def test_utterances_jsonl_has_one_line_an_utterance(evaluation, tmp_path):
    report.write_report(evaluation, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [scores.utterance.id for scores in evaluation.scores]
    for line, scores in zip(lines, evaluation.scores, strict=True):
        assert line["metrics"] == pytest.approx(scores.model, abs=1e-6)
        assert line["mean_spectrum_noise"]["metrics"] == pytest.approx(scores.noise, abs=1e-6)


def test_a_metric_that_failed_everywhere_is_failed_and_no_number(failed, tmp_path):
    report.write_report(failed, tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert found["pesq_wb"] == {
        "mean": None,
        "ci95": None,
        "n": 0,
        "failed": 2,
        "reasons": {"no speech": 2},
    }
    pesq, stoi = report.table(failed)[:2]
    assert (pesq.model, pesq.count) == ("failed", "0, 2 failed")
    assert stoi.count == "1, 1 failed"
    assert "±" not in stoi.model
    line = json.loads((tmp_path / "utterances.jsonl").read_text().splitlines()[0])
    assert line["metrics"]["stoi"] is None
    assert line["failures"] == {"pesq_wb": "no speech", "stoi": "too short"}
    assert "PESQ-WB has no value for 2 utterances: no speech" in Page(report.render_page(failed)).text


def test_the_text_table_names_every_metric_and_every_failure(failed):
    lines = report.format_table(failed).splitlines()
    assert [line.split("  ")[0].split(" (")[0] for line in lines[1:6]] == [m.title for m in METRICS.values()]
    assert "PESQ-WB failed 2x: no speech" in lines
    assert any(line.startswith("codebook 1: ") for line in lines)


def test_a_model_without_codes_has_a_page(evaluation):
    example = dataclasses.replace(evaluation.examples[0], codes=None)
    model = {**evaluation.model, "bitrate": None, "num_codebooks": None, "model_codebooks": None}
    continuous = dataclasses.replace(evaluation, model=model, codes=None, code_counts=None, examples=[example])
    page = Page(report.render_page(continuous))
    assert "continuous" in page.text
    assert len(page.attributes("img")) == 2


# --- pictures --------------------------------------------------------------------------------------------


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(content(address, "image/png")))


def test_a_mel_picture_has_a_pixel_a_bin_and_frame_and_low_bins_below():
    time = torch.arange(16000) / 16000
    image = picture(mel_images(torch.sin(2 * torch.pi * 200 * time)[None], sample_rate=16000)[0])
    assert image.size == (16000 // 256 + 1, 80)
    column = np.asarray(image)[:, 30]
    assert column.argmax() > 70


def test_mel_pictures_share_the_scale_of_the_first(speech):
    loud, quiet = (np.asarray(picture(a)) for a in mel_images(speech, speech / 100, sample_rate=16000))
    assert loud.max() == 255
    assert quiet.max() < loud.max() / 2


def test_a_code_strip_has_a_row_a_codebook_and_a_colour_a_code():
    image = picture(code_strip(torch.tensor([[0, 1, 1, 0], [5, 5, 5, 9]])))
    assert image.size == (4, 2)
    colours = np.asarray(image.convert("RGB"))
    assert (colours[0, 0] == colours[0, 3]).all()
    assert (colours[0, 0] != colours[0, 1]).any()
    assert (colours[1, 2] != colours[1, 3]).any()


def test_the_histogram_falls_from_the_top_and_ends_at_the_unused_codes():
    assert histogram_path(np.array([0, 3, 0, 1])) == "M0 100V0.00H25.00V50.00H50.00V100.00H75.00V100.00H100.00V100Z"
    assert histogram_path(np.arange(100_000)).count("H") == 256


def test_texts_that_are_no_unicode_are_shown_and_written(evaluation, tmp_path):
    scores = evaluation.examples[0].scores
    strange = dataclasses.replace(
        scores, utterance=dataclasses.replace(scores.utterance, text="a\ud800\u2028b", speaker="\udcff")
    )
    other = dataclasses.replace(
        evaluation, data="\udcff.jsonl", examples=[dataclasses.replace(evaluation.examples[0], scores=strange)]
    )
    page = report.write_report(other, tmp_path)
    assert "a\\ud800\u2028b" in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "metrics.json").read_text())["data"]["name"] == "\udcff.jsonl"
