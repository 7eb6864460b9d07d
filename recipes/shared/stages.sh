# shellcheck shell=bash disable=SC2154
# Running a recipe stage by stage, and going on where it stopped. To be sourced, not run.

log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') $*"
}

# run_stages FIRST FUNCTION...
#
# Calls the functions in turn; FIRST is the number of the first. Reads these variables:
#   stage       number of the stage to start at; empty: the first one that is not done
#   stop_stage  number of the last stage; empty: all
#   exp         the experiment's folder; $exp/.done/FUNCTION marks a stage that is done
#   settings    what the results depend on, in one line; a mark made with other settings does not count
#   settings_FUNCTION  what a stage depends on besides, if it does
run_stages() {
  local number=$1 last=$(($1 + $# - 2))
  shift
  check_stage --stage "$stage" "$number" "$last"
  check_stage --stop-stage "$stop_stage" "$number" "$last"
  mkdir -p "$exp/.done"
  for ((; number <= ${stop_stage:-$last}; number++)); do
    if ((number >= ${stage:-0})); then
      run_stage "$number" "$@"
    fi
    shift
  done
}

# run_stage NUMBER FUNCTION LATER_FUNCTION...: call a function, unless it is done and was not asked for.
run_stage() {
  local number=$1 name=$2 mark=$exp/.done/$2 own=settings_$2
  own="$settings${!own:+ ${!own}}"
  shift
  if [[ -z $stage && -f $mark && $(<"$mark") == "$own" ]]; then
    log "stage $number ($name): done already; --stage $number does it again"
    return
  fi
  log "stage $number ($name)"
  (cd "$exp/.done" && rm -f "$@") # The later stages have to be done again with what this one makes.
  "$name"
  echo "$own" >"$mark"
}

# anew FILE RUN: prints --force if the training in the folder RUN began from another FILE than there is now.
anew() {
  [[ ! -f $2/config.yaml || ! $1 -nt $2/config.yaml ]] || echo --force
}

check_stage() {
  local option=$1 value=$2 first=$3 last=$4
  [[ -z $value || ($value =~ ^[0-9]$ && $value -ge $first && $value -le $last) ]] ||
    fail "$option $value: expected a stage from $first to $last"
}
