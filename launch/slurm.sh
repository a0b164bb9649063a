#!/bin/bash
# Trains on several machines of a SLURM cluster, one process on each with all its GPUs:
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh --config=configs/brave_v_a.py \
#     --workdir=/shared/runs/a --config.data.train=/shared/data/train
#
# What follows the script's name is what `python -m common.train` takes. Options of sbatch go before
# it and win over those below. Before the time is up, and where the job is preempted, all processes
# save after the same step and end; the job then queues again and continues. So it does where a
# machine is lost. A mistake (exit status 1 or 2) ends it.
#
#   PYTHON=...        the interpreter, where it is not `python`
#   MAX_RESTARTS=...  how often the job queues again, at most (100)

#SBATCH --job-name=zoetrope
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt
#SBATCH --signal=TERM@300

set -u
export PYTHONUNBUFFERED=1

# Processes end by themselves when one of them is lost, and say why: srun is not to cut them short.
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m common.train "$@" &
wait $!
status=$?

case $status in
  75 | 134 | 135 | 137 | 139 | 143)  # another was lost; crashed or killed; stopped, its state saved
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
      echo "exit status $status: the job queues again."
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $status
