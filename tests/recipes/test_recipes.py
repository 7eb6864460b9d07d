from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovq.config import PriorExperimentConfig, load_config
from audiovq.data.manifest import read_manifest
from audiovq.models.release import PRETRAINED

RECIPES = Path(__file__).parents[2] / "recipes"
SHARED = RECIPES / "shared"
SPEECH = RECIPES / "mini/data"
PRIORS = sorted(RECIPES.glob("**/conf/prior*.yaml"))
CONFIGS = sorted({*RECIPES.glob("**/conf/*.yaml")} - {*PRIORS})
RUNS = sorted(RECIPES.glob("*/run.sh"))
SCRIPTS = sorted(RECIPES.glob("**/*.sh"))


def name_of(path: Path) -> str:
    return path.relative_to(RECIPES).as_posix()


# --- configurations ------------------------------------------------------------------------------------------


def test_recipes_are_found():
    assert {"demo/run.sh", "mini/run.sh", "speech/run.sh", "vctk/run.sh"} <= set(map(name_of, RUNS))
    assert {path.parents[1].name for path in CONFIGS} >= {"mini", "vctk"}
    assert {path.parents[1].name for path in PRIORS} >= {"mini", "vctk"}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_parses_and_builds(path):
    import torch

    from audiovq.models.autoencoder import Autoencoder

    config = load_config(path)
    model = Autoencoder(config.model_part())
    with torch.no_grad():
        output = model(torch.zeros(1, 1, 3 * config.hop_length))
    assert output.wave.shape == (1, 1, 3 * config.hop_length)


def test_mini_is_the_shipped_model_made_smaller():
    mini, shipped = (load_config(RECIPES / name) for name in ("mini/conf/mini.yaml", "speech/conf/speech.yaml"))
    for part in ("encoder", "bottleneck", "decoder"):
        assert getattr(mini, part).type == getattr(shipped, part).type
    assert mini.encoder.look_ahead == shipped.encoder.look_ahead
    assert (mini.decoder.look_ahead, shipped.decoder.look_ahead) == (1, 2)
    assert mini.loss == shipped.loss


def test_on_a_gpu_the_same_model_is_trained():
    gpu, cpu = (load_config(RECIPES / f"speech/conf/{name}.yaml") for name in ("speech_gpu", "speech"))
    assert (gpu.model_part(), gpu.loss) == (cpu.model_part(), cpu.loss)


def test_mini_and_what_it_is_compared_with_have_one_bitrate():
    from audiovq.models.autoencoder import Autoencoder
    from audiovq.models.tokenizer import AudioTokenizer

    models = [load_config(path).model_part() for path in sorted((RECIPES / "mini/conf").glob("mini*.yaml"))]
    assert [AudioTokenizer(Autoencoder(model), model).bitrate for model in models] == [1000] * 3


@pytest.mark.parametrize("path", PRIORS, ids=name_of)
def test_config_of_a_prior_parses_and_builds(path, tiny_prior):
    import torch

    from audiovq.models.prior import PriorNetwork

    told = load_config(path, [], PriorExperimentConfig).speaker_dim > 0
    config = load_config(path, ["speakers=[a, b]"] if told else [], PriorExperimentConfig)
    network = PriorNetwork(config.model_copy(update={"codes": tiny_prior().codes}).model_part())
    log_p = network.log_prob(torch.zeros(1, 1, 5, dtype=torch.long), torch.tensor([1]) if told else None)
    assert log_p.shape == (1, 1, 5)
    assert config.speaker_dropout > 0 or not told  # Utterances of unknown speakers are no mistake in a recipe.


# --- shipped speech ------------------------------------------------------------------------------------------


def test_shipped_speech_is_small_and_every_voice_has_a_licence():
    files = sorted(SPEECH.rglob("*.ogg"))
    licences = (SPEECH / "LICENSE.md").read_text(encoding="utf-8")
    assert len(files) > 200
    assert sum(path.stat().st_size for path in files) < 6e6
    for folder, language in {(path.parent.name, path.name.partition("-")[0]) for path in files}:
        assert f"| `{folder}/` | `{language}-*.ogg` |" in licences


