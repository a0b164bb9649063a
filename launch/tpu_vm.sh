#!/bin/bash
# Trains on all hosts of a slice of TPU VMs, from any machine that has gcloud:
#
#   export TPU=my-slice ZONE=us-west4-a
#   launch/tpu_vm.sh install            # this checkout and what it needs, on every host
#   launch/tpu_vm.sh train --config=configs/brave_v_a.py --workdir=/shared/runs/a \
#     --config.data.train=/shared/data/train
#   launch/tpu_vm.sh stop               # all hosts save after the same step and end
#
# /shared stands for a file system that all hosts mount (Filestore). The processes find each other
# through the metadata of the slice. Where one of them is lost the run is started again, at most
# MAX_RESTARTS times (100).

set -euo pipefail
: "${TPU:?is to be the name of the slice}" "${ZONE:?is to be its zone}"

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case ${1:-} in
  install)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:zoetrope.tar.gz" --zone="$ZONE" --worker=all
    on_all 'set -e; rm -rf zoetrope; mkdir zoetrope; tar -xzf zoetrope.tar.gz -C zoetrope; cd zoetrope
      python3 -m venv .venv; .venv/bin/pip install --quiet --upgrade pip
      .venv/bin/pip install --quiet --editable ".[tpu]"'
    ;;
  train)
    shift
    command=$(printf '%q ' "$@")
    for ((start = 0; start <= ${MAX_RESTARTS:-100}; start++)); do
      status=0
      on_all "cd zoetrope && PYTHONUNBUFFERED=1 exec .venv/bin/python -m common.train $command" || status=$?
      # 75: another process was lost; from 129 on: killed, but by Ctrl-C, or stopped with its state saved.
      case $status in 75 | 129 | 13[1-9] | 14[0-2]) ;; *) exit "$status" ;; esac
      echo "A process was lost: starting again, the run continues."
    done
    exit 75
    ;;
  stop)
    on_all "pkill -TERM -o -f 'python -m common[.]train'"
    ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
