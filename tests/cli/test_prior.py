"""`audiovq train-prior` and `audiovq sample`: from a token data set to new speech, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from audiovq.audio.files import load_audio, save_audio
from audiovq.devices import derive_seed
from audiovq.models.pretrained import pretrained_models
from audiovq.models.tokenizer import AudioTokenizer
from audiovq.tokens.codes_file import load_codes

SPEECH = Path(__file__).parents[2] / "recipes" / "mini" / "data"
HOP = 20
"""Samples a frame of the tiny tokenizers."""


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer) -> AudioTokenizer:
    return tiny_tokenizer("istft")


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prior(tokenizer, tiny_prior, tmp_path_factory) -> Path:
    """A prior over the model's codes that is told who speaks."""
    folder = tmp_path_factory.mktemp("prior")
    speakers = {"speaker_dim": 3, "speakers": ["allison", "june"], "speaker_dropout": 0.1}
    tiny_prior(1, 32, tokenizer.codes_sha256, **speakers).save_pretrained(folder)
    return folder


@pytest.fixture
def tokens(run, model, tmp_path) -> Path:
    """Codes of real speech, with its speakers."""
    for voice in ("allison", "june"):
        for number, path in enumerate(sorted((SPEECH / voice).glob("*.ogg"))[:3]):
            wave, rate = load_audio(path, 16000, offset=0.5, duration=0.2)
            save_audio(tmp_path / f"speech/{voice}/{number}.wav", wave, rate)
    pattern = ("--speaker-pattern", "{speaker}/", "--split-by", "utterance")
    assert run("prepare", "folder", tmp_path / "speech", *pattern, "-o", tmp_path / "data")[0] == 0
    assert run("tokenize", model, tmp_path / "data/train.jsonl.gz", "-o", tmp_path / "codes")[0] == 0
    return tmp_path / "codes"


