"""Compiles an agent's pure functions with torch.compile, where that pays and a compiler is at hand.

Compiled are the losses, forward and backward (`agent.losses` names them where an update has several, else it is
`loss`), and `choose`, which is most of acting where actions are chosen among candidates. They stand in the agent's own
attributes over the methods of its class; nothing else of the agent changes, and its numbers are those of eager updates
up to rounding.
"""

import copy
import functools
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError, one_line
from envs.dataset import Dataset
from envs.task import Task
from harness.agent_tools import fresh_noise, noise_of, pure_functions, restore, state_of
from harness.config import RunConfig
from harness.devices import seeded_generator

COMPILE_SECONDS = 40.0  # that compiling an agent costs on one core with an empty cache: 13 (ReBRAC) to 60 (DQL)
ZEN_5_FAMILY = 26  # of AMD's processors; Zen 4 is 25
SAVED_SECONDS = 0.002  # that an update is shorter at least, on one core with networks of 128x2; larger ones save more


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Raises UserError where the run's `compile` is true and there is no compiler."""
    if run.compile == "true" and missing_compiler(device):
        raise UserError(f"config: compile is true, but {missing_compiler(device)}; install it, or set compile to auto")


def compile_where_it_pays(
    agent: nn.Module, run: RunConfig, task: Task, data: Dataset, updates_left: int, was_compiled: bool
) -> bool:
    """Compiles the agent if the run's `compile` asks for it, and says so; returns whether it is compiled now.

    data: the task's, on the agent's device; was_compiled: whether the run's updates so far were. Where torch cannot
    compile, `auto` says so in one line and the agent stays eager. Raises UserError for `true`.
    """
    device = data.observations.device
    if not is_wanted(run.compile, device, updates_left, was_compiled):
        return False
    batch = data.sample(run.batch_size, seeded_generator(device, run.seed), agent.batch_fields)
    rows = [min(run.eval_episodes, run.eval_environments)] if task.make_env else []
    started = time.perf_counter()
    reason = missing_compiler(device) or try_to_compile(agent, batch, rows + [1] * (run.online_steps > 0))
    if reason and run.compile == "true":
        raise UserError(f"config: compile is true, but torch cannot compile this ({reason}); set it to auto or false")
    if reason:
        print(f"not compiled: {reason}; updates are slower, and the same up to rounding", flush=True)
    else:
        print(f"compiled in {time.perf_counter() - started:.0f} s (compile: {run.compile})", flush=True)
    return not reason


def is_wanted(choice: str, device: torch.device, updates_left: int, was_compiled: bool) -> bool:
    """Whether the `choice` asks for it: `auto` where the updates that are left save more than compiling costs.

    A run that was compiled before stays so, which continues it bit for bit. What a GPU saves is not measured.
    """
    if choice != "auto":
        return choice == "true"
    return device.type == "cpu" and (was_compiled or updates_left * SAVED_SECONDS > COMPILE_SECONDS)


def try_to_compile(agent: nn.Module, batch: dict, rows: Sequence[int] = ()) -> str:
    """Compiles the agent by an update on `batch` and actions for so many `rows`, of which no trace is left.

    Returns "", or why torch cannot; the agent then is as before.
    """
    before, reason = copy.deepcopy(state_of(agent)), ""
    compile_functions(agent)
    try:
        with noise_of(agent, fresh_noise(agent)):
            agent.update(batch)
            for count in rows:
                agent.act(batch["observations"][:1].repeat(count, 1))
    except torch._dynamo.exc.TorchDynamoException as error:  # those of inductor are of this type, too
        reason = one_line(error, 160)
        for name in pure_functions(agent):
            delattr(agent, name)
    restore(agent, before)
    return reason


def compile_functions(agent: nn.Module) -> None:
    """Puts compiled functions over the agent's pure ones; each is compiled where it is first called."""
    from torch._inductor.compile_fx import compile_fx  # here: seconds that other runs need not wait

    backend = functools.partial(compile_fx, decompositions=decompositions())
    for name in pure_functions(agent):
        function = getattr(agent, name)
        setattr(agent, name, torch.compile(function, dynamic=False, fullgraph=True, backend=backend))


