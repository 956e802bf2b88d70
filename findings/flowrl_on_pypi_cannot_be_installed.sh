#!/usr/bin/env bash
# flowrl 0.2.0 on PyPI (a source archive only) cannot be installed: a header that its C++ extension includes is not in the
# archive. Nor are five modules that its own files import, flowrl.flow and flowrl.module among them. Its offline
# agents are IQL, Diffusion Q-learning and others, not flow Q-learning (FQL).
#
# Output seen:
#   pip install: fatal error: sumtree.h: No such file or directory
#   imported, not in the archive: flowrl.config flowrl.flow flowrl.functional flowrl.module flowrl.utils
#   offline agents: dac dql dtql iql ivr
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet pybind11==3.0.1 setuptools==80.9.0
"$pip" download --quiet --no-deps --no-build-isolation --dest "$folder" flowrl==0.2.0
tar -xzf "$folder/flowrl-0.2.0.tar.gz" -C "$folder"
cd "$folder/flowrl-0.2.0"
{
    log=$("$pip" install --no-deps --no-build-isolation "$folder/flowrl-0.2.0.tar.gz" 2>&1) || true
    reason=$(grep -o "fatal error: .*" <<< "$log")
    echo "pip install: $reason"
    imported=$(grep -rhoE "(from|import) flowrl\.[a-z_]+" flowrl --include="*.py" | grep -oE "flowrl\.[a-z_]+" | sort -u)
    echo "imported, not in the archive:" $(for name in $imported; do ls "${name/.//}"* >/dev/null 2>&1 || echo "$name"; done)
    echo "offline agents:" $(cd flowrl/agent/offline && ls *.py | grep -v __init__ | sed "s/\.py//")
} > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
pip install: fatal error: sumtree.h: No such file or directory
imported, not in the archive: flowrl.config flowrl.flow flowrl.functional flowrl.module flowrl.utils
offline agents: dac dql dtql iql ivr
EXPECTED
