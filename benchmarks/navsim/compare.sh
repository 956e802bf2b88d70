#!/usr/bin/env bash
# Compares this scorer with NAVSIM v1.1's own on synthetic logs: makes logs and maps, runs NAVSIM's run_metric_caching.py,
# exports and compares plan by plan. README.md beside this says how NAVSIM is set up.
#   NAVSIM=<checkout> NUPLAN=<checkout> NAVSIM_PYTHON=<its Python> bash benchmarks/navsim/compare.sh WORK_FOLDER [LOGS]
set -euo pipefail
if [ -z "${NAVSIM:-}" ] || [ -z "${NUPLAN:-}" ] || [ -z "${NAVSIM_PYTHON:-}" ]; then
    echo "skipped: NAVSIM is not installed here (set NAVSIM, NUPLAN and NAVSIM_PYTHON)"
    exit 0
fi
work=$(realpath -m "$1")
logs=$work/data/navsim_logs/mini
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD:$NAVSIM:$NUPLAN${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 HYDRA_FULL_ERROR=1
export NUPLAN_MAP_VERSION=nuplan-maps-v1.0 NUPLAN_MAPS_ROOT=$work/data/maps OPENSCENE_DATA_ROOT=$work/data
export NAVSIM_EXP_ROOT=$work/exp NAVSIM_DEVKIT_ROOT=$NAVSIM
$NAVSIM_PYTHON -m benchmarks.navsim.make_data "$work/data" --logs "${2:-24}"
$NAVSIM_PYTHON "$NAVSIM/navsim/planning/script/run_metric_caching.py" train_test_split=mini worker=sequential \
    train_test_split.scene_filter.frame_interval=7
$NAVSIM_PYTHON -m envs.driving.navsim_export --metric_cache "$work/exp/metric_cache" --logs_path "$logs" --out "$work/set"
$NAVSIM_PYTHON -m benchmarks.navsim.compare_scores "$work/set" "$work/exp/metric_cache" "$logs" "$work/scores.npz"
