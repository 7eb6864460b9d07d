"""The WaveNet decoder, teacher-forced and drawing, with 12 classes and 3 samples a frame."""

from __future__ import annotations

import pytest
import torch

from audiovq.config import WaveNetDecoderConfig
from audiovq.models.wavenet_decoder import WaveNetDecoder, WaveNetSampler
from audiovq.sampling.base import sample

HOP, CLASSES, DIM = 3, 12, 4
SEEDS = [3, 1, 4]


def build(**settings) -> WaveNetDecoder:
    options = {"layers": 3, "cycle": 3, "residual_channels": 6, "skip_channels": 8, "condition_channels": 5}
    options |= {"speaker_dim": 2, "speakers": ["a", "b"], **settings}
    torch.manual_seed(0)
    return WaveNetDecoder(WaveNetDecoderConfig.model_validate(options), DIM, HOP, CLASSES).eval()


def latents(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, DIM, frames)


def test_a_prediction_depends_on_earlier_samples_alone():
    decoder, z, speaker = build(), latents(1, 6), torch.tensor([0])
    classes = torch.randint(CLASSES, (1, 6 * HOP))
    before = decoder(z, classes, speaker)
    for position in range(6 * HOP):
        changed = classes.clone()
        changed[:, position] = (changed[:, position] + 1) % CLASSES
        differs = (decoder(z, changed, speaker) != before).any(1)[0]
        assert not differs[: position + 1].any(), position
        assert differs[position + 1 : position + 2].all(), position


def test_a_prediction_depends_on_its_own_and_earlier_frames_alone():
    decoder, z, speaker = build(), latents(1, 8), torch.tensor([0])
    classes = torch.randint(CLASSES, (1, 8 * HOP))
    before = decoder(z, classes, speaker)
    for frame in range(8):
        changed = z.clone()
        changed[..., frame] += 1
        differs = (decoder(changed, classes, speaker) != before).any(1)[0]
        assert not differs[: frame * HOP].any(), frame
        assert differs[frame * HOP : (frame + 1) * HOP].all(), frame


def test_what_is_drawn_has_the_logits_of_teacher_forcing():
    """Drawing again by the teacher-forced logits of what was drawn gives the same."""
    decoder, z, speaker = build(), latents(2, 20), torch.tensor([1, 0])
    drawn = WaveNetSampler(decoder, speaker, [5, 5])(z)
    assert len(drawn.unique()) == CLASSES
    logits = decoder(z, drawn, speaker)
    numbers = torch.rand(20 * HOP, generator=torch.Generator().manual_seed(5))
    for t, number in enumerate(numbers):
        assert torch.equal(sample(logits[:, None, :, t], number.view(1, 1))[:, 0], drawn[:, t]), t


def test_another_speaker_another_latent_or_another_seed_gives_other_samples():
    decoder, z = build(), 4 * latents(1, 20)
    first = WaveNetSampler(decoder, torch.tensor([0]), [0])(z)
    assert torch.equal(first, WaveNetSampler(decoder, torch.tensor([0]), [0])(z))
    assert not torch.equal(first, WaveNetSampler(decoder, torch.tensor([1]), [0])(z))
    assert not torch.equal(first, WaveNetSampler(decoder, torch.tensor([0]), [0])(-z))
    assert not torch.equal(first, WaveNetSampler(decoder, torch.tensor([0]), [1])(z))


def test_an_item_is_the_same_alone_and_in_a_batch():
    decoder, z, speaker = build(), latents(3, 12), torch.tensor([1, 0, 1])
    together = WaveNetSampler(decoder, speaker, SEEDS[: len(z)])(z)
    for item in range(3):
        assert torch.equal(
            WaveNetSampler(decoder, speaker[item : item + 1], SEEDS[item : item + 1])(z[item : item + 1])[0],
            together[item],
        )


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6], [11, 1]])
def test_pieces_give_what_the_whole_gives(sizes):
    decoder, z, speaker = build(), latents(2, 12), torch.tensor([0, 1])
    sampler = WaveNetSampler(decoder, speaker, SEEDS[:2])
    pieces = [sampler(piece) for piece in z.split(sizes, -1)]
    assert torch.equal(torch.cat(pieces, -1), WaveNetSampler(decoder, speaker, SEEDS[:2])(z))


def test_without_speakers_none_is_needed():
    decoder = build(speakers=[])
    z = latents(2, 4)
    assert decoder.speakers is None
    assert decoder(z, torch.zeros(2, 4 * HOP).long()).shape == (2, CLASSES, 4 * HOP)
    assert WaveNetSampler(decoder, None, SEEDS[:2])(z).shape == (2, 4 * HOP)


def test_latents_jitter_in_training_alone():
    decoder = build(jitter=0.5)
    inputs = latents(1, 10), torch.zeros(1, 10 * HOP).long(), torch.tensor([0])
    assert torch.equal(decoder(*inputs), decoder(*inputs))
    decoder.train()
    assert not torch.equal(decoder(*inputs), decoder(*inputs))
    still = build(jitter=0.0).train()
    assert torch.equal(still(*inputs), still(*inputs))
