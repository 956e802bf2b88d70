#!/usr/bin/env bash
# torch 2.13.0 (CPU build): torch.utils.flop_counter.FlopCounterMode counts nothing for
# torch.nn.functional.scaled_dot_product_attention on a CPU, whose fused operation has no formula in its table. The same
# attention written as two matrix products is counted in full. A transformer's FLOP on a CPU are therefore too few.
#
# Output seen:
#   fused attention: 0 FLOP
#   two products and a softmax: 16384 FLOP
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/count.py" <<'PYTHON'
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

tokens = torch.randn(1, 2, 16, 8)
with FlopCounterMode(display=False) as fused:
    scaled_dot_product_attention(tokens, tokens, tokens)
with FlopCounterMode(display=False) as written_out:
    (tokens @ tokens.transpose(-1, -2)).softmax(dim=-1) @ tokens
print(f"fused attention: {fused.get_total_flops()} FLOP")
print(f"two products and a softmax: {written_out.get_total_flops()} FLOP")
PYTHON
"$folder/venv/bin/python" "$folder/count.py" > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
fused attention: 0 FLOP
two products and a softmax: 16384 FLOP
EXPECTED
