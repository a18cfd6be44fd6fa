#!/usr/bin/env bash
# HR Figs. 8c-d and 16 to 18: score and effective rank of PPO, human-normalised scores, curves of DQN and PPO game by game:
# relu, tanh, sigmoid, tanh_hr on 8 games, 5 seeds, 10M steps. DQN's runs are shared with hr_fig7.sh.
#
#   SCALE=smoke scripts/hr_fig8.sh       minutes on 2 cores
#   scripts/hr_fig8.sh                   laptop: 2 games, PPO 60,000 steps, DQN 25,000 without sigmoid, 1 seed
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/hr_fig8.sh       320 runs; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.9, paper 1,200 for PPO and 5,800 for DQN, of 2 CPU cores; on a GPU: docs/reproduction.md.
set -euo pipefail
source "$(dirname "$0")/common.sh"

games=$(environments SMOKE_GAMES LAPTOP_GAMES HR_GAMES_8)
dqn="{relu,tanh,sigmoid,tanh_hr}"
[[ $SCALE != laptop ]] || dqn="{relu,tanh,tanh_hr}"  # the cells that hr_fig7.sh has
run_sweep hr_fig8 "ppo_atari.py --env-id $games --activation {relu,tanh,sigmoid,tanh_hr} $PPO" \
  "dqn_atari.py --env-id $games --activation $dqn $DQN"
figure hr8
