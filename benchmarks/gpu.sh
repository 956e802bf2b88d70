#!/usr/bin/env bash
# All GPU figures of docs/performance.md in one call of under ten minutes, into the folder $OUT.
#
#   OUT=gpu_results benchmarks/gpu.sh
#   DEVICE=cpu QUICK=1 OUT=/tmp/dry benchmarks/gpu.sh     # every step but CUDA's, in a few updates each
#
# Needs Python with requirements.txt; for the ratio JAX with its CUDA plugin; for the step `gpu-tests` also pytest and
# pytest-xdist. No network: what is missing is installed from the folder of wheels $WHEELS (`pip download --no-deps`).
# A step that fails is named at the end, and the others run all the same; the exit code is then 1.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
mkdir -p "${OUT:=gpu_results}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
sizes="published quickstart" seconds=0.3 rounds=5
if [ -n "${QUICK:-}" ]; then
    sizes=quickstart seconds=0.01 rounds=1
fi
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$site
fi
if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader | tee "$OUT/card.txt"
fi

failed=()
step() { # NAME COMMAND...: runs it with its output in $OUT/log.txt too
    local name=$1
    shift
    echo "== $name (after $SECONDS s)"
    "$@" 2>&1 || failed+=("$name")
}
measure() { # MODULE ARGUMENTS...
    "$python" -m "$1" --device "$device" "${@:2}"
}
run_all() {
    step golden measure tests.golden tests/golden/*.npz
    step golden-compiled measure tests.golden --compile tests/golden/dipole.npz
    step updates measure benchmarks.throughput --size $sizes --precision highest high --seconds "$seconds" \
        --csv "$OUT/throughput.csv"
    if "$python" -c "import jax" 2>/dev/null; then
        step jax measure benchmarks.against_jax --size $sizes --precision highest high --seconds "$seconds" \
            --rounds "$rounds" --compile --csv "$OUT/against_jax.csv"
    else
        failed+=("jax (not installed)")
    fi
    if [ "$device" = cuda ]; then # graphs are bit for bit updates one by one, and the host never waits
        step gpu-tests "$python" -m pytest -n 0 tests/test_updates.py tests/test_benchmarks.py \
            -k "captured or host_wait"
    fi
    echo "== done after $SECONDS s; failed: ${failed[*]:-none}"
    [ ${#failed[@]} -eq 0 ]
}
run_all | tee "$OUT/log.txt"
