#!/bin/sh
# Starts one evcxr kernel. Each works in its own copy of the folder that
# `cargo xtask notebooks --setup` has built, so that it compiles only its cells.
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$EVCXR_TMPDIR" ]; then
  mkdir -p "$root/target/evcxr-kernels"
  EVCXR_TMPDIR=$(mktemp -d "$root/target/evcxr-kernels/XXXXXX")
  trap 'rm -rf "$EVCXR_TMPDIR"' EXIT
  trap 'exit 143' TERM HUP
  cp -a "$root/target/evcxr-template/." "$EVCXR_TMPDIR/"
fi
LIBTORCH=${LIBTORCH:-$root/.libtorch/torch}
LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export EVCXR_TMPDIR LIBTORCH LD_LIBRARY_PATH
"${EVCXR_JUPYTER:-evcxr_jupyter}" --control_file "$1"
