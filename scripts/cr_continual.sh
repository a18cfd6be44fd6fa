#!/usr/bin/env bash
# CR, continual learning: random labels, one task after the other; accuracy per task and NTK rank (docs/continual_supervised.md).
#
#   scripts/cr_continual.sh                              # digits and MNIST, relu to crational: 28 cells of 10 seeds
#   DATASETS=digits SCALE=smoke scripts/cr_continual.sh  # two tasks of two epochs, 2 seeds
#   DRY_RUN=1 scripts/cr_continual.sh                    # print the commands only
#
# SCALE=smoke: minutes. laptop (default): 1 to 2 hours on 2 CPU cores (JOBS=2, one thread each). paper: 50 tasks of
# 30,000 updates as in Kumar et al. 2023 (2308.11958); extrapolated, a day on the same machine. MNIST must be in $DATA_DIR.
# The same command again skips what is finished and resumes what was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python} RUNS_DIR=${RUNS_DIR:-runs} DATA_DIR=${DATA_DIR:-data} OUT=${OUT:-figures}
DATASETS=${DATASETS:-digits mnist} SCALE=${SCALE:-laptop} JOBS=${JOBS:-1} DRY_RUN=${DRY_RUN:-}
case $SCALE in  # tasks, and epochs of 75 updates in each
  smoke) seeds=2 digits="--num-tasks 2 --epochs 2" mnist="--num-tasks 2 --epochs 2" ;;
  laptop) seeds=10 digits="--num-tasks 15 --epochs 100" mnist="--num-tasks 10 --epochs 40" ;;
  paper) seeds=10 digits="--num-tasks 50 --epochs 400" mnist="--num-tasks 50 --epochs 400" ;;
  *) echo "error: SCALE=$SCALE: must be smoke, laptop or paper" >&2; exit 2 ;;
esac

low="--rational.init-scale 0.25" high="--rational.init-scale 4" decay="--rational.coefficient-weight-decay 0.1"
cells=("relu" "tanh" "tanh_hr" "crelu" "rational" "crational")
for activation in rational crational; do
  cells+=("$activation $low" "$activation $high" "$activation $low $decay" "$activation $high $decay")
done

commands() {
  for dataset in $DATASETS; do
    for cell in "${cells[@]}"; do
      echo "$PYTHON continual_supervised.py --dataset $dataset --data-dir $DATA_DIR --runs-dir $RUNS_DIR" \
        "--num-seeds $seeds ${!dataset} --threads 1 --activation $cell"
    done
  done
  echo "$PYTHON figures.py continual --runs $RUNS_DIR --out $OUT"
}

if [ -n "$DRY_RUN" ]; then
  commands
else
  commands | head -n -1 | xargs -P "$JOBS" -I{} bash -c '{}'
  eval "$(commands | tail -n 1)"
fi
