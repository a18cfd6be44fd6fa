#!/usr/bin/env bash
# HR Figs. 19 to 25: the curves of PQN game by game. The runs are those of hr_fig1.sh: runs that it has trained at this
# SCALE are not trained again.
#
#   SCALE=smoke scripts/hr_fig19.sh      minutes on 2 cores
#   scripts/hr_fig19.sh                  laptop: 6 activations, 2 games, 60,000 steps, 1 seed
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/hr_fig19.sh      1,785 runs of 10M steps; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.6 and paper 6,700, of 2 CPU cores at the speed of relu; on a GPU: docs/reproduction.md.
set -euo pipefail
source "$(dirname "$0")/common.sh"

games=$(environments SMOKE_GAMES LAPTOP_GAMES HR_GAMES_51)
run_sweep hr_fig19 "pqn_atari.py --env-id $games $PQN_CELLS $PQN"
figure hr19 --variants "${PQN_VARIANTS[@]}"
