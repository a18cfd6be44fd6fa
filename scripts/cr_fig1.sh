#!/usr/bin/env bash
# CR Fig. 1: IQM after 1M steps over 15 Meta-World and 15 DMC tasks, SAC with relu, rational and crational, 10 seeds.
#
#   SCALE=smoke scripts/cr_fig1.sh       minutes on 2 cores
#   scripts/cr_fig1.sh                   laptop: 3 tasks, 6,000 steps, 3 seeds
#   DRY_RUN=1 SCALE=paper scripts/cr_fig1.sh                       print the commands only
#   SCALE=paper SWEEP="--slots-per-gpu 4" scripts/cr_fig1.sh       1M steps; other variables: scripts/common.sh
#
# Hours, extrapolated (docs/figures.md): laptop 0.9 (measured) and paper 16,700, of 2 CPU cores; on a GPU: docs/reproduction.md. Memory at
# the paper's scale: the replays of a cell's 10 seeds are on its device, 2 GB (cheetah-run) to 19 GB (dog).
# The available text of CR states neither Fig. 1's UTD nor its number of seeds. It sees rationals fail at 10 updates per step
# ("high update-to-data regimes", "10+"), and 10 is also BRO's default, as are 10 seeds.
set -euo pipefail
source "$(dirname "$0")/common.sh"

tasks=$(environments SMOKE_CONTROL LAPTOP_CONTROL CR_CONTROL)
run_sweep cr_fig1 "sac_continuous.py --env-id $tasks --activation {relu,rational,crational} --utd 10 $SAC"
figure cr1 --variants relu rational crational
