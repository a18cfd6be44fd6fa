#!/usr/bin/env bash
# Runs the file of `sweep.py --slurm` on a real Slurm of one node, unpacked from Debian's packages: nothing is installed.
# Cancels one running task, submits the same file again, and checks that every run ended once and none started over. Then
# cuts a training into slices of at most a minute with Slurm's own time limit: every slice must get further. All of it
# happens in a folder whose name has blanks, quotes and a %.
#
#   scripts/drill_slurm.sh                 # Debian or Ubuntu, as root, with apt's lists (apt-get update); about 8 minutes
#   TRAINING=toy scripts/drill_slurm.sh    # the slices by tests/toy_training.py instead of a small sac_continuous.py
#
# Everything listens on loopback and accepts anybody (auth/none): use it only on a machine of your own.
set -euo pipefail
EXAMPLE=TRAINING=toy
source "$(dirname "$0")/rules.sh"
[[ -z $DRY_RUN ]] || wrong "DRY_RUN=$DRY_RUN: a drill has nothing to print; leave it out"
TRAINING=${TRAINING:-sac}
[[ $TRAINING == sac || $TRAINING == toy ]] || wrong "TRAINING=$TRAINING: must be sac or toy"
[[ $(id -u) == 0 ]] || wrong "drill_slurm.sh: must be run as root, which Slurm's daemons need"
PYTHON=$(command -v "$PYTHON") ROOT=$PWD TEMP=$(mktemp -d) PIDS=()
[[ $PYTHON == /* ]] || PYTHON=$ROOT/$PYTHON
WORK="$TEMP/it's 100%j \"new\""
stop() {
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  if [ "$1" != 0 ]; then tail -n 15 "$TEMP"/*.log "$WORK"/runs/sweeps/*/slurm-*.log >&2 || true; fi
  rm -rf "$TEMP"
}
trap 'stop $?' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
wait_for() {  # a command, for at most two minutes
  for _ in $(seq 600); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.2; done
  fail "waited in vain for: $*"
}

mkdir "$TEMP"/{debs,root,state,spool} "$WORK"
cd "$TEMP/debs"
apt-get -o APT::Sandbox::User=root download -qq slurmctld slurmd slurm-client slurm-wlm-basic-plugins libhwloc15 libmunge2
for deb in *.deb; do dpkg -x "$deb" "$TEMP/root"; done
cd "$TEMP"
plugins=$(echo "$TEMP"/root/usr/lib/*/slurm-wlm)
host=$(hostname -s)
export LD_LIBRARY_PATH=$plugins:${plugins%/*} SLURM_CONF=$TEMP/slurm.conf PATH=$TEMP/root/usr/bin:$PATH
cat > slurm.conf <<CONF
ClusterName=drill
SlurmctldHost=$host(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=36817
SlurmdPort=36818
AuthType=auth/none
CredType=cred/none
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PluginDir=$plugins
StateSaveLocation=$TEMP/state
SlurmdSpoolDir=$TEMP/spool
SlurmctldPidFile=$TEMP/slurmctld.pid
SlurmdPidFile=$TEMP/slurmd.pid
ReturnToService=2
KillWait=20
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=10
CONF
root/usr/sbin/slurmctld-wlm -D > slurmctld.log 2>&1 & PIDS+=($!)
root/usr/sbin/slurmd-wlm -D -d "$TEMP/root/usr/sbin/slurmstepd-wlm" > slurmd.log 2>&1 & PIDS+=($!)
wait_for bash -c 'sinfo -h -o %t | grep -q idle'
echo "$(sinfo --version) is up, one node"
cd "$WORK"

grid="$ROOT/tests/toy_training.py --seed {1..4} --total 30 --pause 0.2"
sweep() { "$PYTHON" "$ROOT/scripts/sweep.py" "$grid" --name drill "$@"; }
sweep --slurm sweep.sbatch --slots 2
running() { squeue -h -r -t R | wc -l; }
none_left() { [ -z "$(squeue -h)" ]; }
job=$(sbatch --parsable sweep.sbatch)
wait_for bash -c "grep -q '^5 ' runs/*__s1__*/steps.txt"
[ "$(running)" = 2 ] || fail "$(running) tasks run, not 2 as in --array=0-3%2"
scancel --batch --signal=TERM "${job}_0" || true  # prints "try again later", although it has done it
wait_for none_left
[ "$(cat runs/*/finished.txt | wc -l)" = 3 ] || fail "not 3 of 4 runs are finished after one was cut off"
sbatch --parsable sweep.sbatch > /dev/null
wait_for none_left
sweep --limit 0
for run in runs/toy__*; do
  pids=$(cut -d' ' -f2 "$run/steps.txt" | uniq | wc -l) last=$(tail -n 1 "$run/steps.txt" | cut -d' ' -f1)
  [ "$(wc -l < "$run/finished.txt") $last" = "1 30" ] || fail "$run did not end once"
  [ "$(grep -c '^1 ' "$run/steps.txt")" = 1 ] || fail "$run started over"
  echo "$run: $pids process(es)"
done
[ "$(cut -d' ' -f2 runs/*__s1__*/steps.txt | uniq | wc -l)" = 2 ] || fail "the cancelled run was not resumed"
[ "$(ls runs/sweeps/drill/slurm-"${job}"_*.log | wc -l)" = 4 ] || fail "Slurm's logs are not where they should be"
[ "$(ls "$TEMP" | grep -c '^it')" = 1 ] || fail "a name was cut at its blanks"
echo "passed: 4 runs on a real Slurm, 2 at a time, one cut off and resumed; every run ended once"

# The first slice is cancelled after 30 seconds; the others have a limit of one minute, which Slurm announces 5 to 35
# seconds ahead, since it checks twice a minute.
if [[ $TRAINING == toy ]]; then
  grid="$ROOT/tests/toy_training.py --env-id slices --seed {1..2} --total 160 --pause 0.5 --save-every 100000"
  last_step() { tail -n 1 "$1/steps.txt" | cut -d' ' -f1; }
else
  grid="sac_continuous.py --env-id dm_control/cartpole-swingup-v0 --seed 1 --total-timesteps 12000 --learning-starts 1000"
  grid+=" --widths 32 32 --batch-size 64 --eval-frequency 4000 --num-eval-episodes 1 --metrics-frequency 4000"
  grid+=" --log-frequency 100 --checkpoint-frequency 1000000 --checkpoint-minutes 0.2 --threads 1 --no-compile --no-tensorboard"
  last_step() { tail -n 1 "$1/scalars.csv" | cut -d, -f1; }
fi
slices() { "$PYTHON" "$ROOT/scripts/sweep.py" "$grid" --name slices --runs-dir slices "$@"; }
slices --slurm slices.sbatch
declare -A before=() through=()
for slice in 1 2 3 4 5 6 7 8 9 10; do
  job=$(sbatch --time=1 --signal=B:TERM@5 --parsable slices.sbatch)
  if ((slice == 1)); then  # scancel signals the task, which passes it on, and the training itself: together one request
    sleep 30
    scancel "$job"
  fi
  wait_for none_left
  left=0
  for run in slices/*__*; do
    [[ -z ${through[$run]-} ]] || continue
    step=$(last_step "$run")
    echo "slice $slice: $run is at step $step"
    ((step > ${before[$run]:-0})) || fail "it got no further"
    before[$run]=$step
    if grep -q '"status": "finished"' "$run/meta.json"; then
      through[$run]=yes
    else
      left=$((left + 1))
      grep -q '"status": "interrupted"' "$run/meta.json" || fail "it was not interrupted cleanly"
    fi
  done
  ((left > 0)) || break
done
((left == 0)) || fail "$left runs are not finished after $slice slices"
((slice > 1)) || fail "one slice was enough for everything: nothing was cut off"
if [[ $TRAINING == toy ]]; then
  for run in slices/*__*; do
    [ -z "$(cut -d' ' -f1 "$run/steps.txt" | uniq -d)" ] || fail "$run did a step twice: one slice saved too little"
  done
fi
slices --limit 0
echo "passed: the training finished in $slice slices, each of which got further"
