#!/usr/bin/env bash
# Trains relu and crational for 2 seeds each on cartpole-swingup, prints a table, draws runs/demo.png.
# Hardware: 2 CPU cores, one per activation. The same command again resumes the runs, or reports that they are finished.
#
#     make demo
#     DRY_RUN=1 scripts/demo.sh                           # only print the commands
#     STEPS=30000 scripts/demo.sh                         # longer, in runs/demo-30000
set -euo pipefail
EXAMPLE=STEPS=30000
source "$(dirname "$0")/rules.sh"
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
RUNS=${RUNS:-runs/demo${STEPS:+-$STEPS}} OUT=${OUT:-runs/demo.png} # another length, another folder
STEPS=${STEPS:-7000}
whole_number STEPS 1001  # the first 1,000 are random
no_control_characters RUNS OUT

train=("$PYTHON" sac_continuous.py --env-id dm_control/cartpole-swingup-v0 --seed 1 --num-seeds 2
  --total-timesteps "$STEPS" --learning-starts 1000 --init-temperature 0.1 --eval-frequency 1000 --num-eval-episodes 2
  --metrics-frequency 1000 --checkpoint-frequency 3500 --threads 1 --runs-dir "$RUNS")
if [[ -n $DRY_RUN ]]; then
  for activation in relu crational; do
    echo "$(show "${train[@]}" --activation $activation) &"
  done
  echo wait
  show "$PYTHON" figures.py demo "$RUNS/*/" --out "$OUT"
  exit
fi

echo "training relu and crational, 2 seeds each, $STEPS steps; the first minute goes to compilation"
stop() {  # stop CODE: Ctrl-C does not reach processes in the background; a second one kills them all
  trap 'kill -9 $(jobs -p) 2> /dev/null; exit '"$1" INT TERM HUP
  echo "stopping: both trainings save a checkpoint first (a second signal ends them at once)" >&2
  kill -TERM $(jobs -p) 2> /dev/null || true
  wait
  echo "stopped; the same command resumes from here" >&2
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP
pids=() failed=0
for activation in relu crational; do
  "${train[@]}" --activation $activation 2>&1 |
    (trap "" INT TERM HUP; exec sed -u "/DeprecationWarning/d; /^  warnings.warn/d; s/^/$(printf '%-11s' $activation)/") &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || failed=$?
done
((failed == 0)) || exit "$failed"
echo
"$PYTHON" figures.py demo "$RUNS"/*/ --out "$OUT"
echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "in TensorBoard: $PYTHON scripts/tensorboard_runs.py --runs $RUNS"
