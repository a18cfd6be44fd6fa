#!/usr/bin/env bash
# Runs the file of `sweep.py --slurm` on a real Slurm of one node, unpacked from Debian's packages: nothing is installed.
# Cancels one task on its way, submits the same file again, and checks that every run ended once and none began anew.
#
#   scripts/drill_slurm.sh          # Debian or Ubuntu, as root, with apt's lists (apt-get update); about 2 minutes
#
# Everything listens on loopback and accepts anybody (auth/none): only for a machine of your own.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(command -v "${PYTHON:-python}") ROOT=$PWD TEMP=$(mktemp -d) PIDS=()
stop() {
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  if [ "$1" != 0 ]; then tail -n 15 "$TEMP"/*.log "$TEMP"/runs/sweeps/drill/slurm-*.log >&2; fi
  rm -rf "$TEMP"
}
trap 'stop $?' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
wait_for() {  # a command, for at most two minutes
  for _ in $(seq 600); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.2; done
  fail "waited in vain for: $*"
}

mkdir "$TEMP"/{debs,root,state,spool}
cd "$TEMP/debs"
apt-get -o APT::Sandbox::User=root download -qq slurmctld slurmd slurm-client slurm-wlm-basic-plugins libhwloc15 libmunge2
for deb in *.deb; do dpkg -x "$deb" "$TEMP/root"; done
cd "$TEMP"
plugins=$(echo "$TEMP"/root/usr/lib/*/slurm-wlm) host=$(hostname -s)
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
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=10
CONF
root/usr/sbin/slurmctld-wlm -D > slurmctld.log 2>&1 & PIDS+=($!)
root/usr/sbin/slurmd-wlm -D -d "$TEMP/root/usr/sbin/slurmstepd-wlm" > slurmd.log 2>&1 & PIDS+=($!)
wait_for bash -c 'sinfo -h -o %t | grep -q idle'
echo "$(sinfo --version) is up, one node"

grid="$ROOT/tests/toy_training.py --seed {1..4} --total 30 --pause 0.2"
sweep() { "$PYTHON" "$ROOT/scripts/sweep.py" "$grid" --name drill "$@"; }
sweep --slurm sweep.sbatch --slots 2
running() { squeue -h -r -t R | wc -l; }
none_left() { [ -z "$(squeue -h)" ]; }
job=$(sbatch --parsable sweep.sbatch)
wait_for bash -c "grep -q '^5 ' runs/*__s1__*/steps.txt"
[ "$(running)" = 2 ] || fail "$(running) tasks run, not 2 as in --array=0-3%2"
scancel --batch --signal=TERM "${job}_0" || true  # says "try again later", and has done it
wait_for none_left
[ "$(cat runs/*/finished.txt | wc -l)" = 3 ] || fail "not 3 of 4 runs are finished after one was cut off"
sbatch --parsable sweep.sbatch > /dev/null
wait_for none_left
sweep --limit 0
for run in runs/toy__*; do
  pids=$(cut -d' ' -f2 "$run/steps.txt" | uniq | wc -l) last=$(tail -n 1 "$run/steps.txt" | cut -d' ' -f1)
  [ "$(wc -l < "$run/finished.txt") $last" = "1 30" ] || fail "$run did not end once"
  [ "$(grep -c '^1 ' "$run/steps.txt")" = 1 ] || fail "$run began anew"
  echo "$run: $pids process(es)"
done
[ "$(cut -d' ' -f2 runs/*__s1__*/steps.txt | uniq | wc -l)" = 2 ] || fail "the cancelled run was not resumed"
echo "passed: 4 runs on a real Slurm, 2 at a time, one cut off and resumed; every run ended once"
