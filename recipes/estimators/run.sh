#!/usr/bin/env bash
# Compare bottlenecks (none, gaussian, gumbel, reinforce, vq) on the speech that ships with audiovq, on a CPU, at equal rate and
# training time, and judge what is said of them: an experiment with a verdict for each statement.
#
# usage: run.sh [--quick] [--option value ...]
#
#   --quick            a few steps with one seed: --plan conf/plan/quick.yaml --exp exp/quick, beside this script
#   --only NAME        one experiment, and what it needs         (default: all)
#   --data DIR         speech, a folder for each speaker         (default: data of recipes/mini)
#   --exp DIR          folder for everything that is made        (default: exp/full, beside this script)
#   --config FILE      configuration of all models               (default: conf/bench.yaml, beside this script)
#   --plan FILE        what to train and to measure              (default: conf/plan/full.yaml, beside this script)
#   --hours N          no cell begins later; a new call goes on  (default: 4)
#   --workers N        cells at a time, a core each              (default: as many as there are cores)
#   --stage N          start at stage N: 2 reports what is done  (default: 1)
#   --stop-stage N     stop after stage N: 1 leaves the report   (default: 2)
#
# experiments: reparameterisation, score-function, gumbel-softmax, straight-through, posterior-collapse, codebook-collapse,
# commitment, k-means, two-stages, representations, rate-quality
#
# stages: 1 cells, 2 report. A bench that was interrupted goes on, cell by cell, when it is started again.

# shellcheck source-path=SCRIPTDIR

set -euo pipefail
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$recipe/../shared/parse_options.sh"
source "$recipe/../shared/stages.sh"

data=$recipe/../mini/data
exp=$recipe/exp/full
config=$recipe/conf/bench.yaml
plan=$recipe/conf/plan/full.yaml
only=
hours=4
workers=
stage=
stop_stage=
options=()
for option in "$@"; do
  if [[ $option == --quick ]]; then
    exp=$recipe/exp/quick
    plan=$recipe/conf/plan/quick.yaml
  else
    options+=("$option")
  fi
done
parse_options only data exp config plan hours workers stage stop_stage -- ${options[@]+"${options[@]}"}
[[ -f $config ]] || fail "--config $config: no such file"
[[ -f $plan ]] || fail "--plan $plan: no such file"
check_stage --stage "$stage" 1 2
check_stage --stop-stage "$stop_stage" 1 2

stages=()
[[ ${stage:-1} == 1 ]] || stages+=(--no-cells)
[[ ${stop_stage:-2} == 2 ]] || stages+=(--no-report)
python "$recipe/local/bench.py" --data "$data" --exp "$exp" --config "$config" --plan "$plan" --hours "$hours" \
  ${workers:+--workers "$workers"} ${only:+--only "$only"} ${stages[@]+"${stages[@]}"}

cat <<END

report   $exp/report.html
the same $exp/report.md
figures  $exp/results.json
END
