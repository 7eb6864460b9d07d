#!/usr/bin/env bash
# Train a small speech tokenizer on the speech that ships with audiovq, on a CPU, and listen to what it keeps; then train
# a prior over its codes, and listen to new speech.
#
# usage: run.sh [--option value ...]
#
#   --data DIR         speech, a folder for each speaker         (default: data, beside this script)
#   --exp DIR          folder for everything that is made        (default: exp, beside this script)
#   --config FILE      configuration of model and training       (default: conf/mini.yaml, beside this script)
#   --overrides "..."  changes to it, as in "training.steps=200 bottleneck.codebook_size=256"
#   --prior-config FILE      configuration of the prior          (default: conf/prior.yaml, beside this script)
#   --prior-overrides "..."  changes to it
#   --device NAME      cpu, cuda, ... to train and to run on     (default: auto)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 7)
#
# stages: 1 prepare, 2 train, 3 tokenize, 4 decode, 5 evaluate, 6 train_prior, 7 sample

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

data=$recipe/data
exp=$recipe/exp
config=$recipe/conf/mini.yaml
overrides=
prior_config=$recipe/conf/prior.yaml
prior_overrides=
device=auto
stage=
stop_stage=
parse_options data exp config overrides prior_config prior_overrides device stage stop_stage -- "$@"
[[ -f $config ]] || fail "--config $config: no such file"
[[ -f $prior_config ]] || fail "--prior-config $prior_config: no such file"

prepare() {
  audiovq prepare folder "$data" --speaker-pattern '{speaker}/' --split-by utterance \
    --dev 0.05 --test 0.1 --output "$exp/data" --force
}

train() {
  # shellcheck disable=SC2086 # One word an override.
  audiovq train "$config" data.train="$exp/data/train.jsonl.gz" data.valid="$exp/data/dev.jsonl.gz" $overrides \
    --output "$exp" --device "$device"
}

tokenize() {
  local split
  for split in train dev test; do
    audiovq tokenize "$exp/release" "$exp/data/$split.jsonl.gz" --output "$exp/codes/$split" \
      --device "$device" --force
  done
}

decode() {
  audiovq decode "$exp/release" "$exp/codes/test" --output "$exp/wavs" --device "$device" --force
}

evaluate() {
  audiovq evaluate "$exp/release" "$exp/data/test.jsonl.gz" --output "$exp/evaluation" --device "$device" --force
}

train_prior() {
  # shellcheck disable=SC2046,SC2086 # One word an override.
  audiovq train-prior "$prior_config" tokens="$exp/codes/train" valid_tokens="$exp/codes/dev" $prior_overrides \
    --output "$exp/prior" --device "$device" $(anew "$exp/codes/train/tokenizer.json" "$exp/prior")
}

sample() {
  local voices voice
  voices=$(python "$recipe/../shared/choose.py" speakers "$exp/prior/release" 4)
  while IFS= read -r voice; do # Once, as nobody, for a prior that is not told who speaks.
    audiovq sample "$exp/prior/release" "$exp/release" ${voice:+--speaker "$voice"} --num 2 \
      --output "$exp/samples/${voice:-nobody}" --device "$device" --force
  done <<<"$voices"
}

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
settings="data $data config $(cksum <"$config") overrides $overrides"
# shellcheck disable=SC2034 # Read by run_stages.
settings_train_prior="prior $(cksum <"$prior_config") overrides $prior_overrides"
run_stages 1 prepare train tokenize decode evaluate train_prior sample

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
