#!/usr/bin/env bash
# Do the inputs of the activations stay bounded with the constrained rational, and with the unconstrained one? Trains SAC
# with rational and crational on one DMC task, draws the pre-activations of every layer over training and prints a table.
# The same command again resumes the runs, or reports that they are finished.
# Hardware: one CPU core; the default scale tests the code path, not the claim.
#
#     scripts/check_preactivations.sh
#     DRY_RUN=1 scripts/check_preactivations.sh                           # only print the commands
#     STEPS=1000000 SEEDS=10 UTD=10 ENV_ID=dm_control/cheetah-run-v0 THREADS=0 scripts/check_preactivations.sh
set -euo pipefail
EXAMPLE=STEPS=6000
source "$(dirname "$0")/rules.sh"
ENV_ID=${ENV_ID:-dm_control/cartpole-swingup-v0} STEPS=${STEPS:-6000} SEEDS=${SEEDS:-2}
UTD=${UTD:-1} THREADS=${THREADS:-1}
RUNS=${RUNS:-runs/check-preactivations/${ENV_ID//\//-}-$STEPS-utd$UTD-seeds$SEEDS} OUT=${OUT:-$RUNS.png}
whole_number STEPS 24  # the smallest of its fractions below is a 24th
whole_number SEEDS 1
whole_number UTD 1
whole_number THREADS 0
no_control_characters RUNS OUT

starts=$((STEPS < 30000 ? STEPS / 6 : 5000))
for activation in rational crational; do
  step "$PYTHON" sac_continuous.py --env-id "$ENV_ID" --activation $activation --num-seeds "$SEEDS" --utd "$UTD" \
    --total-timesteps "$STEPS" --learning-starts $starts --eval-frequency $((STEPS / 6)) \
    --metrics-frequency $((STEPS / 24)) --checkpoint-frequency $((STEPS / 4)) --log-frequency $((STEPS / 24)) \
    --threads "$THREADS" --runs-dir "$RUNS"
done
step "$PYTHON" figures.py preactivations "$RUNS"/*/ --out "$OUT"
