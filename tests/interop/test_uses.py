"""What people do with a codec in transformers: code a data set, train a language model, and hear what it says."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, LlamaConfig, LlamaForCausalLM

from audiovq.errors import TokenError
from audiovq.interop.transformers import AudioVQModel
from audiovq.models.tokenizer import AudioTokenizer


@pytest.fixture(scope="module")
def codec(shipped, export) -> AudioVQModel:
    return AutoModel.from_pretrained(export(shipped))


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_data_set_is_coded_in_batches(codec, shipped, export, waves, tmp_path, monkeypatch, processes):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(export(shipped))

    def code(rows: dict) -> dict:
        batch = extractor(rows["wave"], sampling_rate=16000, return_tensors="pt")
        codes, mask = codec.encode(**batch).audio_codes, codec.get_audio_codes_mask(batch["padding_mask"])
        return {"codes": [found[:, own].tolist() for found, own in zip(codes, mask, strict=True)]}

    short = [wave[:9000] for wave in waves]
    speech = datasets.Dataset.from_dict({"wave": [wave[: 9000 - 700 * n].numpy() for n, wave in enumerate(short)]})
    coded = speech.map(code, batched=True, batch_size=2, remove_columns="wave", num_proc=processes)
    for wave, row in zip(speech, coded, strict=True):
        alone = shipped.encode(np.array(wave["wave"], np.float32), 16000)[0]
        assert row["codes"] == alone.tolist()


def test_a_language_model_learns_the_codes_and_what_it_samples_is_decoded(codec, shipped: AudioTokenizer, waves):
    """Two codebooks, flattened, with offsets, a first and a last token; packed into windows of one length."""
    books, size = 2, shipped.codebook_size
    first, last = books * size, books * size + 1
    offsets = size * torch.arange(books)[:, None]
    codes = [shipped.encode(wave, 16000, books)[0] for wave in waves]
    lines = [torch.tensor([first, *(found + offsets).T.flatten(), last]) for found in codes]
    windows = torch.cat(lines).unfold(0, 48, 24)

    settings = LlamaConfig(
        vocab_size=books * size + 2,
        **{"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"bos_token_id": first, "eos_token_id": last, "pad_token_id": last, "tie_word_embeddings": True},
    )
    model = LlamaForCausalLM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), 0.03)
    losses = []
    for _ in range(40):
        loss = model(input_ids=windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(settings.vocab_size), rel=0.05)
    assert losses[-1] < 0.8 * losses[0]

    def of_its_codebook(_: int, tokens: torch.Tensor) -> list[int]:
        book = (len(tokens) - 1) % books
        return list(range(book * size, (book + 1) * size))

    line = model.eval().generate(
        torch.tensor([[first]]), max_new_tokens=20 * books, do_sample=True, prefix_allowed_tokens_fn=of_its_codebook
    )
    sampled = line[0, 1:].view(-1, books).T - offsets
    values = codec.decode(sampled[None]).audio_values
    assert values.shape == (1, 1, 20 * shipped.hop_length)
    assert values.isfinite().all()
    assert values.std() > 1e-4
    with pytest.raises(TokenError, match="expected codes from 0 to 1023"):  # Without the offsets taken away.
        codec.decode(line[0, 1:].view(-1, books).T[None])
