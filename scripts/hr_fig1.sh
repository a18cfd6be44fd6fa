#!/usr/bin/env bash
# HR Figs. 1 and 9: median human-normalised score of PQN over 51 games: relu, tanh, sigmoid, tanh_hr, relu_hr, crelu, and relu
# with ReDo (tau 0.025), 5 seeds, 10M steps (40M frames).
#
#   SCALE=smoke scripts/hr_fig1.sh       minutes on 2 cores
#   scripts/hr_fig1.sh                   laptop: 6 activations without ReDo, 2 games, 60,000 steps, 1 seed
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/hr_fig1.sh       1,785 runs; other variables: scripts/common.sh
#   SCALE=paper SWEEP="--slots-per-gpu 4 --ray auto" scripts/hr_fig1.sh      the same over the machines of a Ray cluster
#
# Hours, extrapolated (docs/figures.md): laptop 0.6 and paper 6,700, of 2 CPU cores at the speed of relu (a product has twice the
# weights); on a GPU: docs/reproduction.md.
set -euo pipefail
source "$(dirname "$0")/common.sh"

games=$(environments SMOKE_GAMES LAPTOP_GAMES HR_GAMES_51)
run_sweep hr_fig1 "pqn_atari.py --env-id $games $PQN_CELLS $PQN"
figure hr1 --variants "${PQN_VARIANTS[@]}"
