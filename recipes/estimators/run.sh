#!/usr/bin/env bash
# Compare bottlenecks (none, gaussian, gumbel, reinforce, vq) on the speech that ships with audiovq, on a CPU: what each
# keeps of the speech, at what rate, how good its gradients are, and when its latents are ignored.
#
# usage: run.sh [--quick] [--option value ...]
#
#   --quick            a few steps with one seed: --grid conf/grid/quick.yaml --exp exp/quick, beside this script
#   --data DIR         speech, a folder for each speaker         (default: data of recipes/mini)
#   --exp DIR          folder for everything that is made        (default: exp/full, beside this script)
#   --config FILE      configuration of all models               (default: conf/estimators.yaml, beside this script)
#   --grid FILE        what to train and to measure              (default: conf/grid/full.yaml, beside this script)
#   --stage N          start at stage N, even if it is done      (default: the first stage that is not done)
#   --stop-stage N     stop after stage N                        (default: 5)
#
# stages: 1 prepare, 2 train, 3 context, 4 measure, 5 report

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

data=$recipe/../mini/data
exp=$recipe/exp/full
config=$recipe/conf/estimators.yaml
grid=$recipe/conf/grid/full.yaml
stage=
stop_stage=
if [[ ${1:-} == --quick ]]; then
  shift
  exp=$recipe/exp/quick
  grid=$recipe/conf/grid/quick.yaml
fi
parse_options data exp config grid stage stop_stage -- "$@"
[[ -f $config ]] || fail "--config $config: no such file"
[[ -f $grid ]] || fail "--grid $grid: no such file"

prepare() {
  audiovq prepare folder "$data" --speaker-pattern '{speaker}/' --split-by utterance \
    --dev 0.05 --test 0.1 --output "$exp/data" --force
}

bench() {
  python "$recipe/local/bench.py" "$1" --grid "$grid" --config "$config" --exp "$exp"
}

train() { bench train; }
context() { bench context; }
measure() { bench measure; }
report() { bench report; }

mkdir -p "$exp"
exp=$(cd "$exp" && pwd)
settings="data $data config $(cksum <"$config") grid $(cksum <"$grid")"
run_stages 1 prepare train context measure report

if [[ -f $exp/.done/report ]]; then
  cat <<END

report   $exp/report.html
the same $exp/report.md
figures  $exp/results.json
END
fi
