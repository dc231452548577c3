#!/bin/bash
# A run under Slurm: one task a GPU, started by srun alone; it saves itself before its time is up,
# goes back into the queue, and goes on where it was.
# command: sbatch scripts/slurm.sh pretrain/run.py configs/pretrain/vit_base.yaml run.dir=runs/mine \
#              data.shards='shards/mine/train-*.tar'
#          from the checkout. What sbatch is told (--nodes, --time, --partition) wins over what
#          stands here. PYTHON names another interpreter.
# source:  --signal without "B:" goes to the tasks, not to this script. 300 s before the end they get
#          SIGUSR1, commit a checkpoint, and leave with run.requeue_status (75).
# result:  tried with stand-ins for srun and scontrol (tests/test_configs.py); not yet under Slurm.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -u

export REQUEUE_STATUS="${REQUEUE_STATUS:-75}" # if you change run.requeue_status, say so here too
export STATUSES="$PWD/slurm-$SLURM_JOB_ID.statuses" # where all tasks can write; those above 0
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a machine
rm -f "$STATUSES"

# What a task does. All of a machine's tasks see all of its GPUs and take the one of their LOCAL_RANK.
# At the first status that is not 0 srun kills the tasks that are still on their way out, and ends
# with 137 for those. So a task that leaves to be requeued ends with 0, and all note their status.
# shellcheck disable=SC2016 # the tasks expand it
task='
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_WORLD_SIZE="${SLURM_NTASKS_PER_NODE:-1}"
child=
trap "signalled=yes; kill -USR1 \"\$child\"" USR1
trap "signalled=yes; kill -TERM \"\$child\"" TERM
"$@" &
child=$!
signalled=yes
while [ "$signalled" ]; do # a signal ends `wait` before the program ends
    signalled=
    wait "$child"
    status=$?
done
[ "$status" -eq 0 ] || echo "$status" >> "$STATUSES"
[ "$status" -eq "$REQUEUE_STATUS" ] || exit "$status"
'
srun --kill-on-bad-exit=1 --gpu-bind=none \
    bash -c "$task" task "${PYTHON:-.venv/bin/python}" "$@"
status=$?

statuses="$(cat "$STATUSES" 2> /dev/null)"
rm -f "$STATUSES"
if [ "$status" -eq 0 ] && [ "$statuses" ]; then # none but REQUEUE_STATUS
    exec scontrol requeue "$SLURM_JOB_ID"
fi
first="$(grep -vx "$REQUEUE_STATUS" <<< "$statuses" | head -n 1)"
exit "${first:-$status}"
