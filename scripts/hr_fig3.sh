#!/usr/bin/env bash
# HR Figs. 3, 6, 10 and 11: densities (KDE) of 16 neurons, dead ones outlined, of the branches and of the product: DQN on
# Breakout with tanh, tanh_hr, sigmoid and sigmoid_hr, one seed.
#
#   SCALE=smoke scripts/hr_fig3.sh       minutes on 2 cores
#   scripts/hr_fig3.sh                   laptop: 75,000 steps, as results/2026-dqn-breakout
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/hr_fig3.sh       10M steps, runs of hr_fig7.sh; variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 1.1 and paper 150, of 2 CPU cores; DQN on a GPU: docs/reproduction.md.
set -euo pipefail
# at the laptop's scale these runs are longer than hr_fig7.sh's: their own folder, since a figure uses all runs that it finds
[[ ${SCALE:-laptop} != laptop ]] || RUNS_DIR=${RUNS_DIR:-runs/laptop-kde}
source "$(dirname "$0")/common.sh"

run_sweep hr_fig3 "dqn_atari.py --env-id $(one_of "${ENVS:-Breakout}") --activation {tanh,tanh_hr,sigmoid,sigmoid_hr} $DQN_KDE"
figure hr3 --variants tanh tanh_hr sigmoid sigmoid_hr
