#!/bin/bash
# Train within the allocation of a batch script, and requeue the job if a restart can help.
# nvidia.sbatch and amd.sbatch end with this script; its arguments are those of launch/pretrain.py.
#
# PYTHON  command that runs Python (default: python); in a container, for example,
#         PYTHON="apptainer exec --nv elc_bert.sif python"

MAX_LOSSES=3  # number of times that a job is requeued after losing a rank, since the last time limit or preemption

# scancel and preemption also send SIGTERM to this shell, which must survive it to see how training ends.
trap : TERM

# Every task is a rank. Slurm's signals go to all of them, and they exit together. After a crash, however, the other
# ranks may wait forever, so srun kills them a minute after the first one exits. (--kill-on-bad-exit would kill ranks
# that are about to exit with the status that matters.) srun exits with the highest status of all ranks.
# shellcheck disable=SC2086  # PYTHON may consist of several words
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    ${PYTHON:-python} launch/pretrain.py --resume auto "$@"
status=$?

requeue() {
    # "Incomplete" does nothing if Slurm is already ending the job: after scancel the job must not come back, and
    # Slurm itself requeues a job that is preempted without a grace period.
    echo "slurm: status $status; requeuing job $SLURM_JOB_ID"
    scontrol requeue Incomplete "$SLURM_JOB_ID"  # this also kills this script
}

losses="elc-bert-$SLURM_JOB_ID.losses"
if [ $status -eq 75 ]; then  # stopped by a signal (time limit, preemption), with a checkpoint of the last step
    rm -f "$losses"
    requeue
elif [ $status -eq 76 ] || [ $status -gt 128 ]; then  # a rank was lost; above 128, killed by a signal
    echo >> "$losses"
    if [ "$(wc -l < "$losses")" -le $MAX_LOSSES ]; then
        requeue
    else
        echo "slurm: lost ranks $((MAX_LOSSES + 1)) times; not requeuing job $SLURM_JOB_ID" >&2
    fi
fi
exit $status  # 0: done. 1: an error, explained above; a restart would not help.
