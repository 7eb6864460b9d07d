# shellcheck shell=bash
# Command-line options for recipes. To be sourced, not run.

# parse_options NAME... -- "$@"
#
# Sets variables from command-line options: `--stop-stage 2` sets stop_stage=2. NAME... are the variables that may be
# set, which hold the defaults. `--help` prints the comment at the top of the script; a mistake is one line and exit 2.
parse_options() {
  # The underscores keep these apart from the variables that are set.
  local _known=() _name _option
  while [[ $1 != -- ]]; do
    _known+=("$1")
    shift
  done
  shift
  while (($#)); do
    if [[ $1 == -h || $1 == --help ]]; then
      awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "$0"
      exit 0
    fi
    _option=
    for _name in "${_known[@]}"; do
      if [[ $1 == "--${_name//_/-}" ]]; then
        _option=$_name
        break
      fi
    done
    if [[ -z $_option ]]; then
      _known=("${_known[@]/#/--}")
      fail "$1: unknown option; known are ${_known[*]//_/-}"
    fi
    (($# > 1)) || fail "$1: needs a value"
    printf -v "$_option" '%s' "$2"
    shift 2
  done
}

# fail MESSAGE: end the script because of a mistake in its call.
fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}
