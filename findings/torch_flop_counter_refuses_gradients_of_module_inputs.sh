#!/usr/bin/env bash
# torch 2.13.0 (CPU build): within torch.utils.flop_counter.FlopCounterMode, torch.autograd.grad with respect to a leaf
# tensor that was given to an nn.Module raises RuntimeError, because the mode's tracker of modules hooks that leaf. The
# same gradient is counted where a function takes the module's place, where the module is given a non-leaf, and with
# backward() in place of autograd.grad. Methods that follow a critic's gradient in the action meet this.
#
# Output seen:
#   module, leaf: RuntimeError
#   function, leaf: 48 FLOP
#   module, non-leaf: 48 FLOP
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/count.py" <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode

layer = torch.nn.Linear(3, 1)


def outcome(network, through_an_operation):
    actions = torch.randn(4, 3, requires_grad=True)
    try:
        with FlopCounterMode(display=False) as counter:
            value = network(actions * 1 if through_an_operation else actions)
            torch.autograd.grad(value.sum(), actions)
    except RuntimeError as error:
        return type(error).__name__
    return f"{counter.get_total_flops()} FLOP"


print("module, leaf:", outcome(layer, False))
print("function, leaf:", outcome(lambda x: torch.nn.functional.linear(x, layer.weight), False))
print("module, non-leaf:", outcome(layer, True))
PYTHON
"$folder/venv/bin/python" "$folder/count.py" > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
module, leaf: RuntimeError
function, leaf: 48 FLOP
module, non-leaf: 48 FLOP
EXPECTED