def test_shipped_speech_decodes_to_16_khz_mono():
    for path in SPEECH.rglob("*.ogg"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (16000, 1), path
        assert 3 <= info.duration <= 12, path


def test_parts_of_shipped_speech_read_like_the_whole():
    rng = np.random.default_rng(0)
    for path in sorted(SPEECH.rglob("*.ogg"))[::20]:
        whole, _ = soundfile.read(path)
        start = int(rng.integers(len(whole) - 16000))
        part, _ = soundfile.read(path, start=start, frames=16000)
        # A decoder that starts within a file needs some frames to arrive at the very same state.
        np.testing.assert_allclose(part, whole[start : start + 16000], atol=0.01)


# --- options and stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_is_valid_bash(bash, path):
    assert bash("-n", path).returncode == 0


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_help_names_every_option(bash, path):
    shown = bash(path, "--help")
    refused = bash(path, "--no-such-option", "1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "usage: run.sh" in shown.stdout
    assert "shellcheck" not in shown.stdout
    options = refused.stderr.partition("known are ")[2].split()
    assert {"--exp", "--stage", "--stop-stage"} <= set(options)
    assert all(f"  {option} " in shown.stdout for option in options)


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_wrong_option_is_one_line_and_exit_code_2(bash, path):
    done = bash(path, "--no-such-option", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run.sh: --no-such-option: unknown option; known are --")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def options(bash, tmp_path):
    """A script with two options; prints their values between brackets."""
    script = tmp_path / "options.sh"
    script.write_text(
        f'#!/usr/bin/env bash\n# What it does.\n#\n#   --num-gpus N\n\n# not help\nsource "{SHARED}/parse_options.sh"\n'
        'num_gpus=1\nname=\nsecret=0\nparse_options num_gpus name -- "$@"\necho "[$num_gpus][$name][$secret]"\n'
    )
    return lambda *arguments: bash(script, *arguments)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "[1][][0]"),
        (["--num-gpus", "4"], "[4][][0]"),
        (["--name", "a  b $HOME *", "--num-gpus", "2"], "[2][a  b $HOME *][0]"),
        (["--name", ""], "[1][][0]"),
        (["--name", "--num-gpus"], "[1][--num-gpus][0]"),
        (["--name", "x", "--name", "y"], "[1][y][0]"),
    ],
)
def test_options_set_variables(options, arguments, printed):
    done = options(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed + "\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--secret", "1"], "--secret: unknown option; known are --num-gpus --name"),
        (["--num_gpus", "1"], "--num_gpus: unknown option; known are --num-gpus --name"),
        (["--num-gpus name", "1"], "--num-gpus name: unknown option; known are --num-gpus --name"),
        (["4"], "4: unknown option; known are --num-gpus --name"),
        ([""], ": unknown option; known are --num-gpus --name"),
        (["--name"], "--name: needs a value"),
    ],
)
def test_wrong_options_are_refused(options, arguments, message):
    done = options(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"options.sh: {message}\n")


def test_help_is_the_comment_at_the_top(options):
    assert options("--name", "x", "-h").stdout == "What it does.\n\n  --num-gpus N\n"


@pytest.fixture
def stages(bash, tmp_path):
    """Run stages 1 to 3, called one, two and three; two fails while a file `broken` exists. Gives exit code, stages."""
    script = tmp_path / "stages.sh"
    script.write_text(
        f'set -euo pipefail\nsource "{SHARED}/parse_options.sh"\nsource "{SHARED}/stages.sh"\n'
        'exp="an exp"\nstage=\nstop_stage=\nsettings=default\nsettings_two=\n'
        'parse_options exp stage stop_stage settings settings_two -- "$@"\n'
        "one() { echo ran one; }\ntwo() { test ! -e broken; echo ran two; }\nthree() { echo ran three; }\n"
        "run_stages 1 one two three\n"
    )

    def run(*arguments: str) -> tuple[int, list[str]]:
        done = bash(script, *arguments, cwd=tmp_path)
        return done.returncode, [line[4:] for line in done.stdout.splitlines() if line.startswith("ran ")]

    return run


