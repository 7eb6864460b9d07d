#!/usr/bin/env bash
# Tokenize, decode and measure the speech that ships with audiovq with the model that comes with it, at two bitrates, and
# make a page to listen to, with Codec 2 and Opus beside it if they are installed.
#
# usage: run.sh [--option value ...]
#
#   --data DIR         speech, a folder for each speaker         (default: data of recipes/mini)
#   --model NAME       model that comes with audiovq, or folder  (default: speech-16k)
#   --codebooks "..."  numbers of codebooks to use               (default: 3 6)
#   --exp DIR          folder for everything that is made        (default: exp, beside this script)
#   --limit N          measure N utterances                      (default: 8)
#   --device NAME      cpu, cuda, ... to run on                  (default: auto)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 4)
#
# stages: 1 prepare, 2 tokenize, 3 decode, 4 compare

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

data=$recipe/../mini/data
model=speech-16k
codebooks="3 6"
exp=$recipe/exp
limit=8
device=auto
stage=
stop_stage=
parse_options data model codebooks exp limit device stage stop_stage -- "$@"
[[ $codebooks =~ ^[1-9][0-9]*(\ [1-9][0-9]*)*$ ]] || fail "--codebooks $codebooks: expected numbers from 1 on"
[[ $limit =~ ^[1-9][0-9]*$ ]] || fail "--limit $limit: expected a number from 1 on"

prepare() {
  audiovq prepare folder "$data" --speaker-pattern '{speaker}/' --split-by utterance \
    --dev 0.05 --test 0.1 --output "$exp/data" --force
}

tokenize() {
  local count
  for count in $codebooks; do
    audiovq tokenize "$model" "$exp/data/test.jsonl.gz" --codebooks "$count" --output "$exp/codes-$count" \
      --device "$device" --force
  done
}

decode() {
  local count
  for count in $codebooks; do
    audiovq decode "$model" "$exp/codes-$count" --output "$exp/wavs-$count" --device "$device" --force
  done
}

compare() {
  python "$recipe/../benchmark/quality.py" "$exp/data/test.jsonl.gz" --model "$model" --codebooks "${codebooks// /,}" \
    --limit "$limit" --seconds 6 --judges "" --output "$exp/quality" --device "$device"
}

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
# Another model may have come under the same name.
folder=$model
[[ -f $folder/config.json ]] || folder=$(python -c "import audiovq; print(*audiovq.__path__)")/pretrained/$model
weights=$(cksum 2>/dev/null <"$folder/model.safetensors" || true) # What is no model is named by the first stage.
settings="data $data model $model weights $weights codebooks $codebooks"
# shellcheck disable=SC2034 # Read by run_stages.
settings_compare="limit $limit"
run_stages 1 prepare tokenize decode compare

if [[ -f $exp/.done/compare ]]; then
  cat <<END

listening page  $exp/quality/index.html
codes           $exp/codes-*
wavs            $exp/wavs-*
END
fi
