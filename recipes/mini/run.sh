#!/usr/bin/env bash
# Train a small speech tokenizer on the speech that ships with audiovq, on a CPU, and listen to what it keeps.
#
# usage: run.sh [--option value ...]
#
#   --data DIR         speech, a folder for each speaker         (default: data, beside this script)
#   --exp DIR          folder for everything that is made        (default: exp, beside this script)
#   --config FILE      configuration of model and training       (default: conf/mini.yaml, beside this script)
#   --overrides "..."  changes to it, as in "training.steps=200 bottleneck.codebook_size=256"
#   --device NAME      cpu, cuda, ... to train and to run on     (default: auto)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 5)
#
# stages: 1 prepare, 2 train, 3 tokenize, 4 decode, 5 evaluate

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

data=$recipe/data
exp=$recipe/exp
config=$recipe/conf/mini.yaml
overrides=
device=auto
stage=
stop_stage=
parse_options data exp config overrides device stage stop_stage -- "$@"
[[ -f $config ]] || fail "--config $config: no such file"

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
  audiovq tokenize "$exp/release" "$exp/data/test.jsonl.gz" --output "$exp/codes" --device "$device" --force
}

decode() {
  audiovq decode "$exp/release" "$exp/codes" --output "$exp/wavs" --device "$device" --force
}

evaluate() {
  audiovq evaluate "$exp/release" "$exp/data/test.jsonl.gz" --output "$exp/evaluation" --device "$device" --force
}

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
settings="data $data config $(cksum <"$config") overrides $overrides"
run_stages 1 prepare train tokenize decode evaluate

if [[ -f $exp/.done/evaluate ]]; then
  cat <<END

listening page  $exp/evaluation/index.html
codes           $exp/codes
wavs            $exp/wavs
model           $exp/release
END
fi
