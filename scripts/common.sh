# What the scripts of the figures share; sourced by them, not to be run. All of them use these variables:
#   SCALE     smoke: minutes on 2 cores, tests the code path; laptop (default): an hour or two on 2 cores; paper: the paper's own
#   DRY_RUN   1: print the remaining commands and the figure's, run none (0 or empty: run)
#   RUNS_DIR  folder of the runs, runs/$SCALE by default: a figure uses all runs that it finds, so each scale has its own
#             folder; figures of one scale share their runs
#   OUT       the figures' folder, figures/$SCALE
#   PYTHON    the interpreter, .venv/bin/python where there is one
#   SWEEP     further options of scripts/sweep.py, such as "--slots-per-gpu 4", "--ray" or "--slurm jobs.sh"; smoke and laptop:
#             "--slots 2", two processes of one thread each
#   ENVS      environments or games instead of the figure's list, separated by blanks
# The same command again skips finished runs and resumes interrupted ones. A failed run ends the script before the figure.
EXAMPLE=SCALE=smoke
source "$(dirname "${BASH_SOURCE[0]}")/rules.sh"
source scripts/environments.sh

SCALE=${SCALE:-laptop} ENVS=${ENVS:-}
case $SCALE in
  smoke | laptop) SWEEP=${SWEEP---slots 2} ;;
  paper) SWEEP=${SWEEP-} ;;
  *) echo "error: SCALE=$SCALE: must be smoke, laptop or paper" >&2; exit 2 ;;
esac
RUNS_DIR=${RUNS_DIR:-runs/$SCALE} OUT=${OUT:-figures/$SCALE}
no_control_characters RUNS_DIR OUT
[[ -z $ENVS || $ENVS == *[![:space:]]* ]] || wrong "ENVS='$ENVS': has no name; leave it out for the figure's own list"

# The flags of each algorithm at each scale, in one place, so that figures which need the same run name the same run.
# --analyse adds rows for HR Fig. 4 and changes nothing else; DQN_KDE is for the figures that need a longer run.
quick="--threads 1" games="--threads 1 --env-threads 1"
case $SCALE in
  smoke)
    SAC="--num-seeds 2 --total-timesteps 1200 --learning-starts 1000 --widths 32 32 --batch-size 64 --num-eval-episodes 1"
    SAC+=" --eval-frequency 400 --metrics-frequency 200 --metrics-samples 256 --log-frequency 100"
    SAC+=" --checkpoint-frequency 1000 --no-compile $quick"
    DQN="--total-timesteps 2000 --learning-starts 500 --buffer-size 2000 --exploration-steps 1000 --metrics-frequency 500"
    DQN+=" --metrics-samples 256 --eval-frequency 1000 --num-eval-episodes 2 --log-frequency 250"
    DQN+=" --checkpoint-frequency 1000 --no-compile $games --analyse"
    DQN_KDE=$DQN
    PPO="--total-timesteps 4096 --metrics-frequency 1024 --metrics-samples 256 --log-frequency 1024"
    PPO+=" --checkpoint-frequency 2048 --no-compile $games"
    PQN="--num-envs 32 --num-minibatches 8 --total-timesteps 8192 --eval-frequency 2048 --metrics-frequency 2048"
    PQN+=" --metrics-samples 256 --log-frequency 1024 --checkpoint-frequency 4096 --no-compile $games" ;;
  laptop)
    SAC="--num-seeds 3 --total-timesteps 6000 --learning-starts 1000 --widths 128 128 --batch-size 128"
    SAC+=" --eval-frequency 1000 --metrics-frequency 1000 --log-frequency 500 --checkpoint-frequency 2000 $quick"
    DQN="--total-timesteps 25000 --learning-starts 2500 --buffer-size 25000 --exploration-steps 12500"
    DQN+=" --metrics-frequency 2500 --eval-frequency 12500 --checkpoint-frequency 12500 $games"
    DQN_KDE="--total-timesteps 75000 --learning-starts 7500 --buffer-size 75000 --exploration-steps 40000"
    DQN_KDE+=" --metrics-frequency 7500 --eval-frequency 15000 $games --analyse"
    PPO="--total-timesteps 60000 --metrics-frequency 15000 --checkpoint-frequency 30000 $games"
    PQN="--total-timesteps 60000 --eval-frequency 15000 --metrics-frequency 15000 --checkpoint-frequency 30000 $games" ;;
  paper)  # 1M steps and 10 seeds, in one process (CR); 10M steps, or 40M frames, and 5 seeds (HR): the scripts' defaults
    SAC="--num-seeds 10" DQN="--seed {1..5} --analyse" PPO="--seed {1..5}" PQN="--seed {1..5}"
    DQN_KDE="--seed 1 --analyse" ;;
esac

PQN_CELLS="--activation {relu,tanh,sigmoid,tanh_hr,relu_hr,crelu}"  # of HR Figs. 1, 9 and 19 to 25
PQN_VARIANTS=(relu tanh sigmoid tanh_hr relu_hr crelu)              # what the figures call them
if [[ $SCALE != laptop ]]; then
  PQN_CELLS="{$PQN_CELLS,--activation relu --redo}"
  PQN_VARIANTS+=("relu, ReDo")
fi

one_of() {  # one_of LIST...: {a,b,c} from names separated by blanks
  local names
  read -ra names <<< "${*//[$'\n\t']/ }"  # a pattern among them is not expanded to file names
  (IFS=,; echo "{${names[*]}}")
}

no_environments() {  # for figures that train in none
  [[ -z $ENVS ]] || wrong "ENVS=$ENVS: ${0##*/} has no environments; leave it out"
}

environments() {  # environments SMOKE LAPTOP PAPER: the list of that name for this scale, or ENVS, as alternatives of a grid
  local list=$3
  if [[ $SCALE == smoke ]]; then list=$1; elif [[ $SCALE == laptop ]]; then list=$2; fi
  list="$list[@]"
  if [[ -n $ENVS ]]; then one_of "$ENVS"; else one_of "${!list}"; fi
}

run_sweep() {  # run_sweep NAME GRID...: trains what is not finished yet
  local name=$1 options
  shift
  read -ra options <<< "${SWEEP//[$'\n\t']/ }"
  attend "$PYTHON" scripts/sweep.py "$@" --name "$name-$SCALE" --runs-dir "$RUNS_DIR" ${DRY_RUN:+--dry-run} \
    ${options[@]+"${options[@]}"}
}

figure() {  # figure SUBCOMMAND [OPTIONS]: draws it; a sweep that was only written for Slurm has nothing to draw yet
  local name=$1
  shift
  set -- "$PYTHON" figures.py "$name" --runs "$RUNS_DIR" --out "$OUT" "$@"
  if [[ -n $DRY_RUN || " $SWEEP" == *" --slurm"* ]]; then show "$@"; else "$@"; fi
}
