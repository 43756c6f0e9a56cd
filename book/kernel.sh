#!/bin/sh
# Starts one evcxr kernel. Each works in its own copy of the folder that
# `cargo xtask notebooks --setup` has built, so that it compiles only its cells.
root=$(cd "$(dirname "$0")/.." && pwd)
kernels=$root/target/evcxr-kernels
if [ -z "$EVCXR_TMPDIR" ]; then
  # A folder is named by its kernel's process; those of dead ones go.
  for old in "$kernels"/*; do
    kill -0 "${old##*/}" 2>/dev/null || rm -rf "$old"
  done
  EVCXR_TMPDIR=$kernels/$$
  trap 'rm -rf "$EVCXR_TMPDIR"' EXIT
  mkdir -p "$EVCXR_TMPDIR"
  cp -a "$root/target/evcxr-template/." "$EVCXR_TMPDIR/"
fi
LIBTORCH=${LIBTORCH:-$root/.libtorch/torch}
LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export EVCXR_TMPDIR LIBTORCH LD_LIBRARY_PATH
"${EVCXR_JUPYTER:-evcxr_jupyter}" --control_file "$1" &
kernel=$!
trap 'kill "$kernel" 2>/dev/null; exit 143' TERM HUP
trap '' INT
wait "$kernel"