@pytest.fixture
def config(tmp_path) -> Path:
    settings = {
        **{"layers": 3, "cycle": 3, "residual_channels": 8, "skip_channels": 8, "speaker_dim": 2, "valid_share": 0.3},
        **{"crop_frames": 50, "batch_size": 4},
        "training": {"steps": 4, "warmup_steps": 1, "log_every": 2, "valid_every": 2},
    }
    (tmp_path / "prior.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "prior.yaml"


@pytest.fixture
def prime(tmp_path) -> Path:
    """0.1 s and a few samples of speech: 80 whole frames."""
    wave, rate = load_audio(SPEECH / "allison" / "en-conf-invalid.ogg", 16000, offset=0.5, duration=0.101)
    assert wave.shape[-1] // HOP == 80
    save_audio(tmp_path / "prime.wav", wave, rate)
    return tmp_path / "prime.wav"


def assert_one_line(err: str, *parts: object) -> None:
    assert err.startswith("audiovq: ")
    assert err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def codes_and_waves(folder: Path) -> dict[str, np.ndarray]:
    """Codes of the npz files, and samples of the wavs in steps of 16 bits."""
    read = {".npz": lambda path: np.load(path)["codes"], ".wav": lambda path: soundfile.read(path, dtype="int16")[0]}
    return {path.name: read[path.suffix](path) for path in folder.iterdir()}


# --- train-prior ---------------------------------------------------------------------------------------------


def test_a_trained_prior_says_how_good_it_is_and_can_be_sampled(run, model, tokens, config, tmp_path):
    exp = tmp_path / "exp"
    command = ("train-prior", config, f"tokens={tokens}", "--output", exp, "--device", "cpu")
    code, out, err = run(*command)
    assert code == 0, err
    lines = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    best = min((line for line in lines if line["part"] == "valid"), key=lambda line: line["loss"])
    bits = best["bits_per_code"]
    assert out.splitlines() == [
        f"4 steps done, best after {best['step']}: {exp / 'release'}",
        f"held-out utterances: {bits:.3f} bits a code, {800 * bits:.1f} bit/s",
        f"  uniform codes:                       5.000 bits a code, gain {5 - bits:.3f}",
        f"  unigram of the training set:         {bits + best['gain_over_train_unigram']:.3f} bits a code, "
        f"gain {best['gain_over_train_unigram']:.3f}",
        f"  unigram of the held-out utterances:  {bits + best['gain_over_unigram']:.3f} bits a code, "
        f"gain {best['gain_over_unigram']:.3f}",
    ]
    assert run(*command) == (0, out, "")  # A run that is done is not repeated.

    sample = ("sample", exp / "release", model, "--speaker", "june", "--num", 2, "--seconds", 0.1)
    code, out, err = run(*sample, "--output", tmp_path / "new", "--device", "cpu")
    assert (code, out, err) == (0, f"2 utterances of 0.1 s written: {tmp_path / 'new'}\n", "")
    assert "speakers         allison, june" in run("info", exp / "release")[1]


def test_a_run_goes_on_with_the_same_settings_only_and_force_starts_anew(run, tokens, config, tmp_path):
    command = ("train-prior", config, f"tokens={tokens}", "--output", tmp_path / "exp", "--device", "cpu")
    assert run(*command)[0] == 0
    code, out, err = run(*command, "dropout=0.1")
    assert (code, out) == (2, "")
    assert_one_line(err, tmp_path / "exp", "holds a run with dropout = 0.0, now it is 0.1", "--force")
    assert run(*command, "dropout=0.1", "--force")[0] == 0


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["prior.yaml: tokens: is required"]),
        (["tokens=nowhere"], ["nowhere: is no token data set"]),
        (["tokens=nowhere", "speaker_dims=3"], ["speaker_dims: unknown key; did you mean 'speaker_dim'?"]),
        (["tokens=nowhere", "pattern=diagonal"], ["pattern: ", "'delay' or 'flatten'"]),
        (["tokens=nowhere", "speaker_dim=0", "speaker_dropout=0.1"], ["speaker_dropout needs a speaker_dim"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(run, config, tmp_path, overrides, parts):
    code, out, err = run("train-prior", config, *overrides, "--output", tmp_path / "exp")
    assert (code, out) == (2, "")
    assert_one_line(err, *parts)
    assert not (tmp_path / "exp").exists()


def test_an_empty_token_set_is_refused(run, config, write_tokens, tmp_path):
    empty = write_tokens(tmp_path / "empty", {}, 32)
    code, out, err = run("train-prior", config, f"tokens={empty}", "--output", tmp_path / "exp")
    assert (code, out) == (2, "")
    assert_one_line(err, empty, "holds no utterances")


def test_another_model_s_tokens_are_refused(run, tokens, config, write_tokens, tmp_path):
    other = write_tokens(tmp_path / "other", {("a", "june"): np.zeros((1, 9))}, 32)
    sets = (f"tokens={tokens}", f"valid_tokens={other}")
    code, out, err = run("train-prior", config, *sets, "--output", tmp_path / "exp")
    assert (code, out) == (2, "")
    assert_one_line(err, other, "holds codes of another model", tokens)


# --- sample --------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(run, model, prior):
    """Run `audiovq sample ...` on the CPU with the prior and its model."""
    return lambda *arguments: run("sample", prior, model, "--device", "cpu", *arguments)


@pytest.mark.parametrize("settings", [(), ("--temperature", 0), ("--temperature", 0.8, "--top-k", 9, "--top-p", 0.8)])
def test_one_batch_several_or_fewer_utterances_give_the_same_files(sample, tmp_path, settings):
    options = ("--seconds", 0.101, "--speaker", "june", *settings)
    assert sample("--output", tmp_path / "whole", "--num", 5, *options)[0] == 0
    assert sample("--output", tmp_path / "pieces", "--num", 5, "--batch-size", 2, *options)[0] == 0
    assert sample("--output", tmp_path / "fewer", "--num", 1, *options)[0] == 0
    whole, pieces, fewer = (codes_and_waves(tmp_path / name) for name in ("whole", "pieces", "fewer"))
    assert sorted(whole) == sorted(f"sample-00{n}.{ending}" for n in range(5) for ending in ("npz", "wav"))
    assert sorted(pieces) == sorted(whole)
    assert sorted(fewer) == ["sample-000.npz", "sample-000.wav"]
    for found in (pieces, fewer):
        for name, values in found.items():
            # How waves are rounded may depend on the batch that they are decoded in.
            np.testing.assert_allclose(values.astype(int), whole[name].astype(int), rtol=0, atol=name.endswith("wav"))


def test_the_wavs_are_the_decoded_codes(sample, tokenizer, tmp_path):
    assert sample("--output", tmp_path / "new", "--num", 2, "--seconds", 0.101)[0] == 0
    for path in (tmp_path / "new").glob("*.wav"):
        codes = load_codes(path.with_suffix(".npz"))
        assert (codes.sample_rate, codes.weights_sha256) == (16000, tokenizer.codes_sha256)
        wave, rate = soundfile.read(path)
        assert (rate, len(wave), codes.num_samples, codes.codes.shape) == (16000, 1616, 1616, (1, 81))
        np.testing.assert_allclose(wave, tokenizer.decode(codes.codes, 1616)[0, 0].clamp(-1, 1), atol=1e-4)


def test_another_seed_or_speaker_gives_other_speech(sample, tmp_path):
    for name, options in {
        "first": ("--speaker", "june"),
        "seed": ("--speaker", "june", "--seed", 1),
        "speaker": ("--speaker", "allison"),
        "nobody": (),
    }.items():
        assert sample("--output", tmp_path / name, "--num", 2, "--seconds", 0.2, *options)[0] == 0
    found = [
        content for name in ("first", "seed", "speaker", "nobody") for content in files_in(tmp_path / name).values()
    ]
    assert len(set(found)) == 4 * 4


def test_a_prime_is_continued(sample, tokenizer, prime, tmp_path):
    code, _, err = sample("--output", tmp_path / "new", "--num", 2, "--seconds", 0.2, "--prime", prime)
    assert code == 0, err
    wave, _ = load_audio(prime)
    expected = tokenizer.encode(wave, 16000)[0, :, :80].numpy()
    found = [load_codes(path).codes for path in sorted((tmp_path / "new").glob("*.npz"))]
    assert [codes.shape for codes in found] == [(1, 160)] * 2
    assert all(np.array_equal(codes[:, :80], expected) for codes in found)
    assert not np.array_equal(found[0], found[1])


def test_a_decoder_with_voices_is_told_the_speaker_too(run, tiny_tokenizer, tiny_prior, tmp_path):
    tokenizer = tiny_tokenizer("wavenet")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_prior(1, 32, tokenizer.codes_sha256).save_pretrained(tmp_path / "prior")  # It knows no speakers itself.
    command = ("sample", tmp_path / "prior", tmp_path / "model", "--num", 1, "--seconds", 0.02, "--device", "cpu")
    assert run(*command, "--speaker", "june", "--output", tmp_path / "june")[0] == 0
    codes = load_codes(tmp_path / "june/sample-000.npz").codes
    wave, _ = soundfile.read(tmp_path / "june/sample-000.wav")
    seeds = [derive_seed(0, "decoder", 0)]  # Of the first utterance, whatever else is sampled with it.
    expected = tokenizer.decode(codes, 320, speaker="june", seed=seeds)[0, 0]
    np.testing.assert_allclose(wave, expected.clamp(-1, 1), atol=1e-4)

    code, _, err = run(*command, "--output", tmp_path / "nobody")
    assert code == 2
    assert_one_line(err, "has to be told who speaks; known are allison, june")
    assert not (tmp_path / "nobody").exists()


def test_files_are_overwritten_only_by_force(sample, tmp_path):
    options = ("--output", tmp_path, "--num", 2, "--seconds", 0.05)
    (tmp_path / "sample-001.npz").write_text("mine")
    code, out, err = sample(*options)
    assert (code, out) == (2, "")
    assert_one_line(err, tmp_path / "sample-001.npz", "--force")
    assert files_in(tmp_path) == {"sample-001.npz": b"mine"}
    assert sample(*options, "--force")[0] == 0
    assert len(files_in(tmp_path)) == 4


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--speaker", "jun"], ["unknown speaker 'jun'; did you mean 'june'?"]),
        (["--temperature", -0.5], ["temperature: ", "found -0.5"]),
        (["--temperature", "nan"], ["temperature: ", "found nan"]),
        (["--top-k", 0], ["top-k: expected 1 to 32 codes, found 0"]),
        (["--top-k", 33], ["top-k: expected 1 to 32 codes, found 33"]),
        (["--top-p", 0], ["top-p: expected a probability above 0, up to 1, found 0"]),
        (["--top-p", 1.5], ["top-p: ", "found 1.5"]),
        (["--seconds", 0], ["expected at least one utterance and some time, found 4 of 0 seconds"]),
        (["--seconds", "inf"], ["found 4 of inf seconds"]),
        (["--device", "nowhere"], ["device 'nowhere' cannot be used"]),
        (["--prime", "nowhere.wav"], ["nowhere.wav"]),
    ],
    ids=lambda value: "_".join(map(str, value)).strip("-") if isinstance(value[0], str) and value[0][0] == "-" else "",
)
def test_options_out_of_range_are_one_line_and_exit_code_2(sample, tmp_path, options, parts):
    code, out, err = sample("--output", tmp_path / "new", *options)
    assert (code, out) == (2, "")
    assert_one_line(err, *parts)
    assert not (tmp_path / "new").exists()


