#!/usr/bin/env bash
# Checks and measures downhill on this machine's GPU, in less than 8 minutes. Needs a
# Python 3 with PyTorch 2.11.0; PYTHON names another than the first on the path. The
# last line of the output is one JSON object, which is also in gpu.json (or in $OUT).
#   --dry-run   the same on the CPU, with tiny shapes
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
python=${PYTHON:-python3}

# Where that PyTorch keeps its libraries, and NVIDIA's beside it.
libraries=$("$python" - <<'END'
import glob, importlib.metadata, os, sys
try:
    import torch
except ImportError:
    sys.exit("this Python has no PyTorch; PYTHON=... names another")
if not torch.__version__.startswith("2.11.0"):
    sys.exit(f"PyTorch {torch.__version__}; these programs are built for 2.11.0")
home = os.path.dirname(torch.__file__)
beside = glob.glob(os.path.join(os.path.dirname(home), "nvidia", "*", "lib"))
print(":".join([os.path.join(home, "lib"), *sorted(beside)]))
END
)
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONUNBUFFERED=1

[ -d bin ] || tar -xzf bin.tar.gz

# Tests look for their files, and for the command, where they were compiled.
root=$(cat root.txt)
if [ ! -e "$root" ]; then
    mkdir -p "$(dirname "$root")"
    ln -s "$PWD" "$root"
fi
mkdir -p target/debug
[ -e target/debug/downhill ] || ln -s "$PWD/bin/downhill" target/debug/downhill

if compgen -G "wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target site wheels/*.whl
    export PYTHONPATH="$PWD/site${PYTHONPATH:+:$PYTHONPATH}"
fi

exec "$python" benches/gpu.py --downhill bin/downhill --bench bin/bench_gpu \
    --tests bin/book --out "${OUT:-$PWD}/gpu.json" "$@"
