#!/usr/bin/env bash
# Checks and measures downhill on this machine's GPU, in less than 8 minutes: the tests,
# then the kernels, then DeepSeek-7B, then the rest. Needs a Python 3.11 or newer with
# PyTorch 2.11.0; PYTHON names another than the first on the path. What is known is in
# gpu.json in this folder, or in $OUT, after every part; beside it gpu.txt, what this
# prints, and gpu.json.log, all that the programs say.
#   --dry-run             the same on the CPU, with tiny shapes
#   --only tests kernels  these parts alone; also deepseek-7b, r1-distill-qwen-1.5b, v2-lite
#   --minutes 5           no more after so many
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
python=${PYTHON:-python3}
out=${OUT:-$PWD}

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
[ ! -d site ] || export PYTHONPATH="$PWD/site${PYTHONPATH:+:$PYTHONPATH}"

# Tests look for their files, and for the command, where they were compiled.
root=$(cat root.txt)
if [ ! -e "$root" ]; then
    { mkdir -p "$(dirname "$root")" && ln -s "$PWD" "$root"; } ||
        echo "cannot make $root: tests that read files will fail" >&2
fi
mkdir -p target/debug
[ -e target/debug/downhill ] || ln -s "$PWD/bin/downhill" target/debug/downhill

# A cache of compiled kernels in this folder: nothing is written to anybody's home.
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$PWD/cache}"

# The JSON is in the file; here it would push the rest out of sight.
"$python" benches/gpu.py --downhill bin/downhill --bench bin/bench_gpu \
    --tests bin/book --out "$out/gpu.json" "$@" 2>&1 >/dev/null | tee "$out/gpu.txt" >&2
