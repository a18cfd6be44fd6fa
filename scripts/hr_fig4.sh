#!/usr/bin/env bash
# HR Fig. 4: the contributions of live and dead neurons to Q, DQN on Seaquest with tanh, one seed.
#
#   SCALE=smoke scripts/hr_fig4.sh       minutes on 2 cores
#   scripts/hr_fig4.sh                   laptop: 75,000 steps
#   SCALE=paper scripts/hr_fig4.sh       10M steps, a run of hr_fig7.sh; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.3 and paper 37, of 2 CPU cores; DQN on a GPU: docs/reproduction.md. A run that
# finished without --analyse has no such parts: hr_fig7.sh sets the flag at the paper's scale.
set -euo pipefail
# at the laptop's scale these runs are longer than hr_fig7.sh's: their own folder, since a figure uses all runs that it finds
[[ ${SCALE:-laptop} != laptop ]] || RUNS_DIR=${RUNS_DIR:-runs/laptop-kde}
source "$(dirname "$0")/common.sh"

run_sweep hr_fig4 "dqn_atari.py --env-id $(one_of "${ENVS:-Seaquest}") --activation tanh $DQN_KDE"
figure hr4 --variants tanh