def test_stages_run_once(stages):
    assert stages() == (0, ["one", "two", "three"])
    assert stages() == (0, [])


def test_stages_go_on_after_a_failure(stages, tmp_path):
    (tmp_path / "broken").touch()
    assert stages() == (1, ["one"])
    assert stages() == (1, [])
    (tmp_path / "broken").unlink()
    assert stages() == (0, ["two", "three"])


def test_stages_between_two_numbers(stages):
    assert stages("--stop-stage", "2") == (0, ["one", "two"])
    assert stages("--stage", "2", "--stop-stage", "2") == (0, ["two"])
    assert stages() == (0, ["three"])


def test_a_stage_done_again_makes_the_later_ones_due(stages):
    stages()
    assert stages("--stage", "1", "--stop-stage", "1") == (0, ["one"])
    assert stages() == (0, ["two", "three"])


def test_stages_run_again_with_other_settings(stages):
    stages()
    assert stages("--settings", "other") == (0, ["one", "two", "three"])
    assert stages("--settings", "other") == (0, [])


def test_a_stage_with_settings_of_its_own_runs_again_when_they_change(stages):
    stages("--settings-two", "a")
    assert stages("--settings-two", "a") == (0, [])
    assert stages("--settings-two", "b") == (0, ["two", "three"])


@pytest.mark.parametrize("value", ["0", "4", "two", "-1", "1.5", "10"])
@pytest.mark.parametrize("option", ["--stage", "--stop-stage"])
def test_stages_out_of_range_are_refused(stages, tmp_path, option, value):
    assert stages(option, value) == (2, [])
    assert not (tmp_path / "an exp").exists()


# --- download ------------------------------------------------------------------------------------------------