def decompositions() -> dict:
    """inductor's decompositions of torch's operations, and over them forms that it makes faster on a CPU.

    GELU's tanh form is x sigmoid(2 y), whose exp is fast as inductor writes it, where its tanh is not; a sum after a
    product is one with what follows it; a batched product with a single column is slow; and others are oneDNN's where
    that is faster.
    """
    from torch._inductor.decomposition import select_decomp_table

    scale, cubic, aten = 2 * math.sqrt(2 / math.pi), 0.044715, torch.ops.aten
    table = dict(select_decomp_table())
    own_gelu, own_gelu_backward, own_product = (
        table[each.default] for each in (aten.gelu, aten.gelu_backward, aten.bmm)
    )
    onednn = onednn_is_faster()

    def gelu(x: Tensor, approximate: str = "none") -> Tensor:
        if approximate != "tanh":
            return own_gelu(x, approximate=approximate)
        return x * torch.sigmoid(scale * x * (1 + cubic * x * x))

    def gelu_backward(gradient: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
        if approximate != "tanh":
            return own_gelu_backward(gradient, x, approximate=approximate)
        share = torch.sigmoid(scale * x * (1 + cubic * x * x))
        return gradient * share * (1 + x * (1 - share) * scale * (1 + 3 * cubic * x * x))

    def product(left: Tensor, right: Tensor) -> Tensor:
        if right.shape[2] == 1 and left.shape[2] > 1:
            return (left * right.mT).sum(dim=-1, keepdim=True)
        if onednn and left.dtype == torch.float32 and left.device.type == "cpu":
            return torch.ops.dipole.onednn_product(left, right)
        return own_product(left, right)

    def sum_and_product(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        return alpha * torch.bmm(left, right) + beta * bias

    forms = {aten.gelu: gelu, aten.gelu_backward: gelu_backward, aten.bmm: product, aten.baddbmm: sum_and_product}
    return table | {operation.default: form for operation, form in forms.items()}


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than torch's own choice on this CPU, which is MKL.

    On AMD's processors MKL takes half of AVX512's vector length (torch 2.13.0). That costs nothing on Zen 4, which
    splits whole vectors in two, and half the rate from Zen 5 on: docs/performance.md.
    """
    is_known = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private to torch, so another version may lack it
    if not (is_known and torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    description = Path("/proc/cpuinfo")
    return is_amd_zen_5(description.read_text() if description.exists() else platform.processor())


def is_amd_zen_5(description: str) -> bool:
    """Whether the processor is AMD's Zen 5 or later, by /proc/cpuinfo or Windows' name of it, which hold the family."""
    family = re.search(r"family\s*:?\s*(\d+)", description, re.IGNORECASE)
    return "AuthenticAMD" in description and family is not None and int(family[1]) >= ZEN_5_FAMILY


LIBRARY = torch.library.Library("dipole", "DEF")  # must live as long as its operation
LIBRARY.define("onednn_product(Tensor left, Tensor right) -> Tensor", tags=[torch.Tag.flexible_layout])


@torch.library.impl(LIBRARY, "onednn_product", "CPU")
def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """torch.bmm of float32 matrices [M, B, I] and [M, I, O] by oneDNN, a product for each of M."""
    multiply = torch.ops.mkldnn._linear_pointwise.default
    products = [multiply(x, weight.mT, None, "none", [], "") for x, weight in zip(left, right, strict=True)]
    return products[0][None] if len(products) == 1 else torch.stack(products)


@torch.library.register_fake("dipole::onednn_product", lib=LIBRARY)
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], left.shape[1], right.shape[2])


def missing_compiler(device: torch.device) -> str:
    """Says which compiler is missing, "" if none is: inductor makes C++ for a CPU, and has its own for a GPU."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return "" if device.type == "cuda" or shutil.which(compiler) else f"{compiler} is not installed"
