import pytest
import torch

from audiovq.evaluation.evaluate import mean_spectrum, mean_spectrum_noise


def test_the_noise_has_the_mean_spectrum_and_so_the_level_of_the_speech(speech):
    spectrum = mean_spectrum([speech])
    noise = mean_spectrum_noise(spectrum, 16000 * 60, seed=0)

    def bands(spectrum):  # Of 16 bins: a window's worth of leakage does not matter then.
        return spectrum[:512].view(32, 16).mean(dim=1)

    torch.testing.assert_close(bands(mean_spectrum([noise])), bands(spectrum), rtol=0.1, atol=1e-3)


def test_the_mean_is_over_all_frames_and_so_hardly_depends_on_how_a_signal_is_cut(speech):
    long = speech.repeat(1, 4)
    pieces = long.split(50000, dim=1)
    torch.testing.assert_close(mean_spectrum(pieces), mean_spectrum([long]), rtol=0.1, atol=0.01)


def test_the_noise_knows_nothing_of_the_utterance_but_is_reproducible(speech):
    spectrum = mean_spectrum([speech])
    first, again, other = (mean_spectrum_noise(spectrum, 16000, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.corrcoef(torch.cat([first, other]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("num_samples", [1, 255, 256, 1024, 5001])
def test_the_noise_is_as_long_as_asked(num_samples):
    noise = mean_spectrum_noise(torch.ones(513), num_samples, seed=0)
    assert noise.shape == (1, num_samples)
    assert noise.isfinite().all()
