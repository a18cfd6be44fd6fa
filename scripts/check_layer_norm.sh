#!/usr/bin/env bash
# Does LayerNorm cause the instability of rationals in Meta-World? Trains SAC with rational and crational, each without and
# with LayerNorm before every activation, compares returns, overestimation, the largest |f(x)| and the gradient of the
# coefficients in one figure, and prints a table. The same command again resumes the runs, or reports that they are finished.
# Hardware: one CPU core; the default scale tests the code path, not the claim.
#
#     scripts/check_layer_norm.sh
#     DRY_RUN=1 scripts/check_layer_norm.sh                               # only print the commands
#     STEPS=1000000 SEEDS=10 UTD=10 ENV_ID=metaworld/sweep-v3 THREADS=0 scripts/check_layer_norm.sh
set -euo pipefail
EXAMPLE=STEPS=6000
source "$(dirname "$0")/rules.sh"
ENV_ID=${ENV_ID:-metaworld/sweep-v3} STEPS=${STEPS:-6000} SEEDS=${SEEDS:-2}
UTD=${UTD:-1} THREADS=${THREADS:-1}
RUNS=${RUNS:-runs/check-layer-norm/${ENV_ID//\//-}-$STEPS-utd$UTD-seeds$SEEDS} OUT=${OUT:-$RUNS.png}
whole_number STEPS 24  # the smallest of its fractions below is a 24th
whole_number SEEDS 1
whole_number UTD 1
whole_number THREADS 0
no_control_characters RUNS OUT

starts=$((STEPS < 30000 ? STEPS / 6 : 5000))
for activation in rational crational; do
  for norm in --no-layer-norm --layer-norm; do
    step "$PYTHON" sac_continuous.py --env-id "$ENV_ID" --activation $activation $norm --num-seeds "$SEEDS" --utd "$UTD" \
      --total-timesteps "$STEPS" --learning-starts $starts --eval-frequency $((STEPS / 6)) \
      --metrics-frequency $((STEPS / 24)) --checkpoint-frequency $((STEPS / 4)) --log-frequency $((STEPS / 24)) \
      --threads "$THREADS" --runs-dir "$RUNS"
  done
done
step "$PYTHON" figures.py compare "$RUNS"/*/ --by layer_norm --out "$OUT"
