import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiovq.batching import evenly_spread
from audiovq.errors import AudioError
from audiovq.evaluation.evaluate import evaluate
from audiovq.evaluation.metrics import METRICS, measure


@pytest.fixture(scope="module")
def damaged(utterances, tmp_path_factory):
    """An utterance whose file has become text since it was listed."""
    path = tmp_path_factory.mktemp("damaged") / "text.wav"
    path.write_text("no audio")
    return dataclasses.replace(utterances[0], id="damaged", path=path)


def test_every_utterance_has_the_metrics_of_its_reconstruction(utterances, noisy_tokenizer):
    tokenizer = noisy_tokenizer(noise=0.01)
    evaluation = evaluate(tokenizer, utterances, "model", "data")
    assert [scores.utterance for scores in evaluation.scores] == utterances
    original = utterances[2].source().read(16000)
    decoded, _ = tokenizer.reconstruct(original, 16000)
    expected = measure(original, decoded[0], 16000)
    assert evaluation.scores[2].model == pytest.approx(expected, abs=1e-6)
    assert evaluation.seconds == pytest.approx(sum(u.duration for u in utterances), rel=1e-3)
    assert evaluation.rejected == {}


def test_mean_spectrum_noise_is_the_lower_end_of_every_metric(utterances, noisy_tokenizer):
    evaluation = evaluate(noisy_tokenizer(), utterances, "model", "data")
    model, noise = evaluation.summaries(), evaluation.noise_summaries()
    for name, metric in METRICS.items():
        assert model[name].n == noise[name].n == len(utterances)
        assert (model[name].mean > noise[name].mean) == metric.higher_is_better


def test_codes_are_counted_over_the_whole_set(utterances, noisy_tokenizer):
    tokenizer = noisy_tokenizer(num_codebooks=2)
    evaluation = evaluate(tokenizer, utterances, "model", "data")
    codes = [tokenizer.reconstruct(u.source().read(16000), 16000)[1][0] for u in utterances]
    pooled = torch.cat(codes, dim=1)
    assert evaluation.codes.frames == pooled.shape[1]
    assert evaluation.codes.used == [len(row.unique()) for row in pooled]
    assert evaluation.code_counts.tolist() == [torch.bincount(row, minlength=64).tolist() for row in pooled]
    assert evaluation.codes.dead == [64 - used for used in evaluation.codes.used]
    assert evaluation.codes.nominal_bitrate == evaluation.model["bitrate"] == 600
    assert evaluation.model["codes"] == "2 x 64"


def test_fewer_codebooks_are_used_counted_and_told(utterances, noisy_tokenizer):
    evaluation = evaluate(noisy_tokenizer(num_codebooks=3), utterances[:1], "model", "data", num_codebooks=2)
    assert (evaluation.model["num_codebooks"], evaluation.model["model_codebooks"]) == (2, 3)
    assert evaluation.code_counts.shape == (2, 64)
    assert evaluation.codes.nominal_bitrate == evaluation.model["bitrate"] == 600
    assert len(evaluation.codes.perplexity) == len(evaluation.codes.used) == len(evaluation.codes.dead) == 2


def test_a_model_without_codes_has_no_code_statistics(utterances, noisy_tokenizer):
    evaluation = evaluate(noisy_tokenizer(num_codebooks=0), utterances[:1], "model", "data")
    assert evaluation.codes is None
    assert evaluation.model["bitrate"] is None
    assert evaluation.examples[0].codes is None


def test_bad_audio_is_rejected_with_a_reason_and_changes_no_figure(utterances, damaged, noisy_tokenizer):
    clean = evaluate(noisy_tokenizer(), utterances[:2], "model", "data")
    evaluation = evaluate(noisy_tokenizer(), [utterances[0], damaged, utterances[1]], "model", "data")
    assert list(evaluation.rejected) == ["damaged"]
    assert "text.wav: is no audio" in evaluation.rejected["damaged"]
    assert len(evaluation.scores) == 2
    for name, summary in clean.summaries().items():
        assert evaluation.summaries()[name].mean == pytest.approx(summary.mean, abs=1e-9)
    for name, summary in clean.noise_summaries().items():
        assert evaluation.noise_summaries()[name].mean == pytest.approx(summary.mean, abs=1e-9)


def test_nothing_but_bad_audio_is_an_error(damaged, noisy_tokenizer):
    with pytest.raises(AudioError, match=r"none of the 1 utterances can be evaluated: .*text\.wav"):
        evaluate(noisy_tokenizer(), [damaged], "model", "data")


def test_examples_are_spread_over_the_set(utterances, noisy_tokenizer):
    evaluation = evaluate(noisy_tokenizer(), utterances, "model", "data", examples=2)
    assert [example.scores.utterance for example in evaluation.examples] == [utterances[0], utterances[2]]
    assert evaluate(noisy_tokenizer(), utterances[:1], "model", "data", examples=0).examples == []


@given(st.integers(0, 200), st.integers(0, 250))
def test_spread_items_are_in_order_distinct_and_evenly_spaced(size, count):
    chosen = evenly_spread(range(size), count)
    assert len(chosen) == min(size, count)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_spread_over_everything():
    assert evenly_spread("abc", None) == ["a", "b", "c"]