def test_a_prime_as_long_as_what_is_asked_for_is_refused(sample, prime, tmp_path):
    for seconds in (0.05, 0.1):
        code, out, err = sample("--output", tmp_path / "new", "--seconds", seconds, "--prime", prime)
        assert (code, out) == (2, "")
        assert_one_line(err, prime, "the prime has 0.10 s", f"of {seconds:.2f} s; ask for more --seconds")
    assert sample("--output", tmp_path / "new", "--seconds", 0.102, "--prime", prime)[0] == 0


def test_a_prime_shorter_than_a_frame_is_refused(sample, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(HOP - 1), 16000)
    code, _, err = sample("--output", tmp_path / "new", "--prime", tmp_path / "short.wav")
    assert code == 2
    assert_one_line(err, tmp_path / "short.wav", "is shorter than a frame, 0.00125 s")


def test_a_prior_that_comes_with_its_model_needs_one_name(run, placed_tokenizer, tiny_prior, tmp_path, monkeypatch):
    """And the list of models says that it is there."""
    shipped = placed_tokenizer("istft", "residual")
    shipped.save_pretrained(tmp_path / "tiny")
    sizes = list(shipped.codebook_sizes[:2])
    own = tiny_prior(2, max(sizes), shipped.codes_sha256, sizes)
    monkeypatch.setattr("audiovq.models.release.PRETRAINED", tmp_path)
    options = ("--num", 1, "--seconds", 0.1, "--device", "cpu")
    command = ("sample", "tiny", "--output", tmp_path / "new", *options)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert_one_line(err, "tiny: comes without a prior", "audiovq train-prior")

    own.save_pretrained(tmp_path / "tiny/prior", half=True)
    code, _, err = run(*command)
    assert (code, err) == (0, "")
    assert load_codes(tmp_path / "new/sample-000.npz").codes.shape[0] == 2
    code, out, err = run("sample", tmp_path / "tiny/prior", "--output", tmp_path / "other", *options)
    assert (code, out) == (2, "")
    assert "MODEL" in err
    assert "is required for a prior that does not come with audiovq" in err

    (found,) = pretrained_models(tmp_path)
    assert found.prior == own.config
    assert found.num_bytes == sum(path.stat().st_size for path in (tmp_path / "tiny").rglob("*.*"))


