#!/usr/bin/env bash
# Stage 2 of Janus-Pro-1B on one v5e slice of 256 chips, through xpk (pip install xpk).
#
#   bash launch/xpk.sh
#
# Set the five names. IMAGE is built from a checkout with `pip install ".[tpu,logging]"`. STORAGE is one
# that `xpk storage attach` has mounted in every workload, shared by all hosts and with file locks
# (Filestore); the data sets and the run lie on it.
set -euo pipefail

CLUSTER=my-cluster
PROJECT=my-project
ZONE=us-east5-b
IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/janus-jax:latest
STORAGE=/storage

# Status 75 is a run that was stopped and saved: it is started again, and resumes. `exec` hands SIGTERM
# to the program itself.
xpk workload create \
  --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --workload=janus-1b-stage2 \
  --tpu-type=v5litepod-256 \
  --docker-image="$IMAGE" \
  --max-restarts=100 \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --command="cd $STORAGE && exec janus-jax train janus-pro-1b-stage2 \
--run-dir=runs/janus-pro-1b-stage2 --resume --watch.tensorboard"