@pytest.fixture
def download(bash, tmp_path):
    """Download a small archive in place of VCTK, half of which has been downloaded before."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    archive = tmp_path / "remote.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("wav48_silence_trimmed/p225/p225_001_mic1.flac", bytes(1000))
    content = archive.read_bytes()
    corpus = tmp_path / "corpora/VCTK"
    corpus.parent.mkdir()
    Path(f"{corpus}.zip.partial").write_bytes(content[: len(content) // 2])
    sha256 = hashlib.sha256(content).hexdigest()

    def run(sha256: str = sha256) -> tuple[subprocess.CompletedProcess[str], Path]:
        return bash(RECIPES / "vctk/local/download.sh", f"{corpus}/", archive.as_uri(), sha256), corpus

    return run


def test_download_goes_on_where_it_stopped_and_unpacks(download):
    done, corpus = download()
    assert done.returncode == 0, done.stderr
    assert (corpus / "wav48_silence_trimmed/p225/p225_001_mic1.flac").stat().st_size == 1000
    assert list(corpus.parent.iterdir()) == [corpus]


def test_download_with_a_wrong_checksum_is_refused(download):
    done, corpus = download("0" * 64)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"download.sh: {corpus}.zip.partial: has another checksum than 0000")
    assert not corpus.exists()


def test_an_archive_that_is_there_already_is_not_taken_for_the_corpus(download):
    _, corpus = download("0" * 64)
    other = Path(f"{corpus}.zip")
    other.write_bytes(b"another release")
    done, _ = download()
    assert (done.returncode, corpus.exists(), other.read_bytes()) == (1, False, b"another release")
    assert done.stderr.startswith(f"download.sh: {other}: has another checksum than")
    assert done.stderr.endswith("; move it away and try again\n")


def test_download_leaves_a_folder_with_other_content_alone(download):
    _, corpus = download("0" * 64)
    corpus.mkdir()
    (corpus / "notes.txt").touch()
    done, _ = download()
    assert (done.returncode, done.stderr) == (
        1,
        f"download.sh: {corpus}: is no VCTK and not empty; name another folder\n",
    )
    assert list(corpus.iterdir()) == [corpus / "notes.txt"]


# --- from end to end -----------------------------------------------------------------------------------------

FEW_STEPS = (
    "training.steps=2 training.warmup_steps=1 training.valid_every=2 training.valid_utterances=1 "
    "data.batch_size=2 data.crop_seconds=0.5 data.workers=1"
)
FEW_PRIOR_STEPS = (
    "training.steps=2 training.warmup_steps=1 training.valid_every=2 training.valid_utterances=1 "
    "training.precision=fp32 layers=2 residual_channels=4 skip_channels=4 crop_frames=20 batch_size=2"
)
VOICES = {"p225": "allison", "p226": "june", "p227": "carlo", "p315": "ivrvoice"}


@pytest.fixture(scope="module")
def vctk(tmp_path_factory):
    """A tiny corpus with the layout of VCTK 0.92, from the shipped speech: p315 without text, p362 without audio."""
    from audiovq.audio.files import load_audio, save_audio

    root = tmp_path_factory.mktemp("corpora") / "VCTK 0.92"
    for speaker, voice in VOICES.items():
        audio, texts = root / "wav48_silence_trimmed" / speaker, root / "txt" / speaker
        audio.mkdir(parents=True)
        texts.mkdir(parents=True)
        for number, path in enumerate(sorted((SPEECH / voice).glob("*.ogg"))[:2], start=1):
            wave, rate = load_audio(path, 48000, offset=0.5, duration=1.5 + number / 10)
            for microphone in (1, 2):
                save_audio(audio / f"{speaker}_{number:03}_mic{microphone}.flac", wave, rate)
            if speaker != "p315":
                (texts / f"{speaker}_{number:03}.txt").write_text(f"Text {number}.\n")
    (root / "txt/p362").mkdir()
    (root / "txt/p362/p362_001.txt").write_text("A text without audio.\n")
    (root / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
        + "".join(f"{speaker}  23  F    English    Southern  England\n" for speaker in VOICES)
    )
    return root


def check_experiment(exp: Path) -> None:
    """Check what a recipe has made up to its evaluation."""
    from audiovq.models.tokenizer import AudioTokenizer

    tokenizer = AudioTokenizer.from_pretrained(exp / "release")
    for split in ("train", "dev", "test"):
        info = json.loads((exp / "codes" / split / "tokenizer.json").read_text())
        assert info["frame_rate"] == tokenizer.frame_rate, split
    test = read_manifest(exp / "data/test.jsonl.gz")
    assert {path.stem: soundfile.info(path).frames for path in (exp / "wavs").rglob("*.wav")} == {
        utterance.id: utterance.source().length_at(tokenizer.sample_rate) for utterance in test
    }
    assert json.loads((exp / "evaluation/metrics.json").read_text())
    assert (exp / "evaluation/index.html").stat().st_size > 10_000


def check_prior(exp: Path, voices: dict[str, int]) -> None:
    """Check the prior of a recipe, and that it has sampled so many utterances as each voice."""
    from audiovq.models.prior import CodePrior
    from audiovq.models.tokenizer import AudioTokenizer

    prior, tokenizer = CodePrior.from_pretrained(exp / "prior/release"), AudioTokenizer.from_pretrained(exp / "release")
    assert prior.codes.weights_sha256 == tokenizer.codes_sha256
    assert set(prior.speakers) >= set(voices)
    wavs = sorted((exp / "samples").rglob("*.wav"))
    assert {voice: sum(path.parent.name == voice for path in wavs) for voice in voices} == voices
    assert len(wavs) == sum(voices.values())
    assert {soundfile.info(path).frames for path in wavs} == {5 * tokenizer.sample_rate}


@pytest.mark.slow
def test_vctk_from_end_to_end(bash, vctk, tmp_path):
    exp = tmp_path / "an exp"
    command = [RECIPES / "vctk/run.sh", "--corpus-dir", vctk, "--exp", exp, "--overrides", FEW_STEPS, "--device", "cpu"]
    command += ["--prior-overrides", FEW_PRIOR_STEPS]
    done = bash(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    check_experiment(exp)
    check_prior(
        exp, dict.fromkeys(sorted({item.speaker for item in read_manifest(exp / "data/train.jsonl.gz")})[:2], 4)
    )

    utterances = [item for split in ("train", "dev", "test") for item in read_manifest(exp / f"data/{split}.jsonl.gz")]
    assert "the decoder of this model is not told who speaks: nothing to convert" in done.stdout
    assert {item.speaker for item in utterances} == set(VOICES)
    assert len(utterances) == 2 * len(VOICES)
    assert all(item.path.name.endswith("_mic1.flac") for item in utterances)
    assert [item.text for item in utterances if item.speaker == "p315"] == [None, None]
    assert json.loads((exp / "data/summary.json").read_text())["left_out"] == {"text without audio": 1}

    again = bash(*command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done already") == 9
    limited = bash(*command, "--limit", "1", "--stop-stage", "5")
    assert [f"({stage}): done already" in limited.stdout for stage in ("tokenize", "decode")] == [True, False]
    assert json.loads((exp / "evaluation/metrics.json").read_text())["data"]["utterances"] == 1
    voiceless = bash(*command, "--limit", "1", "--voices", "p225", "--stop-stage", "6")
    assert "nothing to convert" in voiceless.stdout, voiceless.stderr


WAVENET = (
    "sample_rate=4000 decoder.layers=2 decoder.residual_channels=4 decoder.skip_channels=4 decoder.condition_channels=4"
)


@pytest.mark.slow
def test_vctk_with_a_wavenet_decoder_converts_to_other_voices(bash, vctk, tmp_path):
    exp = tmp_path / "exp"
    options = ["--config", RECIPES / "vctk/conf/vqvae_wavenet.yaml", "--split-by", "utterance", "--exp", exp]
    options += ["--overrides", f"{FEW_STEPS} {WAVENET}", "--device", "cpu", "--voices", "p225 p315"]
    for stages in (["--stop-stage", "3"], ["--stage", "6", "--stop-stage", "6"]):
        done = bash(RECIPES / "vctk/run.sh", "--corpus-dir", vctk, *options, *stages)
        assert done.returncode == 0, done.stdout + done.stderr
    (utterance,) = read_manifest(exp / "data/test.jsonl.gz")
    length = utterance.source().length_at(4000)
    converted = sorted((exp / "converted").rglob("*.wav"))
    assert [path.parent.name for path in converted] == ["p225", "p315"]
    assert [(path.stem, soundfile.info(path).frames) for path in converted] == [(utterance.id, length)] * 2


@pytest.mark.slow
def test_mini_from_end_to_end(bash, vctk, tmp_path):
    # The tiny corpus is, in part, what a user may have: a folder for each speaker.
    speech = vctk / "wav48_silence_trimmed"
    command = [RECIPES / "mini/run.sh", "--data", speech, "--exp", "exp", "--device", "cpu"]
    command += ["--prior-overrides", FEW_PRIOR_STEPS, "--overrides"]
    few = f"{FEW_STEPS} training.learning_rate=3e-3 data.pitch=swift"
    done = bash(*command, few, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_experiment(tmp_path / "exp")
    check_prior(tmp_path / "exp", dict.fromkeys(VOICES, 2))
    assert f"listening page  {tmp_path}/exp/evaluation/index.html" in done.stdout
    assert f"new speech      {tmp_path}/exp/samples" in done.stdout
    # More steps go on with the same folder: codes and prior are those of the new model.
    weights = (tmp_path / "exp/release/model.safetensors").read_bytes()
    longer = bash(*command, f"{few} training.steps=40 training.valid_every=5", cwd=tmp_path)
    assert longer.returncode == 0, longer.stdout + longer.stderr
    assert (tmp_path / "exp/release/model.safetensors").read_bytes() != weights
    check_experiment(tmp_path / "exp")
    check_prior(tmp_path / "exp", dict.fromkeys(VOICES, 2))


@pytest.mark.slow
def test_demo_from_end_to_end(bash, vctk, tmp_path):
    speech, exp = vctk / "wav48_silence_trimmed", tmp_path / "exp"
    options = ["--data", speech, "--exp", exp, "--codebooks", "1 3", "--limit", "1", "--device", "cpu"]
    done = bash(RECIPES / "demo/run.sh", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| speech-16k, 3 of 6 codebooks | 1.5 |" in done.stdout
    assert f"listening page  {exp}/quality/index.html" in done.stdout
    (utterance, *_) = read_manifest(exp / "data/test.jsonl.gz")
    for count in (1, 3):
        assert json.loads((exp / f"codes-{count}/tokenizer.json").read_text())["num_codebooks"] == count
        assert soundfile.info(exp / f"wavs-{count}/{utterance.id}.wav").frames == utterance.source().length_at(16000)
    assert (exp / "quality/index.html").read_text().count("<audio ") >= 3
    # With the same weights nothing is done again, with others everything.
    again = bash(RECIPES / "demo/run.sh", *options)
    assert again.stdout.count("done already") == 4
    copied = tmp_path / "speech-16k"
    shutil.copytree(PRETRAINED / "speech-16k", copied)
    (copied / "model.safetensors").write_bytes(b"damaged")
    other = bash(RECIPES / "demo/run.sh", *options, "--stop-stage", "1", cwd=tmp_path)
    assert "done already" not in other.stdout


@pytest.mark.slow
def test_speech_from_end_to_end(bash, vctk, tmp_path):
    speakers = sorted(path for path in (vctk / "wav48_silence_trimmed").iterdir() if path.is_dir())
    for name, folder in zip(("one", "other"), speakers, strict=False):
        divided = ["--split-by", "utterance", "--dev", "0.2", "--test", "0.2", "--output", tmp_path / name]
        prepared = bash("-c", 'audiovq prepare folder "$@"', "audiovq", folder, *divided)
        assert prepared.returncode == 0, prepared.stderr
    manifests = {part: f"{tmp_path}/one/{part}.jsonl.gz {tmp_path}/other/{part}.jsonl.gz" for part in ("train", "dev")}
    small = "encoder.dim=8 encoder.layers=1 decoder.dim=8 decoder.layers=1 loss.fft_sizes=[256] data.pitch=pyin"
    tuned = "training.steps=1 adversarial.discriminator.channels=[2]"
    command = [RECIPES / "speech/run.sh", "--train", manifests["train"], "--valid", manifests["dev"]]
    command += ["--test", f"{tmp_path}/one/test.jsonl.gz", "--shares", "0.75 0.25", "--exp", tmp_path / "exp"]
    command += ["--finetune-overrides", tuned, "--limit", "1", "--device", "cpu"]
    command += ["--prior-overrides", FEW_PRIOR_STEPS, "--prior-codebooks", "3", "--overrides"]
    from safetensors.torch import load_file

    trained = []
    for steps in ("", "training.steps=40 training.valid_every=5"):  # More steps go on with the same folder.
        done = bash(*command, f"{FEW_STEPS} training.learning_rate=3e-3 {small} {steps}")
        assert done.returncode == 0, done.stdout + done.stderr
        first, tuned_model = (
            load_file(tmp_path / "exp" / part / "model.safetensors") for part in ("release", "finetuned/release")
        )
        moved = {name.split(".")[0] for name in first if not first[name].equal(tuned_model[name])}
        assert moved == {"decoder"}
        trained.append(first)
    assert any(not trained[0][name].equal(trained[1][name]) for name in trained[0] if name.startswith("encoder"))
    assert len([*(tmp_path / "exp").glob("**/evaluation/*/index.html")]) == 2

    packed = tmp_path / "exp/packed"
    for folder in (packed, packed / "prior"):
        assert {tensor.dtype.itemsize for tensor in load_file(folder / "model.safetensors").values()} <= {2, 8, 1}
    assert json.loads((packed / "prior/config.json").read_text())["model"]["codes"]["num_codebooks"] == 3
    assert len([*(tmp_path / "exp/samples").glob("*.wav")]) == 4


def test_speech_needs_manifests_that_are_there(bash, tmp_path):
    for options, message in (
        ((), "--train: is required, one or more manifests"),
        (("--train", "no.jsonl"), "--train no.jsonl: no such file; manifests are divided by spaces"),
    ):
        done = bash(RECIPES / "speech/run.sh", *options, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"run.sh: {message}\n"
