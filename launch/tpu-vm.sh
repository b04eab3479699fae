#!/usr/bin/env bash
# Stage 2 of Janus-Pro-1B on the hosts of one TPU VM slice (v5litepod-256: 64 hosts of 4 chips).
#
#   bash launch/tpu-vm.sh              starts it, and again while it ends with 75
#   bash launch/tpu-vm.sh stop         stops it: a checkpoint on all hosts, status 75
#
# Set the four names. SHARED is a directory that all hosts have mounted (Filestore), with `data/` and
# `runs/` below it and a virtual environment in `venv/`, in which a checkout was installed with
# `pip install ".[tpu,logging]"`.
set -euo pipefail

TPU=my-slice
PROJECT=my-project
ZONE=us-east5-b
SHARED=/mnt/janus

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --project="$PROJECT" --zone="$ZONE" \
    --worker=all --command="$1"
}

# Left by `stop` beside this script's caller, so that the loop below ends too.
STOPPED=".stopped-$TPU"

if [[ "${1:-}" == stop ]]; then
  touch "$STOPPED"
  # One process is enough: they agree on the step. The brackets keep the pattern from matching the
  # command line that it is on.
  on_all_hosts 'pkill -TERM -f "[j]anus-jax train" || true'
  exit
fi

# The hosts find one another by themselves. gcloud ends with the status of a host that failed.
train="cd $SHARED && exec venv/bin/janus-jax train janus-pro-1b-stage2 \
--run-dir=runs/janus-pro-1b-stage2 --resume --watch.tensorboard"
rm -f "$STOPPED"
status=75
while [[ $status -eq 75 && ! -e $STOPPED ]]; do
  status=0
  on_all_hosts "$train" || status=$?
done
exit "$status"
