#!/usr/bin/env bash
# HR Figs. 2 and 12: regression of a sum of sines with 501, 601 and 81,001 parameters, 10 seeds (docs/function_approximation.md).
# One process trains every network, learning rate and seed.
#
#   SCALE=smoke scripts/hr_fig2.sh       a minute on 2 cores
#   scripts/hr_fig2.sh                   laptop: 5 networks, 3 learning rates, 2,000 steps
#   SCALE=paper scripts/hr_fig2.sh       a deep tanh_hr too, 5 learning rates, 20,000 steps; other variables: scripts/common.sh
#
# Minutes on 2 CPU cores: laptop 2.3 (measured), paper 80 (extrapolated, docs/figures.md). HR states neither steps nor
# learning rates.
set -euo pipefail
source "$(dirname "$0")/common.sh"
no_environments

case $SCALE in
  smoke) flags="--num-seeds 2 --total-steps 100 --table1-neurons 64 --no-compile" ;;
  laptop) flags="" ;;
  paper) flags="--total-steps 20000 --log-frequency 200 --learning-rates 1e-4 3e-4 1e-3 3e-3 1e-2"
    flags+=" --deep-activations relu tanh tanh_hr" ;;
esac
run_sweep hr_fig2 "function_approximation.py $flags"
figure hr2
