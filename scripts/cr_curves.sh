#!/usr/bin/env bash
# CR's curves: IQM and success over steps, overestimation, gradient norms of the coefficients, numerator against denominator.
# The runs are those of cr_fig1.sh: runs that it has trained at this SCALE are not trained again.
#
#   SCALE=smoke scripts/cr_curves.sh     minutes on 2 cores
#   scripts/cr_curves.sh                 laptop: 3 tasks, 6,000 steps, 3 seeds
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/cr_curves.sh     1M steps; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.9 (measured) and paper 16,700, of 2 CPU cores; on a GPU: docs/reproduction.md.
set -euo pipefail
source "$(dirname "$0")/common.sh"

tasks=$(environments SMOKE_CONTROL LAPTOP_CONTROL CR_CONTROL)
run_sweep cr_curves "sac_continuous.py --env-id $tasks --activation {relu,rational,crational} --utd 10 $SAC"
figure cr_curves --variants relu rational crational
