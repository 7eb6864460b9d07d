"""A prior as people use it: saved, loaded, sampled from, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiovq.errors import CheckpointError, ConfigError, SpeakerError, TokenError
from audiovq.models.prior import CodePrior
from audiovq.models.tokenizer import AudioTokenizer

NAMES = ["allison", "june"]
DRAWN = {"greedy": {"temperature": 0.0}, "drawn": {}, "filtered": {"temperature": 0.8, "top_k": 5, "top_p": 0.9}}


def test_a_prior_comes_back_as_it_was_saved(tiny_prior, tmp_path):
    prior = tiny_prior(2, pattern="flatten", speaker_dim=3, speakers=NAMES, speaker_dropout=0.1)
    prior.save_pretrained(tmp_path)
    loaded = CodePrior.from_pretrained(tmp_path, "cpu")
    assert loaded.config == prior.config
    assert torch.equal(loaded.sample(3, 20, speaker="june"), prior.sample(3, 20, speaker="june"))
    assert not loaded.network.training
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"model.safetensors", "config.json", "README.md"}
    loaded.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_config_says_whose_codes_are_modelled(tiny_prior, tmp_path):
    tiny_prior(2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["format_version"], config["kind"]) == (1, "prior")
    assert config["model"]["codes"] == {
        **{"weights_sha256": "ab" * 32, "sample_rate": 16000, "hop_length": 320, "frame_rate": 50.0},
        **{"num_codebooks": 2, "codebook_size": 7, "codebook_sizes": None},
    }


def test_the_model_card_names_the_tokenizer_and_its_example_runs(tiny_prior, tiny_tokenizer, tmp_path):
    tokenizer = tiny_tokenizer("istft")
    prior = tiny_prior(1, 32, tokenizer.weights_sha256, speaker_dim=3, speakers=NAMES)
    prior.save_pretrained(tmp_path / "prior")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    card = (tmp_path / "prior/README.md").read_text()
    assert all(fact in card for fact in prior.describe().values())
    assert tokenizer.weights_sha256 in card
    example = card.partition("```python\n")[2].partition("```")[0]
    for name, folder in (("path/to/the/tokenizer", "tokenizer"), ("path/to/this/folder", "prior")):
        example = example.replace(name, str(tmp_path / folder))
    names: dict[str, torch.Tensor] = {}
    exec(example, names)
    assert names["wave"].shape == (4, 1, 150 * tokenizer.hop_length)


def test_a_prior_is_no_tokenizer_and_a_tokenizer_no_prior(tiny_prior, tiny_tokenizer, tmp_path):
    tiny_prior().save_pretrained(tmp_path / "prior")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match=r"prior: is a prior, expected a tokenizer$"):
        AudioTokenizer.from_pretrained(tmp_path / "prior", "cpu")
    with pytest.raises(CheckpointError, match=r"tokenizer: is a tokenizer, expected a prior$"):
        CodePrior.from_pretrained(tmp_path / "tokenizer", "cpu")


def test_an_unknown_kind_of_model_is_refused(tiny_prior, tmp_path):
    tiny_prior().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"kind": "prior"', '"kind": "vocoder"'))
    with pytest.raises(CheckpointError, match=r"config\.json: expected kind tokenizer or prior, found vocoder"):
        CodePrior.from_pretrained(tmp_path, "cpu")


# --- sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize(("books", "pattern"), [(1, "delay"), (3, "delay"), (3, "flatten")])
def test_one_batch_is_one_by_one(tiny_prior, books, pattern, settings):
    prior = tiny_prior(books, 16, pattern=pattern, speaker_dim=3, speakers=NAMES)
    together = prior.sample(5, 30, speaker="june", seed=3, **settings)
    assert together.shape == (5, books, 30)
    for number in range(5):
        alone = prior.sample(1, 30, speaker="june", seed=3, first=number, **settings)
        assert torch.equal(alone[0], together[number]), number


def test_utterances_differ_by_number_seed_and_speaker(tiny_prior):
    prior = tiny_prior(1, 16, speaker_dim=3, speakers=NAMES)
    torch.nn.init.normal_(prior.network.speakers.weight, std=5.0)
    one, other = prior.sample(2, 40, speaker="june")
    assert not torch.equal(one, other)
    assert not torch.equal(prior.sample(1, 40, speaker="june", seed=1)[0], one)
    assert not torch.equal(prior.sample(1, 40, speaker="allison")[0], one)


def test_a_longer_utterance_begins_as_a_shorter_one(tiny_prior):
    prior = tiny_prior(1, 16)
    assert torch.equal(prior.sample(2, 50)[..., :20], prior.sample(2, 20))


@pytest.mark.parametrize(("books", "pattern"), [(1, "delay"), (3, "delay"), (3, "flatten")])
def test_a_prime_is_kept_and_continued_as_the_prior_would_have_gone_on(tiny_prior, books, pattern):
    """An utterance that is primed with its own beginning goes on as it did, since the numbers drawn are the same."""
    prior = tiny_prior(books, 16, pattern=pattern)
    whole = prior.sample(1, 30, seed=5)[0]
    for length in (1, 7, 29):
        primed = prior.sample(2, 30, prime=whole[:, :length], seed=5)
        assert torch.equal(primed[0], whole)
        assert torch.equal(primed[1, :, :length], whole[:, :length])
    other = prior.sample(1, 30, prime=(whole[:, :7] + 1) % 16, seed=5)[0]
    assert not torch.equal(other[:, 7:], whole[:, 7:])


def test_a_prior_that_can_do_without_a_speaker_is_sampled_as_nobody(tiny_prior):
    prior = tiny_prior(1, 16, speaker_dim=3, speakers=NAMES, speaker_dropout=0.2)
    torch.nn.init.normal_(prior.network.speakers.weight, std=5.0)
    nobody = prior.sample(1, 40)
    assert all(not torch.equal(nobody, prior.sample(1, 40, speaker=name)) for name in NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected a number from 0 .* on, found -0.1"),
        ({"temperature": float("nan")}, "temperature: .* found nan"),
        ({"temperature": float("inf")}, "temperature: .* found inf"),
        ({"top_k": 0}, "top-k: expected 1 to 7 codes, found 0"),
        ({"top_k": 8}, "top-k: expected 1 to 7 codes, found 8"),
        ({"top_p": 0.0}, "top-p: expected a probability above 0, up to 1, found 0"),
        ({"top_p": 1.1}, "top-p: .* found 1.1"),
        ({"num_frames": 0}, "at least one utterance and one frame, found 2 and 0"),
        ({"num": 0}, "at least one utterance and one frame, found 0 and 5"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_prior, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_prior().sample(**{"num": 2, "num_frames": 5, **options})


@pytest.mark.parametrize(
    ("speakers", "speaker", "message"),
    [
        (NAMES, "jun", "unknown speaker 'jun'; did you mean 'june'"),
        (NAMES, None, "has to be told who speaks; known are allison, june"),
        ([], "june", "knows no speakers and cannot speak as 'june'"),
    ],
)
def test_speakers_that_are_not_known_or_not_told_are_refused(tiny_prior, speakers, speaker, message):
    prior = tiny_prior(speaker_dim=3 if speakers else 0, speakers=speakers)
    with pytest.raises(SpeakerError, match=message):
        prior.sample(1, 5, speaker=speaker)


@pytest.mark.parametrize(
    ("prime", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.long), "the prime has 5 frames, which leaves nothing to draw of 5"),
        (torch.zeros(2, 6, dtype=torch.long), "the prime has 6 frames, which leaves nothing to draw of 5"),
        (torch.zeros(1, 3, dtype=torch.long), r"expected a prime of shape \[2, P\], found \[1, 3\]"),
        (torch.zeros(2, 0, dtype=torch.long), r"expected a prime of shape \[2, P\], found \[2, 0\]"),
        (torch.full((2, 3), 7), "expected codes from 0 to 6, found 7 to 7"),
        (torch.full((2, 3), -1), "expected codes from 0 to 6, found -1 to -1"),
        (np.full((2, 3), 0.7), "codes are integers, found torch.float64"),
    ],
)
def test_a_prime_that_does_not_fit_is_refused(tiny_prior, prime, message):
    with pytest.raises(TokenError, match=message):
        tiny_prior(2).sample(1, 5, prime=prime)


def test_a_prior_is_loaded_from_the_hub_like_a_tokenizer(tiny_prior, tmp_path, monkeypatch):
    import huggingface_hub

    tiny_prior().save_pretrained(tmp_path / "prior")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "prior"))
    assert CodePrior.from_pretrained("some/prior", "cpu").config == tiny_prior().config
    messages = []

    class FakeApi:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None: ...

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> huggingface_hub.CommitInfo:
            assert CodePrior.from_pretrained(Path(folder_path), "cpu").config == tiny_prior().config
            messages.append(commit_message)
            return huggingface_hub.CommitInfo("https://huggingface.co/some/prior/commit/1", "", "", "1")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert tiny_prior().push_to_hub("some/prior") == "https://huggingface.co/some/prior/commit/1"
    assert messages == ["Upload an audiovq prior"]
