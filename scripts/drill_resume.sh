#!/usr/bin/env bash
# What: kills a DMC run and a Meta-World run with SIGKILL at random moments, KILLS times each (10), and starts the same
#   command again each time. The scalars.csv at the end, without its time column, must equal byte for byte that of an
#   undisturbed run. Exits with 1 on any difference.
# Hardware: any CPU, 2 cores, 4 GB.
# Minutes, on one core of an AMD EPYC, the other busy: 13 eagerly; 12 with --compile, KILLS=3 and STEPS=1500.
#
#   scripts/drill_resume.sh [--compile] [--keep]      eager by default; --keep does not delete the folder of the runs
#   KILLS=3 SEED=7 STEPS=2000 PYTHON=python3 scripts/drill_resume.sh      SEED: of the random moments of the kills
set -euo pipefail
compile=--no-compile keep=no others=()
for flag in "$@"; do
  case $flag in
    --compile) compile=--compile ;;
    --keep) keep=yes ;;
    -h | --help) others+=("$flag") ;;
    *) echo "error: $flag: unknown; use --compile or --keep" >&2; exit 2 ;;
  esac
done
set -- ${others[@]+"${others[@]}"}
source "$(dirname "$0")/rules.sh"
KILLS=${KILLS:-10} STEPS=${STEPS:-3000} SEED=${SEED:-1}
whole_number KILLS 1
whole_number STEPS 300  # the drill's own: a checkpoint every thirtieth of them, and 200 random ones
whole_number SEED 0
[[ -z $DRY_RUN ]] || wrong "DRY_RUN=$DRY_RUN: a drill has nothing to print; leave it out"
kills=$KILLS steps=$STEPS RANDOM=$SEED python=$PYTHON
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
folder=$(mktemp -d) child=""
clean() {
  if [[ -n $child ]]; then kill -9 "$child" 2> /dev/null || true; fi
  if [[ $keep == yes ]]; then echo "runs: $folder"; else rm -rf "$folder"; fi
}
trap clean EXIT

flags=("$compile" --no-tensorboard --device cpu --threads 1 --num-seeds 2 --activation crational --widths 32 32)
flags+=(--batch-size 32 --learning-starts 200 --total-timesteps "$steps" --checkpoint-frequency $((steps / 30)))
flags+=(--eval-frequency $((steps / 2)) --num-eval-episodes 1 --log-frequency 50)
flags+=(--metrics-frequency $((steps / 3)) --metrics-samples 128)

start() {  # start ENV_ID FOLDER: in the background, its process in $child
  "$python" sac_continuous.py --env-id "$1" "${flags[@]}" --runs-dir "$2" >> "$2.log" 2>&1 &
  child=$!
}

finish() {  # wait for $child, which must end well
  local code=0
  wait "$child" || code=$?
  child=""
  if ((code != 0)); then echo "FAILED: exit code $code" >&2; tail -n 5 "$1.log" >&2; exit 1; fi
}

rows() { sed 's/,[^,]*$//' "$1"; }

differences=0
for env_id in dm_control/cartpole-swingup-v0 metaworld/reach-v3; do
  whole=$folder/${env_id%%/*}-undisturbed killed=$folder/${env_id%%/*}-killed
  if [[ $compile == --compile ]]; then  # the first start fills the compiler's cache, so its time says nothing about the next
    start "$env_id" "$whole-cold"
    finish "$whole-cold"
  fi
  seconds=$(date +%s)
  start "$env_id" "$whole"
  finish "$whole"
  seconds=$(($(date +%s) - seconds + 1))
  echo "$env_id: undisturbed in $seconds s"
  done_kills=0
  for ((kill = 1; kill <= kills; kill++)); do
    start "$env_id" "$killed"
    # Each session lasts at least half its start-up, and on average long enough for the last kill to come near the end.
    pause=$(awk -v s="$seconds" -v k="$kills" -v r="$RANDOM" 'BEGIN { printf "%.2f", s * (0.15 + 1.6 / k * r / 32768) }')
    sleep "$pause"
    if ! kill -9 "$child" 2> /dev/null; then finish "$killed"; echo "  ended before kill $kill"; break; fi
    wait "$child" 2> /dev/null || true
    child="" done_kills=$kill
    at=$(cat "$killed"/*/scalars.csv 2> /dev/null | tail -n 1 | cut -d, -f1 || true)
    echo "  kill $kill after $pause s, last row on disk: step ${at:-none}"
  done
  start "$env_id" "$killed"
  finish "$killed"
  for csv in "$whole"/*/scalars.csv; do
    other=$killed/$(basename "$(dirname "$csv")")/scalars.csv
    if cmp <(rows "$csv") <(rows "$other"); then
      echo "  equal: $(wc -l < "$csv") rows after $done_kills kills, $(basename "$(dirname "$csv")")"
    else
      echo "  DIFFERENT: $csv $other" >&2
      differences=$((differences + 1)) keep=yes
    fi
  done
  if ((done_kills < kills)); then
    echo "  only $done_kills of $kills kills came before its end: raise STEPS" >&2
    differences=$((differences + 1))
  fi
done
if ((differences > 0)); then echo "FAILED: $differences problems" >&2; exit 1; fi
echo "passed: killed and undisturbed runs are the same, byte for byte"
