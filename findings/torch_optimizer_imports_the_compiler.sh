#!/usr/bin/env bash
# torch 2.13.0: making the first optimiser imports torch's compiler, torch._dynamo with sympy, though nothing is compiled.
# That takes about 1 s of CPU time, as much as `import torch` itself, before a program's first step.
#
# Output seen:
#   imported by `import torch`: False
#   imported by torch.optim.Adam: True, sympy too: True
#   more than 0.2 s of CPU time: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/optimiser.py" <<'PYTHON'
import sys
import time

import torch

print("imported by `import torch`:", "torch._dynamo" in sys.modules)
layer = torch.nn.Linear(2, 2)
started = time.process_time()
torch.optim.Adam(layer.parameters())
seconds = time.process_time() - started
print(f"imported by torch.optim.Adam: {'torch._dynamo' in sys.modules}, sympy too: {'sympy' in sys.modules}")
print("more than 0.2 s of CPU time:", seconds > 0.2)
PYTHON
"$folder/venv/bin/python" "$folder/optimiser.py" > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
imported by `import torch`: False
imported by torch.optim.Adam: True, sympy too: True
more than 0.2 s of CPU time: True
EXPECTED
