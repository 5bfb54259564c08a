#!/bin/bash
# Trains within the allocation of a batch script, and has Slurm start the job again where that helps.
# nvidia.sbatch and amd.sbatch end with it; the arguments are those of launch/pretrain.py.
#
# PYTHON  what runs Python, default "python"; in a container for example
#         PYTHON="apptainer exec --nv elc_bert.sif python"

MAX_LOSSES=3  # times that a job is started again after it lost a rank, since a time limit or pre-emption

# scancel, and a pre-emption, send SIGTERM to this shell as well. It must outlive it, to see how training ends.
trap : TERM

# Every task is a rank. Slurm's signals go to all of them, and they end together. But after a crash the others
# wait for what will not come: they are killed a minute after the first has ended. (--kill-on-bad-exit would
# kill those that are about to end with the status that matters.) srun ends with the highest status of all.
# shellcheck disable=SC2086  # PYTHON may be several words
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    ${PYTHON:-python} launch/pretrain.py --resume auto "$@"
status=$?

again() {
    # "Incomplete": not if Slurm is ending the job. After scancel it is to stay ended, and a job that is
    # pre-empted without a time of grace is put back by Slurm.
    echo "slurm: status $status; job $SLURM_JOB_ID asks to be started again"
    scontrol requeue Incomplete "$SLURM_JOB_ID"  # which kills this script
}

losses="elc-bert-$SLURM_JOB_ID.losses"
if [ $status -eq 75 ]; then  # told to stop (time limit, pre-emption): there is a checkpoint of this very step
    rm -f "$losses"
    again
elif [ $status -eq 76 ] || [ $status -gt 128 ]; then  # a rank was lost; from 129 on, killed by a signal
    echo >> "$losses"
    if [ "$(wc -l < "$losses")" -le $MAX_LOSSES ]; then
        again
    else
        echo "slurm: lost ranks $((MAX_LOSSES + 1)) times: job $SLURM_JOB_ID is not started again" >&2
    fi
fi
exit $status  # 0: done. 1: a mistake, told in one line above: to start again would not help
