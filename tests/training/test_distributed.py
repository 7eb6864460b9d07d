"""Training with two processes on the CPU (gloo), as `accelerate launch` starts them. They start once for all tests."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from audiovq.bottlenecks.batch_norm import BatchNorm
from audiovq.bottlenecks.vq import VectorQuantizer
from audiovq.config import ExperimentConfig, PriorExperimentConfig, VQConfig
from audiovq.data.crops import CropSampler
from audiovq.data.manifest import read_manifest
from audiovq.errors import Stopped
from audiovq.losses.reconstruction import ReconstructionLoss
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.prior import CodePrior
from audiovq.training import autoencoder, loop, prior, validation
from audiovq.training.targets import TeacherTargets

pytestmark = pytest.mark.slow

UPDATES = ("gradient", "ema")
LATENTS = (3, 5)
"""Batch sizes of the two processes in the comparison of moving averages."""


def quantizer() -> VectorQuantizer:
    """A codebook that has been placed and stays where the moving averages bring it."""
    torch.manual_seed(0)
    vq = VectorQuantizer(4, VQConfig(codebook_size=8, code_dim=None, normalize=False, update="ema", revive_below=0))
    vq.initialized.fill_(True)
    return vq


def latents(rank: int) -> torch.Tensor:
    return torch.randn(LATENTS[rank], 4, 10, generator=torch.Generator().manual_seed(rank))


def process(
    rank: int, port: int, folder: Path, configs: dict[str, ExperimentConfig], of_prior: PriorExperimentConfig
) -> None:
    """What each of the two processes does."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    original = loop.fit

    def fit(accelerator, task, settings, folder):
        progress = original(accelerator, task, settings, folder)
        first, *_ = task.batch(rank)
        weights = nn.ModuleDict(task.modules).state_dict()
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        save_file({**weights, "first batch": first}, folder.path / f"rank-{rank}.safetensors")
        return progress

    autoencoder.fit = prior.fit = fit
    for name, config in configs.items():
        autoencoder.train_autoencoder(config, folder / name, "cpu")
    prior.train_prior(of_prior, folder / "prior", "cpu")

    update = autoencoder.AutoencoderTask.update

    def signalled(task, step, batch):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # As launchers pass on what was sent to all.
        return update(task, step, batch)

    autoencoder.AutoencoderTask.update = signalled
    try:
        autoencoder.train_autoencoder(configs["gradient"], folder / "stopped", "cpu")
    except Stopped as stopped:
        (folder / f"stopped-{rank}").write_text(str(stopped))
    autoencoder.AutoencoderTask.update = update
    autoencoder.train_autoencoder(configs["gradient"], folder / "stopped", "cpu")

    vq = quantizer()
    for _ in range(3):
        vq(latents(rank))
    save_file(vq.state_dict(), folder / f"vq-{rank}.safetensors")
    norm = BatchNorm(4)
    norm(latents(rank)[:3])
    save_file(norm.state_dict(), folder / f"norm-{rank}.safetensors")
    torch.distributed.barrier()
    os._exit(0)  # All is written; a process whose peer leaves first may abort in gloo's threads while it winds up.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def configs(experiment, wavenet, taught, codec) -> dict[str, ExperimentConfig]:
    options = {"steps": 6, "valid_every": 6, "valid_utterances": 1, "averaging_decay": 0.5}
    configs = {update: experiment(bottleneck={"update": update}, training=options) for update in UPDATES}
    residual = {"type": "residual", "num_codebooks": 3, "codebook_size": 8, "decay": 0.8, "revive_below": 0.8}
    fsq = {"type": "fsq", "levels": [5, 4], "num_codebooks": 2}
    data = experiment(**taught).data  # Its features are there before the processes, which have no such teacher.
    train = {path: read_manifest(path) for path in data.train_manifests}
    TeacherTargets(80, CropSampler(read_manifest(*train), 16000, 3200, 4, 0), train, data.teacher, torch.device("cpu"))
    return configs | {
        "teacher": experiment(training=options, **taught),
        "wavenet": experiment(training=options, **wavenet),
        "codec": experiment(training=options, **codec),
        "residual": experiment(bottleneck=residual, training={**options, "valid_utterances": 2}),
        "fsq": experiment(bottleneck=fsq, training=options),
        "adversarial": experiment(
            adversarial={"discriminator": {"resolutions": [128], "channels": [4]}, "balance": True}, training=options
        ),
        "fsq-residual": experiment(bottleneck={**fsq, "structure": "residual"}, training=options),
    }


@pytest.fixture
def of_prior(folder, write_tokens) -> PriorExperimentConfig:
    """A prior of two speakers, validated on three utterances: one process takes two of them, the other one."""
    tokens = {}
    for name, count in {"train": 6, "valid": 3}.items():
        generator = np.random.default_rng(count)
        codes = {(f"{n}", "ab"[n % 2]): generator.integers(8, size=(2, 20 + 3 * n)) for n in range(count)}
        tokens[name] = write_tokens(folder.parent / "tokens" / name, codes, 8)
    return PriorExperimentConfig.model_validate(
        {
            **{"layers": 3, "cycle": 3, "residual_channels": 6, "skip_channels": 6, "speaker_dim": 2},
            **{"tokens": tokens["train"], "valid_tokens": tokens["valid"], "crop_frames": 12, "batch_size": 3},
            "training": {"steps": 4, "warmup_steps": 1, "log_every": 1, "valid_every": 4},
        }
    )


