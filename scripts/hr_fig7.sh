#!/usr/bin/env bash
# HR Figs. 7, 8a-b, 13 to 15, Tables 1 and 2: dead-neuron fraction, effective rank and normalised score of DQN on 8 games, 5 seeds,
# 10M steps: 10 activations, and tanh with LayerNorm and with 1,024 units at two learning rates.
#
#   SCALE=smoke scripts/hr_fig7.sh       minutes on 2 cores
#   scripts/hr_fig7.sh                   laptop: relu, tanh and tanh_hr, 2 games, 25,000 steps, 1 seed
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/hr_fig7.sh       520 runs; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.5 and paper 19,000, of 2 CPU cores; on a GPU: docs/reproduction.md. Disk: 7.4 GB of
# replay for each run in progress. All but four of the games are a guess (scripts/environments.sh). HR states neither the
# axes of its LayerNorm nor whether the convolutions have it: here every hidden layer has it, over channels.
# Of Fig. 13d's learning rates only 5e-5 is given; 1e-4 is the default.
set -euo pipefail
source "$(dirname "$0")/common.sh"

games=$(environments SMOKE_GAMES LAPTOP_GAMES HR_GAMES_8)
if [[ $SCALE == laptop ]]; then
  cells="--activation {relu,tanh,tanh_hr}"
else
  cells="{--activation {relu,tanh,sigmoid,tanh_hr,relu_hr,sigmoid_hr,rational,selu,tanh_add,tanh_2hr}"
  cells+=",--activation tanh {--layer-norm channel,--width 1024 --learning-rate {1e-4,5e-5}}}"
fi
run_sweep hr_fig7 "dqn_atari.py --env-id $games $cells $DQN"
figure hr7
