# What every script of this folder does before anything else; sourced (by common.sh for the figures), not to be run:
#   - it changes to the repository's root;
#   - it accepts no arguments but --help and -h, which print the head of the script: settings are variables, and an
#     argument such as `--scale smoke` would otherwise be ignored;
#   - it checks PYTHON: by default .venv/bin/python if there is one, else python;
#   - it sets DRY_RUN to 1 or nothing.
# EXAMPLE, which a script sets before it sources this file, is the setting that the error on arguments suggests.

wrong() {  # wrong TEXT: ends the script with a one-line error for the user
  echo "error: $*" >&2
  exit 2
}

print_head() {  # print_head FILE: the comment at its beginning
  awk '/^#!/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

for argument in "$@"; do
  if [[ $argument == -h || $argument == --help ]]; then
    print_head "$0"
    if [[ ${BASH_SOURCE[1]} != "$0" ]]; then  # common.sh, which has the figures' variables
      echo
      print_head "${BASH_SOURCE[1]}"
    fi
    exit 0
  fi
done
if (($# > 0)); then
  wrong "$1: ${0##*/} takes no such argument; set variables before it, such as ${EXAMPLE:-DRY_RUN=1} $0 (--help lists them)"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."

switch() {  # switch NAME: leaves 1 or nothing in the variable of that name
  local value=${!1-}
  case $value in
    1 | yes | Yes | YES | true | True | TRUE | on) printf -v "$1" 1 ;;
    "" | 0 | no | No | NO | false | False | FALSE | off) printf -v "$1" "" ;;
    *) wrong "$1=$value: must be 1 or 0" ;;
  esac
}

whole_number() {  # whole_number NAME LEAST: the variable of that name is one, and not less
  local value=${!1}
  [[ $value =~ ^(0|[1-9][0-9]{0,17})$ ]] && ((value >= $2)) || wrong "$1=$value: must be a whole number, at least $2"
}

no_control_characters() {  # no_control_characters NAME...: of variables that hold paths
  local name
  for name in "$@"; do
    [[ ${!name} != *[[:cntrl:]]* ]] || wrong "$name=$(printf %q "${!name}"): has a newline or another control character"
  done
}

show() {  # show COMMAND...: so that it can be copied into a shell; FOLDER/*/ without a match stays a pattern
  local line="" word
  for word in "$@"; do
    if [[ $word == *"/*/" ]]; then
      printf -v word "%q/*/" "${word%"/*/"}"
    else
      printf -v word "%q" "$word"
    fi
    line+=" $word"
  done
  echo "${line# }"
}

attend() {  # attend COMMAND...: runs it, and passes on signals that stop this script; else a dying shell leaves it running
  local child code=0 stopped=0
  "$@" <&0 &
  child=$!
  trap "stopped=130; kill -TERM $child 2> /dev/null" INT  # TERM, since a background process ignores INT
  trap "stopped=143; kill -TERM $child 2> /dev/null" TERM
  trap "stopped=129; kill -TERM $child 2> /dev/null" HUP
  while true; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2> /dev/null || break  # it is still there if a signal interrupted the wait
  done
  trap - INT TERM HUP
  if ((stopped > 0)); then exit "$stopped"; fi
  return "$code"
}

step() {  # step COMMAND...: shows it, and runs it unless DRY_RUN is set
  show "$@"
  [[ -n $DRY_RUN ]] || attend "$@"
}

switch DRY_RUN
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
if [[ -d $PYTHON ]] || ! command -v "$PYTHON" > /dev/null; then
  wrong "PYTHON=$PYTHON: is not a program here; run make setup, or name a Python that has the requirements"
fi
