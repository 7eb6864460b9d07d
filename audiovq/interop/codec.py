"""The model class of transformers for audiovq's tokenizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils.generic import ModelOutput, can_return_tuple

from audiovq.errors import AudioError, CheckpointError, TokenError
from audiovq.files import write_text
from audiovq.interop.codec_config import AudioVQConfig
from audiovq.interop.features import AudioVQFeatureExtractor
from audiovq.interop.remote_code import CODE, FILE, InPackage
from audiovq.models import release
from audiovq.models.autoencoder import Autoencoder
from audiovq.models.streaming import item_seeds
from audiovq.models.tokenizer import AudioTokenizer


@dataclass
class AudioVQEncoderOutput(ModelOutput):
    """`audio_codes`: int64 [B, Q, F]."""

    audio_codes: Tensor | None = None


@dataclass
class AudioVQDecoderOutput(ModelOutput):
    """`audio_values`: float32 [B, 1, T]."""

    audio_values: Tensor | None = None


@dataclass
class AudioVQOutput(ModelOutput):
    """`audio_codes`: int64 [B, Q, F]; `audio_values`: float32 [B, 1, T]."""

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None


class AudioVQModel(InPackage, PreTrainedAudioTokenizerBase):
    """An `AudioTokenizer` with the calls of transformers' codecs; its codes are the same, to the bit.

    Its weights move between devices, but stay in float32, and the network stays as it is when a model around it is
    trained or turned into half precision: other weights would give other codes.
    """

    config_class = AudioVQConfig
    base_model_prefix = "audiovq"
    main_input_name = "input_values"
    input_modalities = "audio"

    config: AudioVQConfig

    def __init__(self, config: AudioVQConfig):
        super().__init__(config)
        with _float32_by_default():
            self.audiovq = Autoencoder(config.settings)
        if not self.audiovq.bottleneck.num_codebooks:
            raise CheckpointError(f"a model with bottleneck {config.settings.bottleneck.type!r} has no codes")
        self.post_init()
        self.register_load_state_dict_post_hook(_forget)
        self.train(False)

    @classmethod
    def of(cls, tokenizer: AudioTokenizer) -> AudioVQModel:
        """The same model, with weights of its own."""
        model = cls(AudioVQConfig(model=tokenizer.config.model_dump(mode="json")))
        release.load_weights(model.audiovq, tokenizer.model.state_dict(), "the tokenizer")
        model.to(tokenizer.device)  # pyright: ignore[reportArgumentType]
        return model

    @property
    def audio_tokenizer(self) -> AudioTokenizer:
        """What computes, on the device of the weights."""
        made = self.__dict__.get("_audio_tokenizer")
        if made is None:  # It is forgotten when weights move or others are loaded.
            device = next(self.parameters()).device
            made = self.__dict__["_audio_tokenizer"] = AudioTokenizer(self.audiovq, self.config.settings, device)
        return made

    # --- codes ---------------------------------------------------------------------------------------------------

    @can_return_tuple
    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_values: Float[Tensor, "batch 1 time"],
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> AudioVQEncoderOutput:
        """Codes [B, Q, F] of waveforms [B, 1, T] or [B, T] in [-1, 1] at `config.sampling_rate`.

        The codes of the frames that `get_audio_codes_mask` marks are those of each waveform alone; behind them are
        codes of silence.

        Args:
            padding_mask: [B, T], not 0 for samples and 0 for what was padded on the right; None: all are samples.
            num_quantizers: how many codebooks are used, the first ones; None: all.

        Raises:
            AudioError: the waveforms or the mask do not fit the model, or the padding is not on the right.
            TokenError: the model has not so many codebooks.
        """
        return AudioVQEncoderOutput(audio_codes=self._encode(input_values, padding_mask, num_quantizers))

    @can_return_tuple
    def decode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        audio_codes: Int[Tensor, "batch books frames"],
        padding_mask: Tensor | None = None,
        *,
        speaker: str | None = None,
        seed: int | Sequence[int] = 0,
    ) -> AudioVQDecoderOutput:
        """Waveforms [B, 1, T] of codes [B, Q, F], which may be those of the first codebooks alone.

        Args:
            padding_mask: that of the waveforms which the codes are of; the result is as long, each item is decoded from
                the frames of its own, and what is behind them is 0. None: F * hop_length samples each.
            speaker: who speaks; for a decoder that is told.
            seed: of what a decoder draws, one or one an item, as for `AudioTokenizer.decode`.

        Raises:
            AudioError: the padding is not on the right.
            TokenError: shape, type or range of the codes, or the length of the mask, do not fit the model.
            SpeakerError: the model does not know the speaker, or has to be told one.
        """
        return AudioVQDecoderOutput(audio_values=self._decode(audio_codes, padding_mask, speaker, seed))

    @can_return_tuple
    def forward(
        self,
        input_values: Float[Tensor, "batch 1 time"],
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        *,
        speaker: str | None = None,
        seed: int | Sequence[int] = 0,
    ) -> AudioVQOutput:
        """Encode waveforms and decode their codes to waveforms of the same length; as `encode` and `decode`."""
        codes = self._encode(input_values, padding_mask, num_quantizers)
        mask = torch.ones(len(input_values), input_values.shape[-1]) if padding_mask is None else padding_mask
        return AudioVQOutput(audio_codes=codes, audio_values=self._decode(codes, mask, speaker, seed))

    def _encode(self, wave: Tensor, padding_mask: Tensor | None, num_codebooks: int | None) -> Tensor:
        wave = torch.as_tensor(wave)
        wave = wave[:, None] if wave.ndim == 2 else wave
        if padding_mask is not None:
            padding_mask = torch.as_tensor(padding_mask)
            lengths = _lengths(padding_mask)
            if list(padding_mask.shape) != [len(wave), wave.shape[-1]]:
                raise AudioError(
                    f"padding_mask: expected shape {[len(wave), wave.shape[-1]]}, as long as the waveforms, found "
                    f"{list(padding_mask.shape)}"
                )
            behind = torch.arange(wave.shape[-1]) >= lengths[:, None, None]
            wave = wave.masked_fill(behind.to(wave.device), 0)
        return self.audio_tokenizer.encode(wave, self.config.sampling_rate, num_codebooks).to(
            self.audio_tokenizer.device
        )

    def _decode(
        self, codes: Tensor, padding_mask: Tensor | None, speaker: str | None, seed: int | Sequence[int]
    ) -> Tensor:
        tokenizer = self.audio_tokenizer
        if padding_mask is None:
            return tokenizer.decode(codes, speaker=speaker, seed=seed).to(tokenizer.device)
        codes, padding_mask = torch.as_tensor(codes), torch.as_tensor(padding_mask)
        lengths, total = _lengths(padding_mask), padding_mask.shape[-1]
        items, frames = len(lengths), tokenizer.num_frames(total)
        if codes.ndim != 3 or (len(codes), codes.shape[-1]) != (items, frames):
            raise TokenError(
                f"expected codes of shape [{items}, Q, {frames}] for a padding_mask of {total} samples, found "
                f"{list(codes.shape)}"
            )
        codes, seeds = codes.cpu(), item_seeds(seed, items)
        values = torch.zeros(items, 1, total)
        for length in lengths.unique().tolist():  # A decoder that looks ahead must not see the padding.
            rows = (lengths == length).nonzero().flatten().tolist()
            own = codes[rows, :, : tokenizer.num_frames(length)]
            values[rows, :, :length] = tokenizer.decode(own, length, speaker=speaker, seed=[seeds[row] for row in rows])
        return values.to(tokenizer.device)

    def get_encoded_length(self, input_length: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Frames that waveforms of so many samples are encoded to."""
        return -(-input_length // self.audiovq.hop_length)

    def get_audio_codes_mask(self, padding_mask: Tensor) -> Tensor:
        """Which frames [B, F] are of samples, for the `padding_mask` [B, T] of these."""
        padding_mask = torch.as_tensor(padding_mask)
        frames = self.get_encoded_length(_lengths(padding_mask).to(padding_mask.device))
        total = self.audio_tokenizer.num_frames(padding_mask.shape[-1])
        return torch.arange(total, device=padding_mask.device) < frames[:, None]

    # --- weights ------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As of any model of transformers, but weights that are missing, unknown or not finite are refused.

        Raises:
            CheckpointError: the weights are not those of the config.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
        wrong += [f"{name} is unknown" for name in sorted(info["unexpected_keys"])]
        wrong += [f"{name} is not finite" for name, value in model.state_dict().items() if not value.isfinite().all()]
        if wrong:
            raise CheckpointError(f"{args[0]}: weights do not fit the config: {', '.join(wrong[:3])}")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model, config and feature extractor; weights that half precision can hold as they are, in that."""
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        kwargs.setdefault("state_dict", _smallest(self.audiovq.state_dict()))
        super().save_pretrained(save_directory, *args, **kwargs)
        settings = self.config.settings
        extractor = AudioVQFeatureExtractor(sampling_rate=settings.sample_rate, hop_length=settings.hop_length)
        extractor.save_pretrained(save_directory)
        write_text(Path(save_directory) / FILE, CODE)
        if push_to_hub:
            self.push_to_hub(repo_id, token=kwargs.get("token"))

    def train(self, mode: bool = True) -> AudioVQModel:
        """Stays in evaluation: in training, codebooks would move. `audiovq train` fine-tunes a model."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AudioVQModel:
        """Everything that moves or casts a module comes through here: float32 stays."""
        _forget(self)

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    def _init_weights(self, module: nn.Module) -> None:
        """The network initialises itself; but transformers has emptied what is not stored, such as windows."""
        for name in module._non_persistent_buffers_set:
            buffer = getattr(module, name)
            if buffer is not None:
                path = next(path for path, found in self.audiovq.named_modules() if found is module)
                setattr(module, name, self._constants[f"{path}.{name}"].to(buffer.device))

    @cached_property
    def _constants(self) -> dict[str, Tensor]:
        with torch.device("cpu"), _float32_by_default():
            network = Autoencoder(self.config.settings)
        stored = network.state_dict()
        return {name: buffer for name, buffer in network.named_buffers() if name not in stored}


def _forget(model: nn.Module, *_: Any) -> None:
    """Forget what was made of a model's weights."""
    model.__dict__.pop("_audio_tokenizer", None)


def _lengths(padding_mask: Tensor) -> Int[Tensor, " batch"]:
    """Samples in each row of a mask, on the CPU."""
    mask = padding_mask.cpu() != 0
    if mask.ndim != 2:
        raise AudioError(f"padding_mask: expected shape [B, T], found {list(mask.shape)}")
    lengths = mask.sum(-1)
    right = (mask == (torch.arange(mask.shape[-1]) < lengths[:, None])).all(-1) & (lengths > 0)
    if not right.all():
        raise AudioError(
            f"padding_mask: expected samples (not 0), then padding (0) in each row, found something else in row "
            f"{int(right.long().argmin())}; pad on the right"
        )
    return lengths


def _smallest(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision if all of them are the same in it."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    same = all(torch.equal(halves[name].to(value.dtype), value) for name, value in weights.items())
    return halves if same else weights


@contextlib.contextmanager
def _float32_by_default() -> Iterator[None]:
    """New tensors are float32, whatever a model around this one is made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
