"""What holds for every bottleneck, so that a recipe can change it by its config alone."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch

from audiovq.bottlenecks.reinforce import ReinforceBottleneck
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import (
    ExperimentConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    NoBottleneckConfig,
    ReinforceConfig,
    ResidualConfig,
    VQConfig,
    load_config,
)
from audiovq.data.manifest import Utterance, write_manifest
from audiovq.devices import seed_everything
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.release import read_weights
from audiovq.training.autoencoder import train_autoencoder

K = 16
SETTINGS = {
    "vq": VQConfig(codebook_size=K, code_dim=4),
    "vq-ema": VQConfig(codebook_size=K, code_dim=None, update="ema"),
    "residual": ResidualConfig(codebook_size=K, code_dim=4, num_codebooks=3),
    "residual-ema": ResidualConfig(codebook_size=K, code_dim=None, num_codebooks=2, update="ema", dropout=0),
    "fsq": FSQConfig(levels=[4, 4]),
    "fsq-groups": FSQConfig(levels=[16], num_codebooks=3, dropout=0),
    "fsq-residual": FSQConfig(levels=[2, 8], num_codebooks=3, structure="residual"),
    "gaussian": GaussianConfig(code_dim=4, kl_warmup_steps=10),
    "gaussian-plain": GaussianConfig(code_dim=None, free_nats=0.1),
    "gumbel": GumbelConfig(codebook_size=K, anneal_steps=10),
    "gumbel-soft": GumbelConfig(codebook_size=K, hard=False, kl_warmup_steps=10),
    "reinforce": ReinforceConfig(codebook_size=K),
    "reinforce-moving-average": ReinforceConfig(codebook_size=K, baseline="moving_average", samples=1),
    "reinforce-none": ReinforceConfig(codebook_size=K, baseline="none", samples=2),
    "none": NoBottleneckConfig(),
}
BATCH, DIM, FRAMES = 3, 8, 7


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


@pytest.fixture
def build(tiny_config, settings):
    """Builds the bottleneck, after one step of training."""

    def make(seed: int = 0):
        seed_everything("build", seed)
        bottleneck = settings.build(tiny_config().model_copy(update={"bottleneck": settings}))
        train_step(bottleneck, torch.randn(4, DIM, 25), step=seed)
        return bottleneck

    return make


@pytest.fixture
def z():
    return torch.randn(BATCH, DIM, FRAMES)


def train_step(bottleneck, z, step=0, decoder=None):
    """The loss as training composes it, for a decoder that is linear and a reference of zeros."""
    bottleneck.train().set_step(step)
    output = bottleneck(z)
    decoded = output.latents if decoder is None else decoder(output.latents.mT)
    reconstruction = decoded.square().mean((1, 2))
    return reconstruction.mean() + output.loss + bottleneck.surrogate_loss(output, reconstruction), output


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_output_has_the_shapes_of_the_input(build, settings, training, frames):
    bottleneck = build().train(training)
    output = bottleneck(torch.randn(BATCH, DIM, frames))
    assert output.samples == (getattr(settings, "samples", 1) if training else 1)
    items = output.samples * BATCH
    assert output.latents.shape == (items, DIM, frames)
    assert output.latents.dtype == torch.float32
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    for name, value in output.metrics.items():
        assert value.shape == (), name
        assert value.isfinite(), name
        assert not value.requires_grad, name
    if output.log_prob is not None:
        assert output.log_prob.shape == (items, frames)
        assert (output.log_prob <= 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_codes_are_integers_below_the_codebook_size(build, settings, training, z):
    bottleneck = build().train(training)
    output = bottleneck(z)
    if settings.type in {"gaussian", "none"}:
        assert output.codes is None
        assert (bottleneck.num_codebooks, bottleneck.codebook_size) == (0, 0)
    else:
        books = getattr(settings, "num_codebooks", 1)
        assert output.codes.shape == (output.samples * BATCH, books, FRAMES)
        assert output.codes.dtype == torch.int64
        assert output.codes.min() >= 0
        assert output.codes.max() < K
        assert bottleneck.codebook_sizes == books * (K,)


def test_encode_and_decode_agree_with_evaluation(build, settings, z):
    bottleneck = build().eval()
    output = bottleneck(z)
    if settings.type in {"gaussian", "none"}:
        for call, argument in ((bottleneck.encode, z), (bottleneck.decode, torch.zeros(BATCH, 1, FRAMES).long())):
            with pytest.raises(NotImplementedError, match="continuous: has no codes"):
                call(argument)
    else:
        assert len(output.codes.unique()) > 1
        codes, margin = bottleneck.encode(z)
        assert torch.equal(codes, output.codes)
        assert margin.shape == (BATCH, FRAMES)
        assert (margin > 0).all()
        torch.testing.assert_close(bottleneck.decode(output.codes), output.latents)


def test_evaluation_is_deterministic_and_changes_no_state(build, z):
    bottleneck = build().eval()
    before = {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}
    first, second = bottleneck(z), bottleneck(z)
    assert torch.equal(first.latents, second.latents)
    assert first.loss == second.loss
    after = bottleneck.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frames_do_not_depend_on_each_other(build, z):
    bottleneck = build().eval()
    whole = bottleneck(z).latents
    alone = torch.stack([bottleneck(item[None, :, [t]]).latents[0, :, 0] for item in z for t in range(FRAMES)])
    torch.testing.assert_close(whole.mT.reshape(-1, DIM), alone)


def test_gradient_reaches_the_encoder(build, z):
    bottleneck = build()
    z.requires_grad_()
    loss, _ = train_step(bottleneck, z, step=1)
    loss.backward()
    assert z.grad.isfinite().all()
    assert (z.grad.abs().amax(1) > 0).all(), "a frame without gradient"


def test_reconstruction_loss_alone_gives_the_encoder_a_gradient(build, z):
    """Whether through the latents or through the surrogate loss."""
    bottleneck = build().train()
    z.requires_grad_()
    output = bottleneck(z)
    reconstruction = (output.latents - 1).square().mean((1, 2))
    (reconstruction.mean() + bottleneck.surrogate_loss(output, reconstruction)).backward()
    assert (z.grad.abs().amax(1) > 0).all()


def test_every_parameter_has_a_part_in_the_loss(build, z):
    """Distributed training waits for the gradient of each."""
    bottleneck = build()
    train_step(bottleneck, z.requires_grad_(), step=1)[0].backward()
    missing = [name for name, p in bottleneck.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_decoder_gets_the_gradient_of_the_reconstruction_loss_alone(build, z):
    bottleneck, decoder = build(), torch.nn.Linear(DIM, 2)
    loss, output = train_step(bottleneck, z, decoder=decoder)
    found = torch.autograd.grad(loss, list(decoder.parameters()))
    reconstruction = decoder(output.latents.detach().mT).square().mean()
    expected = torch.autograd.grad(reconstruction, list(decoder.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [True, False])
def test_surrogate_loss_is_zero_in_value(build, training, z):
    bottleneck = build().train(training)
    output = bottleneck(z)
    cost = torch.randn(output.samples * BATCH, requires_grad=True)
    surrogate = bottleneck.surrogate_loss(output, cost)
    assert surrogate == 0
    if surrogate.requires_grad:
        surrogate.backward()
        assert cost.grad is None


def test_state_dict_holds_all_state(build, z):
    """Restored into a bottleneck with another past, training goes on the same."""
    original, other = build(0), build(5)
    train_step(original, z, step=3)
    other.load_state_dict(original.state_dict())
    assert torch.equal(original.eval()(z).latents, other.eval()(z).latents)
    z.requires_grad_()
    for step in (4, 5):
        results = []
        for bottleneck in (original, other):
            seed_everything("training", step)
            loss, _ = train_step(bottleneck, z, step)
            results += [loss, torch.autograd.grad(loss, z)[0]]
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[1], results[3])


def test_schedules_depend_on_the_step_alone(build, z):
    told_all, told_last = build(), build()
    for step in range(8):
        told_all.set_step(step)
    told_last.set_step(7)
    seed_everything("schedules")
    first = told_all.train()(z)
    seed_everything("schedules")
    second = told_last.train()(z)
    assert first.loss == second.loss
    assert torch.equal(first.latents, second.latents)


# --- through training ----------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tiny_config, mini_speech, tmp_path):
    """The config of a training run of a few steps, by its bottleneck."""
    soundfile.write(tmp_path / "a.wav", mini_speech[0].numpy(), 16000)
    manifest = tmp_path / "a.jsonl"
    samples = mini_speech.shape[-1]
    write_manifest(manifest, [Utterance("a", tmp_path / "a.wav", samples / 16000, 16000, samples)])

    def make(bottleneck, steps):
        return ExperimentConfig.model_validate(
            {
                **tiny_config().model_dump(),
                "bottleneck": bottleneck.model_dump(),
                "loss": {"fft_sizes": [128]},
                "data": {"train": manifest, "valid": manifest, "crop_seconds": 0.1, "batch_size": 2, "workers": 1},
                "training": {"steps": steps, "log_every": 1, "valid_every": steps, "weight_decay": 0.0},
            }
        )

    return make


def metrics(folder, part):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["part"] == part]


def test_training_tells_the_bottleneck_its_step_also_after_a_resume(experiment, tmp_path):
    settings = GumbelConfig(codebook_size=K, start_temperature=4.0, end_temperature=1.0, anneal_steps=2)
    for steps in (2, 4):
        train_autoencoder(experiment(settings, steps), tmp_path / "run", "cpu")
    found = [line["temperature"] for line in metrics(tmp_path / "run", "train")]
    assert found == pytest.approx([4.0, 2.0, 1.0, 1.0])
    rates = metrics(tmp_path / "run", "valid")[-1]
    assert rates["kl_bits_per_second"] == pytest.approx(rates["kl"] * 1.4426950 * 16000 / 20)


def test_training_with_reinforce_changes_the_encoder_through_the_surrogate_loss_alone(
    experiment, tmp_path, monkeypatch
):
    settings = ReinforceConfig(codebook_size=K, kl_weight=0.0, samples=3)
    config = experiment(settings, 2)
    config = config.model_copy(update={"training": config.training.model_copy(update={"weight_decay": 0.0})})
    seed_everything(config.training.seed, "model")
    initial = {name: weight.clone() for name, weight in Autoencoder(config.model_part()).named_parameters()}

    def changed(folder) -> set[str]:
        train_autoencoder(config, folder, "cpu")
        trained = read_weights(folder / "release" / "model.safetensors")
        return {name.partition(".")[0] for name in initial if not torch.equal(initial[name], trained[name])}

    assert {"encoder", "decoder"} <= changed(tmp_path / "run")
    monkeypatch.setattr(ReinforceBottleneck, "surrogate_loss", lambda self, output, cost: cost.new_zeros(()))
    assert changed(tmp_path / "without") & {"encoder", "decoder"} == {"decoder"}


@pytest.mark.parametrize("kind", ["fsq", "gaussian", "gumbel", "reinforce", "none"])
def test_type_is_overridden_with_its_own_defaults_and_what_the_sections_share(kind, tmp_path, tiny_config):
    import yaml

    model = {
        **tiny_config().model_dump(),
        "bottleneck": {"type": "vq", "codebook_size": 77, "code_dim": 3, "beta": 1.0},
    }
    data = {**model, "data": {"train": "a", "valid": "b"}, "training": {"steps": 1}}
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(data))
    found = load_config(tmp_path / "conf.yaml", [f"bottleneck.type={kind}"]).bottleneck
    shared = {
        "fsq": {},
        "gaussian": {"code_dim": 3},
        "gumbel": {"codebook_size": 77},
        "reinforce": {"codebook_size": 77},
        "none": {},
    }
    assert found == next(type(s) for s in SETTINGS.values() if s.type == kind)(**shared[kind])


def test_a_training_step_never_asks_the_device_for_a_number(settings, tiny_config):
    """The device `meta` has none to give: whatever would wait for an accelerator is an error there."""
    config = tiny_config().model_copy(update={"bottleneck": settings})
    with torch.device("meta"):
        bottleneck = settings.build(config)
        for layer in bottleneck.modules():
            if isinstance(layer, VectorQuantizer):
                layer._placed = True  # To place a codebook is to wait, once.
        loss, _ = train_step(bottleneck, torch.randn(BATCH, DIM, FRAMES, requires_grad=True))
        loss.backward()
