#!/usr/bin/env bash
# CR on Atari: "preliminary experiments did not show similar instability". DQN and PQN with relu, rational and crational.
#
#   SCALE=smoke scripts/cr_atari.sh      minutes on 2 cores
#   scripts/cr_atari.sh                  laptop: 2 games, DQN 25,000 and PQN 60,000 steps, 1 seed
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/cr_atari.sh      8 games, 10M steps, 5 seeds; variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.7 and paper 4,800, of 2 CPU cores; on a GPU: docs/reproduction.md. relu's runs are
# shared with hr_fig7.sh and hr_fig1.sh. The rationals are in every hidden layer, as in CR's SAC (in hr_fig7.sh only in the
# last one, as in HR). The available text of CR names neither the algorithm nor the games.
set -euo pipefail
source "$(dirname "$0")/common.sh"

games=$(environments SMOKE_GAMES LAPTOP_GAMES CR_ATARI)
run_sweep cr_atari \
  "dqn_atari.py --env-id $games {--activation relu,--activation {rational,crational} --encoder-activation rational} $DQN" \
  "pqn_atari.py --env-id $games --activation {relu,rational,crational} $PQN"
figure cr_atari
