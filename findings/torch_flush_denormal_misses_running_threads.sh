#!/usr/bin/env bash
# torch 2.13.0 (CPU build): torch.set_flush_denormal(True) sets the calling thread only. Threads of torch's pool that are
# running already go on computing with subnormal numbers, so that half of a parallel operation's result differs from the
# other half; called before the first parallel operation, the pool's threads inherit the setting. It returns True both
# times. Programs must call it first, and not from a function that may run after a warm-up.
#
# Output seen, shares of subnormal results of 4,194,304 products on two threads (two cores are needed):
#   called before the first parallel operation: returned True, 0.0 subnormal
#   called after it: returned True, 0.5 subnormal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/flush.py" <<'PYTHON'
import sys

import torch

first = sys.argv[1] == "before"
torch.set_num_threads(2)
if first:
    supported = torch.set_flush_denormal(True)
small = torch.full((1 << 22,), 1e-20)  # the first parallel operation
if not first:
    supported = torch.set_flush_denormal(True)
products = small * small  # 1e-40 each, below float32's smallest normal number
share = (products.view(torch.int32) != 0).float().mean().item()
when = "before the first parallel operation" if first else "after it"
print(f"called {when}: returned {supported}, {share} subnormal")
PYTHON
for when in before after; do "$folder/venv/bin/python" "$folder/flush.py" $when; done > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
called before the first parallel operation: returned True, 0.0 subnormal
called after it: returned True, 0.5 subnormal
EXPECTED