def test_a_prior_speaks_through_a_model_that_differs_in_its_decoder_alone(run, prior, model, tmp_path):
    tuned = AudioTokenizer.from_pretrained(model, "cpu")
    for weight in tuned.model.decoder.parameters():
        weight.mul_(1.01)
    tuned.save_pretrained(tmp_path / "tuned")
    options = ("--num", 1, "--seconds", 0.5, "--seed", 3, "--device", "cpu")
    for name, own in (("by model", model), ("by tuned", tmp_path / "tuned")):
        code, _, err = run("sample", prior, own, "--output", tmp_path / name, *options)
        assert (code, err) == (0, "")
    codes, waves = (
        [(tmp_path / name / f"sample-000.{kind}").read_bytes() for name in ("by model", "by tuned")]
        for kind in ("npz", "wav")
    )
    assert codes[0] == codes[1]
    assert waves[0] != waves[1]


def test_a_prior_and_a_model_that_do_not_belong_together_are_refused(run, tiny_tokenizer, prior, model, tmp_path):
    other = tiny_tokenizer("transposed")
    other.save_pretrained(tmp_path / "other")
    code, _, err = run("sample", prior, tmp_path / "other", "--output", tmp_path / "new")
    assert code == 2
    assert_one_line(err, "the prior models the codes of another model", other.codes_sha256[:12])

    code, _, err = run("sample", model, prior, "--output", tmp_path / "new")
    assert code == 2
    assert_one_line(err, f"{model}: is a tokenizer, expected a prior")
    code, _, err = run("sample", prior, prior, "--output", tmp_path / "new")
    assert code == 2
    assert_one_line(err, f"{prior}: is a prior, expected a tokenizer")
    code, _, err = run("encode", prior, SPEECH / "allison", "--output", tmp_path / "new")
    assert code == 2
    assert_one_line(err, f"{prior}: is a prior, expected a tokenizer")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--seconds", "1e18", "--num", 1], "GiB of memory"),
        (["--seconds", "1e9", "--num", 1], "GiB of memory"),
        (["--seconds", "1e308"], "some time"),
        (["--seconds", "nan"], "some time"),
        (["--seconds", "-1"], "some time"),
        (["--num", 10**9, "--seconds", 0.1], "at most 1000000 utterances"),
        (["--device", "meta"], "device 'meta' cannot be used"),
    ],
)
def test_what_fits_no_memory_is_refused_before_any_is_taken(sample, tmp_path, options, part):
    code, out, err = sample("--output", tmp_path / "new", *options)
    assert (code, out) == (2, "")
    assert_one_line(err, part)
    assert not (tmp_path / "new").exists()