@pytest.fixture
def trained(folder, configs, of_prior) -> Path:
    """The folder of all results; the processes run when it is first asked for."""
    if not any(folder.iterdir()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")  # So that PyTorch is imported once.
        context.set_forkserver_preload([autoencoder.__name__, prior.__name__])
        processes = [context.Process(target=process, args=(rank, port, folder, configs, of_prior)) for rank in range(2)]
        for started in processes:
            started.start()
        deadline = time.monotonic() + 300
        while any(started.is_alive() for started in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
            if any(started.exitcode for started in processes):
                break
        for started in processes:
            started.kill()
            started.join()
        assert [started.exitcode for started in processes] == [0, 0]
    return folder


@pytest.mark.parametrize(
    "name", [*UPDATES, "wavenet", "residual", "fsq", "fsq-residual", "adversarial", "teacher", "codec"]
)
def test_weights_codebooks_and_statistics_are_equal_on_both(trained, name):
    ranks = [load_file(trained / name / f"rank-{rank}.safetensors") for rank in range(2)]
    assert not torch.equal(ranks[0].pop("first batch"), ranks[1].pop("first batch"))
    assert ("teacher.weight" in ranks[0]) == (name == "teacher")
    assert "bottleneck.usage" in ranks[0] or "bottleneck.levels.1.usage" in ranks[0]
    assert [name for name in ranks[0] if not torch.equal(ranks[0][name], ranks[1][name])] == []


@pytest.mark.parametrize(("name", "levels"), [*((name, [""]) for name in [*UPDATES, "wavenet"]), ("residual", "012")])
def test_codebooks_were_placed_and_their_dead_codes_revived(trained, name, levels):
    """Otherwise the test above would say little."""
    weights = load_file(trained / name / "rank-0.safetensors")
    lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
    for level in levels:
        of_level = f"bottleneck.levels.{level}" if level else "bottleneck"
        assert {f"{of_level}.codebook", f"{of_level}.usage", f"{of_level}.sums"} <= weights.keys()
        assert bool(weights[f"{of_level}.initialized"])
        revived = [line.get(f"revived_codes_{level}" if level else "revived_codes") for line in lines]
        assert any(revived), revived


def test_each_process_takes_its_own_batches(trained, configs):
    data = configs["gradient"].data
    sampler = CropSampler(read_manifest(data.train_manifests[0]), 16000, 3200, data.batch_size, seed=0)
    for rank in range(2):
        first = load_file(trained / f"gradient/rank-{rank}.safetensors")["first batch"]
        assert torch.equal(first, sampler.batch(rank).wave)


def test_validation_is_over_all_utterances(trained, configs):
    """One utterance and two processes: the second takes it again, with weight 0."""
    config = configs["gradient"]
    model = Autoencoder(config.model_part())
    model.load_state_dict(load_file(trained / "gradient/release/model.safetensors"))
    loss = ReconstructionLoss(config.loss, config.sample_rate)
    utterances = read_manifest(config.data.valid)[:1]
    alone = validation.validate_autoencoder(model, loss, utterances, config, Accelerator(cpu=True), None, 6)
    last = json.loads((trained / "gradient/metrics.jsonl").read_text().splitlines()[-1])
    assert {name: value for name, value in last.items() if name not in {"step", "part"}} == pytest.approx(alone)


@pytest.mark.parametrize(("name", "examples"), [("gradient", 1), ("residual", 2)])
def test_each_example_of_the_validation_is_logged_once(trained, configs, name, examples):
    board = EventAccumulator(str(trained / name / "tensorboard"), size_guidance={"audio": 0, "images": 0}).Reload()
    ids = [utterance.id for utterance in read_manifest(configs[name].data.valid)[:examples]]
    expected = {f"audio/{utt_id}/{kind}": [6] for utt_id in ids for kind in ("original", "decoded")}
    assert {tag: [event.step for event in board.Audio(tag)] for tag in board.Tags()["audio"]} == expected
    assert len(list((trained / name / "tensorboard").iterdir())) == 1


def test_a_prior_is_equal_on_both_and_validated_on_all_utterances(trained, of_prior):
    ranks = [load_file(trained / f"prior/rank-{rank}.safetensors") for rank in range(2)]
    assert not torch.equal(ranks[0].pop("first batch"), ranks[1].pop("first batch"))
    assert [name for name in ranks[0] if not torch.equal(ranks[0][name], ranks[1][name])] == []

    train, valid = prior.read_parts(of_prior)
    network = CodePrior.from_pretrained(trained / "prior/release", "cpu").network
    speakers = valid.speakers(prior.with_tokens(of_prior, train))
    alone = prior.validate_prior(network, valid, speakers, train.scan()[0], Accelerator(cpu=True))
    last = json.loads((trained / "prior/metrics.jsonl").read_text().splitlines()[-1])
    assert {name: value for name, value in last.items() if name not in {"step", "part"}} == pytest.approx(alone)


def test_a_signal_to_one_process_stops_both_and_the_run_resumes_exactly(trained):
    for rank in range(2):
        assert (trained / f"stopped-{rank}").read_text().startswith("stopped by SIGTERM after step 4;")
    whole, parts = trained / "gradient", trained / "stopped"
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    first, second = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_moments_of_a_batch_are_those_of_one_process_with_both_batches(trained):
    alone = BatchNorm(4)
    alone(torch.cat([latents(0)[:3], latents(1)[:3]]))
    for rank in range(2):
        torch.testing.assert_close(load_file(trained / f"norm-{rank}.safetensors"), dict(alone.state_dict()))


def test_moving_averages_are_those_of_one_process_with_both_batches(trained):
    alone = quantizer()
    for _ in range(3):
        alone(torch.cat([latents(0), latents(1)]))
    ranks = [load_file(trained / f"vq-{rank}.safetensors") for rank in range(2)]
    for name, expected in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], expected)
    assert not torch.allclose(alone.codebook, quantizer().codebook)
