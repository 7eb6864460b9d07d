#!/usr/bin/env bash
# Train a tokenizer on the speech of several corpora, on a CPU or a GPU, then its decoder against discriminators, and
# measure both on speakers that they never heard; then a prior over the codes. The last trainings of the model that comes
# with audiovq are runs of this recipe.
#
# usage: run.sh --train "MANIFEST ..." --valid "MANIFEST ..." --test "MANIFEST ..." [--option value ...]
#
#   --train "..."      manifests of the training speech, as audiovq prepare writes them
#   --valid "..."      manifests that say which model is best
#   --test "..."       manifests of other speakers, to measure on
#   --shares "..."     shares of the training crops, one for each of --train (default: by duration)
#   --teacher DIR      Whisper, WavLM or HuBERT, whose features the first codebook is to tell (default: none)
#   --exp DIR          folder for everything that is made        (default: exp, beside this script)
#   --config FILE      configuration of model and training       (default: conf/speech.yaml, beside this script)
#   --overrides "..."  changes to it, as in "training.steps=20000 data.batch_size=32"
#   --finetune-overrides "..."  further ones when the decoder is trained against discriminators, for 1500 steps, at a
#                      learning rate of 2e-4, on crops of 1 s
#   --prior-config FILE      configuration of the prior          (default: conf/prior.yaml, beside this script)
#   --prior-overrides "..."  changes to it
#   --prior-codebooks N      how many codebooks it models, the first ones (default: 2)
#   --limit N          evaluate N utterances of each test manifest (default: 40)
#   --device NAME      cpu, cuda, ... to train and to run on     (default: auto)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 8)
#
# stages: 1 train, 2 evaluate, 3 finetune, 4 evaluate_finetuned, 5 pack, 6 tokenize, 7 train_prior, 8 sample

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

train=
valid=
test=
shares=
teacher=
exp=$recipe/exp
config=$recipe/conf/speech.yaml
overrides=
finetune_overrides=
prior_config=$recipe/conf/prior.yaml
prior_overrides=
prior_codebooks=2
limit=40
device=auto
stage=
stop_stage=
parse_options train valid test shares teacher exp config overrides finetune_overrides prior_config prior_overrides \
  prior_codebooks limit device stage stop_stage -- "$@"
[[ -f $config ]] || fail "--config $config: no such file"
[[ -f $prior_config ]] || fail "--prior-config $prior_config: no such file"
[[ $limit =~ ^[1-9][0-9]*$ ]] || fail "--limit $limit: expected a number from 1 on"
[[ $prior_codebooks =~ ^[1-9][0-9]*$ ]] || fail "--prior-codebooks $prior_codebooks: expected a number from 1 on"
for name in train valid test; do
  [[ -n ${!name} ]] || fail "--$name: is required, one or more manifests"
  for manifest in ${!name}; do
    [[ -f $manifest ]] || fail "--$name $manifest: no such file; manifests are divided by spaces"
  done
done

# list WORD...: as a YAML list.
list() {
  local words
  printf -v words '"%s", ' "$@"
  echo "[${words%, }]"
}

# launch OUTPUT OVERRIDE...: train on the data of the recipe.
launch() {
  local output=$1
  shift
  # shellcheck disable=SC2086 # One word a manifest, an override.
  audiovq train "$config" data.train="$(list $train)" data.valid="$(list $valid)" \
    ${shares:+"data.shares=[${shares// /, }]"} ${teacher:+data.teacher="$teacher" loss.distill=10} \
    $overrides "$@" --output "$output" --device "$device"
}

# measure MODEL OUTPUT: evaluate on each of the test manifests.
measure() {
  local manifest name
  for manifest in $test; do
    name=${manifest%.jsonl*}
    name=${name//\//-}
    while [[ $name == [.-]* ]]; do # No hidden folder.
      name=${name#?}
    done
    audiovq evaluate "$1" "$manifest" --limit "$limit" --output "$2/$name" --device "$device" --force
  done
}

train() {
  launch "$exp"
}

evaluate() {
  measure "$exp/release" "$exp/evaluation"
}

finetune() {
  # shellcheck disable=SC2046,SC2086 # One word an override.
  launch "$exp/finetuned" adversarial={} data.teacher=null loss.distill=0 data.crop_seconds=1.0 \
    training.init_from="$exp/release" "training.init_parts=[encoder, bottleneck, decoder]" \
    "training.freeze=[encoder, bottleneck]" training.steps=1500 training.learning_rate=2e-4 training.warmup_steps=50 \
    training.valid_every=300 $finetune_overrides $(anew "$exp/release/model.safetensors" "$exp/finetuned")
}

evaluate_finetuned() {
  measure "$exp/finetuned/release" "$exp/finetuned/evaluation"
}

pack() {
  python "$recipe/local/pack.py" "$exp/finetuned/release" "$exp/packed"
}

tokenize() {
  # shellcheck disable=SC2086 # One word a manifest.
  audiovq tokenize "$exp/packed" $train --codebooks "$prior_codebooks" --output "$exp/codes/train" --device "$device" --force
  # shellcheck disable=SC2086
  audiovq tokenize "$exp/packed" $valid --codebooks "$prior_codebooks" --output "$exp/codes/valid" --device "$device" --force
}

train_prior() {
  # shellcheck disable=SC2046,SC2086 # One word an override.
  audiovq train-prior "$prior_config" tokens="$exp/codes/train" valid_tokens="$exp/codes/valid" $prior_overrides \
    --output "$exp/prior" --device "$device" $(anew "$exp/codes/train/tokenizer.json" "$exp/prior")
  python "$recipe/local/pack.py" "$exp/prior/release" "$exp/packed/prior"
}

sample() {
  audiovq sample "$exp/packed/prior" "$exp/packed" --output "$exp/samples" --device "$device" --force
}

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
settings="train $train valid $valid test $test shares $shares teacher $teacher config $(cksum <"$config") overrides $overrides"
# shellcheck disable=SC2034 # Read by run_stages.
settings_evaluate="limit $limit"
# shellcheck disable=SC2034
settings_finetune="finetune $finetune_overrides"
# shellcheck disable=SC2034
settings_evaluate_finetuned="limit $limit"
# shellcheck disable=SC2034
settings_tokenize="codebooks $prior_codebooks"
# shellcheck disable=SC2034
settings_train_prior="prior $(cksum <"$prior_config") overrides $prior_overrides"
run_stages 1 train evaluate finetune evaluate_finetuned pack tokenize train_prior sample

if [[ -f $exp/.done/evaluate ]]; then
  cat <<END

model            $exp/release
listening pages  $exp/evaluation/*/index.html
END
fi
if [[ -f $exp/.done/evaluate_finetuned ]]; then
  cat <<END
fine-tuned       $exp/finetuned/release
listening pages  $exp/finetuned/evaluation/*/index.html
END
fi
if [[ -f $exp/.done/pack ]]; then
  cat <<END
half the size    $exp/packed
END
fi
if [[ -f $exp/.done/sample ]]; then
  cat <<END
with its prior   $exp/packed/prior
new speech       $exp/samples
END
fi
