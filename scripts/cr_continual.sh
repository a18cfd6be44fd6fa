#!/usr/bin/env bash
# CR, continual learning: random labels, one task after the other; accuracy per task and NTK rank (docs/continual_supervised.md):
# relu, tanh, tanh_hr, crelu; rational and crational at their defaults, and from low and high coefficients with and without decay.
#
#   scripts/cr_continual.sh                              # digits and MNIST: 28 cells of 10 seeds
#   DATASETS=digits SCALE=smoke scripts/cr_continual.sh  # two tasks of two epochs, 2 seeds
#   DRY_RUN=1 scripts/cr_continual.sh                    # print the commands only
#
# SCALE=smoke: minutes. laptop (default): 1 to 2 hours on 2 CPU cores, measured. paper: 50 tasks of 30,000 updates as in Kumar
# et al. 2023 (2308.11958); extrapolated, a day on the same machine. MNIST is read from $DATA_DIR, and downloaded there if it is missing. JOBS: number of parallel
# processes, of one thread each; other variables: scripts/common.sh.
set -euo pipefail
RUNS_DIR=${RUNS_DIR:-runs} OUT=${OUT:-figures}  # as for results/2026-continual; its figure separates studies of different lengths
[[ -z ${JOBS:-} ]] || SWEEP=${SWEEP---slots $JOBS}
source "$(dirname "$0")/common.sh"
no_environments
[[ -z ${JOBS:-} ]] || whole_number JOBS 1
DATA_DIR=${DATA_DIR:-data} DATASETS=${DATASETS:-digits mnist}
no_control_characters DATA_DIR
[[ $DATA_DIR != *[{}]* ]] || wrong "DATA_DIR=$DATA_DIR: has a brace, which a grid would expand; rename the folder"
[[ $DATASETS == *[![:space:]]* ]] || wrong "DATASETS='$DATASETS': has no name; give digits, mnist or both"

case $SCALE in  # tasks, and epochs of 75 updates in each
  smoke) seeds=2 digits="--num-tasks 2 --epochs 2" mnist="--num-tasks 2 --epochs 2" ;;
  laptop) seeds=10 digits="--num-tasks 15 --epochs 100" mnist="--num-tasks 10 --epochs 40" ;;
  paper) seeds=10 digits="--num-tasks 50 --epochs 400" mnist="--num-tasks 50 --epochs 400" ;;
esac
settings="--rational.init-scale {0.25,4}{, --rational.coefficient-weight-decay 0.1}"
cells="{--activation {relu,tanh,tanh_hr,crelu,rational,crational},--activation {rational,crational} $settings}"
grids=()
read -ra datasets <<< "${DATASETS//[$'\n\t']/ }"
for dataset in "${datasets[@]}"; do
  case $dataset in digits | mnist) ;; *) wrong "DATASETS=$DATASETS: $dataset is unknown; give digits, mnist or both" ;; esac
  run="continual_supervised.py --dataset $dataset --data-dir $(printf %q "$DATA_DIR")"
  run+=" --num-seeds $seeds ${!dataset} --threads 1"
  grids+=("$run $cells")
done
run_sweep cr_continual "${grids[@]}"
figure continual
