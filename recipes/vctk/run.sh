#!/usr/bin/env bash
# Train a speech tokenizer on VCTK (Yamagishi et al., release 0.92: 110 English speakers), on one or more GPUs, and
# tokenize the corpus with it; then train a prior over its codes, and sample new speech.
#
# usage: run.sh --corpus-dir DIR [--option value ...]
#
#   --corpus-dir DIR   the corpus, release 0.92 or 0.80; 0.92 is downloaded to it if there is none
#   --config FILE      configuration of model and training       (default: conf/vqvae_base.yaml, beside this script)
#   --overrides "..."  changes to it, as in "training.steps=200 bottleneck.codebook_size=256"
#   --prior-config FILE      configuration of the prior          (default: conf/prior.yaml, beside this script)
#   --prior-overrides "..."  changes to it
#   --exp DIR          folder for everything that is made        (default: exp/CONFIG, beside this script)
#   --split-by WHAT    speaker: train, dev and test share no speaker (default). utterance: they do, as a decoder needs
#                      that is told who speaks (conf/vqvae_wavenet.yaml)
#   --limit N          decode and evaluate N utterances of the test split (default: all); a WaveNet decoder is slow
#   --voices "..."     speakers as whom stages convert and sample speak (default: two of the model's)
#   --num-gpus N       processes that train together, a GPU each (default: 1)
#   --device NAME      cpu, cuda, ... to train and to run on     (default: auto)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 8)
#
# stages: 0 download, 1 prepare, 2 train, 3 tokenize, 4 decode, 5 evaluate, 6 convert, 7 train_prior, 8 sample

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

corpus_dir=
config=$recipe/conf/vqvae_base.yaml
overrides=
prior_config=$recipe/conf/prior.yaml
prior_overrides=
exp=
split_by=speaker
limit=
voices=
num_gpus=1
device=auto
stage=
stop_stage=
parse_options corpus_dir config overrides prior_config prior_overrides exp split_by limit voices num_gpus device stage \
  stop_stage -- "$@"
[[ -n $corpus_dir ]] || fail "--corpus-dir: is required, the folder of the corpus or where to download it to"
[[ -f $config ]] || fail "--config $config: no such file"
[[ -f $prior_config ]] || fail "--prior-config $prior_config: no such file"
[[ $split_by == speaker || $split_by == utterance ]] ||
  fail "--split-by $split_by: expected speaker or utterance"
[[ -z $limit || $limit =~ ^[1-9][0-9]*$ ]] || fail "--limit $limit: expected a number from 1 on"
[[ $num_gpus =~ ^[1-9][0-9]*$ ]] || fail "--num-gpus $num_gpus: expected a number from 1 on"
config_name=${config##*/}
exp=${exp:-$recipe/exp/${config_name%.yaml}}

download() {
  if [[ -d $corpus_dir/wav48_silence_trimmed || -d $corpus_dir/wav48 ]]; then
    log "using the corpus in $corpus_dir"
  else
    "$recipe/local/download.sh" "$corpus_dir"
  fi
}

prepare() {
  audiovq prepare vctk "$corpus_dir" --split-by "$split_by" --output "$exp/data" --force
}

# launch COMMAND ARGUMENT...: an audiovq command that trains, on all GPUs.
launch() {
  local launcher=(audiovq)
  if ((num_gpus > 1)); then
    launcher=(accelerate launch --multi_gpu --num_processes "$num_gpus" --num_machines 1 --mixed_precision no
      --dynamo_backend no -m audiovq)
  fi
  "${launcher[@]}" "$@" --device "$device"
}

train() {
  # shellcheck disable=SC2086 # One word an override.
  launch train "$config" data.train="$exp/data/train.jsonl.gz" data.valid="$exp/data/dev.jsonl.gz" $overrides \
    --output "$exp"
}

tokenize() {
  local split
  for split in train dev test; do
    audiovq tokenize "$exp/release" "$exp/data/$split.jsonl.gz" --output "$exp/codes/$split" \
      --device "$device" --force
  done
}

decode() {
  if [[ -n $limit ]]; then
    python "$recipe/../shared/choose.py" ids "$exp/data/test.jsonl.gz" "$limit" >"$exp/decoded"
  fi
  audiovq decode "$exp/release" "$exp/codes/test" ${limit:+--utt-ids "@$exp/decoded"} --output "$exp/wavs" \
    --device "$device" --force
}

evaluate() {
  audiovq evaluate "$exp/release" "$exp/data/test.jsonl.gz" ${limit:+--limit "$limit"} --output "$exp/evaluation" \
    --device "$device" --force
}

# voices_of RELEASE: the speakers to speak as, a line each, of those that a model or a prior knows.
voices_of() {
  if [[ -n $voices ]]; then
    tr ' ' '\n' <<<"$voices"
  else
    python "$recipe/../shared/choose.py" speakers "$1" 2
  fi
}

convert() {
  local voice chosen
  if [[ -z $(python "$recipe/../shared/choose.py" speakers "$exp/release" 1) ]]; then
    log "the decoder of this model is not told who speaks: nothing to convert"
    return
  fi
  chosen=$(voices_of "$exp/release")
  python "$recipe/../shared/choose.py" ids "$exp/data/test.jsonl.gz" 4 >"$exp/to_convert"
  while IFS= read -r voice; do
    audiovq decode "$exp/release" "$exp/codes/test" --utt-ids "@$exp/to_convert" --speaker "$voice" \
      --output "$exp/converted/$voice" --device "$device" --force
  done <<<"$chosen"
}

train_prior() {
  # shellcheck disable=SC2046,SC2086 # One word an override.
  launch train-prior "$prior_config" tokens="$exp/codes/train" $prior_overrides --output "$exp/prior" \
    $(anew "$exp/codes/train/tokenizer.json" "$exp/prior")
}

sample() {
  local chosen voice
  chosen=$(voices_of "$exp/prior/release")
  while IFS= read -r voice; do # Once, as nobody, for a prior that is not told who speaks.
    audiovq sample "$exp/prior/release" "$exp/release" ${voice:+--speaker "$voice"} --num 4 \
      --output "$exp/samples/${voice:-nobody}" --device "$device" --force
  done <<<"$chosen"
}

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
settings="corpus $corpus_dir config $(cksum <"$config") overrides $overrides split-by $split_by"
# shellcheck disable=SC2034 # Read by run_stages.
settings_decode="limit $limit"
# shellcheck disable=SC2034
settings_evaluate="limit $limit"
# shellcheck disable=SC2034
settings_convert="voices $voices"
# shellcheck disable=SC2034
settings_sample="voices $voices"
# shellcheck disable=SC2034
settings_train_prior="prior $(cksum <"$prior_config") overrides $prior_overrides"
run_stages 0 download prepare train tokenize decode evaluate convert train_prior sample

if [[ -f $exp/.done/evaluate ]]; then
  cat <<END

listening page  $exp/evaluation/index.html
codes           $exp/codes
wavs            $exp/wavs
model           $exp/release
END
fi
if [[ -f $exp/.done/sample ]]; then
  cat <<END
new speech      $exp/samples
prior           $exp/prior/release
END
fi
