#!/usr/bin/env bash
# bash tests/slurm/start.sh [FOLDER [NODES]]    start a real Slurm on this machine, without systemd
#
# NODES (default 1) is into how many nodes the machine is divided, each with its share of cores and memory.
# Needs root and the programs: apt-get install slurm-wlm (which brings munge). Everything it writes is in FOLDER
# (default /tmp/bench-slurm), but munge's key where there is none. A cluster that answers already is left as it is.
# Accounting is off, so that sacct fails: the door must do without. To use it from a shell:
#
#     export SLURM_CONF=/tmp/bench-slurm/slurm.conf
set -euo pipefail
folder=${1:-/tmp/bench-slurm}
nodes=${2:-1}
export SLURM_CONF=$folder/slurm.conf

[ "$(id -u)" = 0 ] || { echo "start.sh: needs root: a Slurm node starts jobs as other users" >&2; exit 1; }
for program in munged slurmctld slurmd sinfo; do
    command -v $program >/dev/null || { echo "start.sh: no $program: apt-get install slurm-wlm" >&2; exit 1; }
done
up() { [ "$(timeout 10 sinfo --noheader --states=idle,mixed,allocated --format=%D 2>/dev/null)" = "$nodes" ]; }
[ -f "$SLURM_CONF" ] && up && exit 0

mkdir -p "$folder"/{state,log}
if ! munge --no-input 2>/dev/null | unmunge >/dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || mungekey --create --keyfile /etc/munge/munge.key
    install -d -o munge -g munge /run/munge /var/log/munge /var/lib/munge
    runuser -u munge -- munged
fi

host=$(hostname -s)
# Nodes are named by addresses, so that ranks find each other by the names of their nodes.
port=$((16800 + 20 * nodes)) # clusters of different sizes do not meet
cores=$(($(nproc) / nodes))
mebibytes=$(($(awk '/^MemTotal/ { print $2 }' /proc/meminfo) / 1024 / nodes))
cat > "$SLURM_CONF" <<CONF
ClusterName=bench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
SlurmctldPort=$port
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
$(for i in $(seq "$nodes"); do
    echo "NodeName=127.0.0.$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i))" \
        "CPUs=$((cores > 0 ? cores : 1)) RealMemory=$mebibytes"
done)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF

slurmctld
for i in $(seq "$nodes"); do slurmd -N "127.0.0.$i"; done
for _ in $(seq 60); do
    up && exit 0
    sleep 0.5
done
echo "start.sh: the nodes do not come up; see $folder/log" >&2
sinfo >&2 || true
exit 1
