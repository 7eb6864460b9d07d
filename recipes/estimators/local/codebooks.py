"""Experiment 8: ways to fit a codebook to frozen latents. Experiments 6 and 7 are trainings, which `plan` lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cell_list import Cell
from cells import Bench
from data import whole
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from training import experiment, load_model

from audiovq.bottlenecks.vq import VectorQuantizer, draw_rows, nearest
from audiovq.config import VQConfig
from audiovq.data.manifest import read_manifest
from audiovq.devices import seed_everything

BATCH = 512
"""Latents of a step."""
RATE = 0.3
"""Share of the way to the mean of its latents that plain gradient descent moves a code of average use."""


def kmeans_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The error of each way after each pass over the latents, and whether one step of gradient is one of Lloyd's."""
    settings = cell.settings
    z = frozen_latents(bench, cell.needs[0], settings["frames"])
    seed_everything("k-means", settings["seed"])
    start = draw_rows(z, settings["codes"])
    variance = float((z - z.mean(0)).square().sum(-1).mean())
    adam = settings["learning_rate"]
    ways: dict[str, Callable[[], list[float]]] = {
        "Lloyd": lambda: lloyd(z, start, settings["passes"]),
        "moving averages": lambda: by_quantizer(z, start, settings, "ema", None),
        "codebook loss, gradient descent": lambda: by_quantizer(z, start, settings, "gradient", torch.optim.SGD),
        "codebook loss, Adam": lambda: by_quantizer(z, start, settings, "gradient", torch.optim.Adam, adam),
    }
    errors = {name: [error / variance for error in way()] for name, way in ways.items()}
    return {"failed": None, "frames": len(z), "errors": errors, "step_difference": step_difference(z, start)}


@torch.no_grad()
def frozen_latents(bench: Bench, run: str, frames: int) -> Float[Tensor, "frames dim"]:
    """What a trained VQ compares with its codebook, of the first training utterances."""
    settings = bench.cells.cells[run].settings
    config = experiment(bench, settings, settings["overrides"])
    model, found, count = load_model(config, bench.run_folder(run)), [], 0
    project = model.bottleneck.get_submodule("project_in")
    for utterance in read_manifest(bench.manifest("train")):
        found.append(project(model.encode(whole(utterance, config.sample_rate)).float().mT)[0])
        count += len(found[-1])
        if count >= frames:
            break
    return torch.cat(found)[:frames]


def quantization_error(z: Float[Tensor, "frames dim"], codebook: Float[Tensor, "codes dim"]) -> float:
    """Mean squared distance to the nearest code."""
    return float((z - codebook[nearest(z, codebook)]).square().sum(-1).mean())


def lloyd(z: Float[Tensor, "frames dim"], start: Float[Tensor, "codes dim"], passes: int) -> list[float]:
    """Error before and after each of Lloyd's iterations on all latents."""
    codebook, errors = start, [quantization_error(z, start)]
    for _ in range(passes):
        codebook = means(z, codebook)
        errors.append(quantization_error(z, codebook))
    return errors


def means(z: Float[Tensor, "frames dim"], codebook: Float[Tensor, "codes dim"]) -> Float[Tensor, "codes dim"]:
    """The mean of the latents of each code; a code without any stays."""
    indices = nearest(z, codebook)
    counts = torch.bincount(indices, minlength=len(codebook))[:, None]
    sums = torch.zeros_like(codebook).index_add_(0, indices, z)
    return torch.where(counts > 0, sums / counts.clamp(min=1), codebook)


def by_quantizer(
    z: Float[Tensor, "frames dim"],
    start: Float[Tensor, "codes dim"],
    settings: dict[str, Any],
    update: Any,
    optimizer: Any,
    learning_rate: float | None = None,
) -> list[float]:
    """Error before and after each pass of `VectorQuantizer` over the latents, in batches, as training updates it."""
    size, dim = start.shape
    config = VQConfig(codebook_size=size, code_dim=None, normalize=False, update=update, revive_below=0.0)
    quantizer = VectorQuantizer(dim, config).train()
    with torch.no_grad():
        quantizer.codebook.copy_(start)
        quantizer.sums.copy_(start / size)
        quantizer.initialized.fill_(True)
    # Of codebook loss L a code of n_k of N latents has the gradient 2 n_k / N * (e_k - mean): that of the online
    # k-means with rate 2 * n_k / N * learning rate.
    rate = RATE * size / 2 if learning_rate is None else learning_rate
    descent = optimizer([quantizer.codebook], lr=rate) if optimizer else None
    errors = [quantization_error(z, start)]
    seed_everything("passes", settings["seed"])
    for _ in range(settings["passes"]):
        for batch in z[torch.randperm(len(z))].split(BATCH):
            output = quantizer(batch.T[None])
            if descent is not None:
                descent.zero_grad()
                output.loss.backward()
                descent.step()
        errors.append(quantization_error(z, quantizer.codebook.detach()))
    return errors


def step_difference(z: Float[Tensor, "frames dim"], codebook: Float[Tensor, "codes dim"]) -> float:
    """How far e_k - N / (2 n_k) * dL/de_k, of the codebook loss L, is from the mean that Lloyd's step takes; relative
    to the step."""
    e = codebook.clone().requires_grad_()
    indices = nearest(z, codebook)
    (gradient,) = torch.autograd.grad((z - F.embedding(indices, e)).square().sum(-1).mean(), e)
    counts = torch.bincount(indices, minlength=len(codebook)).clamp(min=1)[:, None]
    stepped, expected = codebook - len(z) / (2 * counts) * gradient, means(z, codebook)
    return float((stepped - expected).norm() / (expected - codebook).norm())
