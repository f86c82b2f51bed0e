#!/usr/bin/env bash
# bash tests/slurm/start.sh [FOLDER]    start a real one-node Slurm on this machine, without systemd
#
# Needs root and the programs: apt-get install slurm-wlm (which brings munge). Everything it writes is in FOLDER
# (default /tmp/bench-slurm), but munge's key where there is none. A cluster that answers already is left as it is.
# Accounting is off, so that sacct fails: the door must do without. To use it from a shell:
#
#     export SLURM_CONF=/tmp/bench-slurm/slurm.conf
set -euo pipefail
folder=${1:-/tmp/bench-slurm}
export SLURM_CONF=$folder/slurm.conf

[ "$(id -u)" = 0 ] || { echo "start.sh: needs root: a Slurm node starts jobs as other users" >&2; exit 1; }
for program in munged slurmctld slurmd sinfo; do
    command -v $program >/dev/null || { echo "start.sh: no $program: apt-get install slurm-wlm" >&2; exit 1; }
done
answers() { [ "$(timeout 10 sinfo --noheader --format=%T 2>/dev/null)" = "$1" ]; }
[ -f "$SLURM_CONF" ] && { answers idle || answers mixed || answers allocated; } && exit 0

mkdir -p "$folder"/{state,spool,log}
if ! munge --no-input 2>/dev/null | unmunge >/dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || mungekey --create --keyfile /etc/munge/munge.key
    install -d -o munge -g munge /run/munge /var/log/munge /var/lib/munge
    runuser -u munge -- munged
fi

node=$(hostname -s)
# "NodeName=... CPUs=2 Boards=1 ... RealMemory=24105", as slurmd finds this machine
hardware=$(slurmd -C | head -n 1 | cut -d ' ' -f 2-)
cat > "$SLURM_CONF" <<CONF
ClusterName=bench
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
NodeName=$node NodeAddr=127.0.0.1 $hardware State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF

slurmctld
slurmd
for _ in $(seq 60); do
    answers idle && exit 0
    sleep 0.5
done
echo "start.sh: the node does not come up; see $folder/log" >&2
sinfo >&2 || true
exit 1
