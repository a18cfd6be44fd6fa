#!/usr/bin/env bash
# CR's ablations: LayerNorm, decay of the coefficients, low and high initial coefficients, crational without |x/c|^d, UTD 1,
# 2, 5 and 10, and histograms of the pre-activations (which every run logs).
#
#   SCALE=smoke scripts/cr_ablations.sh  minutes on 2 cores
#   scripts/cr_ablations.sh              laptop: 5 variants, 3 tasks, 6,000 steps, 3 seeds
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/cr_ablations.sh  26 variants, 1M steps; other variables: scripts/common.sh
#   ENVS=metaworld/sweep-v3 SCALE=paper scripts/cr_ablations.sh    one task instead of four
#
# Hours, extrapolated (docs/figures.md): laptop 1.6 and paper 14,400 (four tasks; 2,200 of them are cr_fig1.sh's), of 2
# CPU cores; on a GPU: docs/reproduction.md. The values of decay and scale are ours: the available text of CR has none. Decay 0.1
# halves a coefficient without gradient in 23,000 updates at the learning rate 3e-4.
set -euo pipefail
source "$(dirname "$0")/common.sh"

tasks=$(environments SMOKE_CONTROL LAPTOP_CONTROL CR_ABLATIONS)
rationals="--activation {rational,crational}" all="--activation {relu,rational,crational}"
run="sac_continuous.py --env-id $tasks $SAC"
grids=("$run --utd 10 $all" "$run --utd 10 --activation crational --rational.remove-constraint")
if [[ $SCALE == paper ]]; then
  grids+=("$run --utd 10 $all --layer-norm" "$run --utd {1,2,5} $all")
  grids+=("$run --utd 10 $rationals --rational.coefficient-weight-decay {0.01,0.1,1}")
  grids+=("$run --utd 10 $rationals --rational.init-scale {0.25,4}")
else
  grids+=("$run --utd 10 --activation rational --layer-norm")
fi
run_sweep cr_ablations "${grids[@]}"
figure cr_ablations
