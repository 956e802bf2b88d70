"""The benchmarks measure what they say: the JAX form makes the reference's updates, and the command's rows add up."""

import json
from pathlib import Path

import numpy as np
import pytest

from algorithms.dipole import DIPOLEConfig
from tests.golden.checker import TOLERANCE, recorded_draws, step_arrays
from tests.golden.dipole_family import dipole_fields

CASE = Path(__file__).parent / "golden" / "dipole.npz"
RECORDED = {"critic/value_net": "critic", "value/value_net": "value"}
RECORDED |= {"actor_flow_pos/mlp": "positive", "actor_flow_neg/mlp": "negative"}


def networks_of(arrays: dict, prefix: str) -> dict:
    """{network: {Flax name: array}} from the case's arrays of that prefix."""
    names = RECORDED | {"target_critic/value_net": "target"}
    return {ours: step_arrays(arrays, f"{prefix}/{theirs}/") for theirs, ours in names.items()}


def test_the_jax_form_makes_the_recorded_updates():
    jax = pytest.importorskip("jax")
    from benchmarks.jax_dipole import Draws, start, update

    case = json.loads(CASE.with_suffix(".json").read_text())
    config = DIPOLEConfig(**dipole_fields(case["config"]))
    with np.load(CASE) as stored:
        arrays = dict(stored)
    with jax.enable_x64(True):
        networks = jax.tree.map(jax.numpy.asarray, networks_of(arrays, "init"))
        state = start(networks, networks.pop("target"))
        for step in range(case["steps"]):
            batch = step_arrays(arrays, f"step{step}/batch/")
            state, losses = jax.jit(update, static_argnums=3)(
                state, batch, Draws(*recorded_draws(arrays, step)[:3]), config
            )
            recorded = {
                "critic/loss": "critic_loss",
                "value/loss": "value_loss",
                "actor/positive_loss": "positive_loss",
                "actor/negative_loss": "negative_loss",
                "actor/weight_mean": "weight_mean",
            }
            assert losses.keys() == recorded.keys()
            for ours, theirs in recorded.items():
                assert abs(losses[ours] - arrays[f"step{step}/info/{theirs}"]) <= TOLERANCE, (step, ours)
        final = networks_of(arrays, "final")
        for name, network in (state.networks | {"target": state.target_critic}).items():
            assert network.keys() == final[name].keys()
            for parameter, array in network.items():
                np.testing.assert_allclose(array, final[name][parameter], atol=TOLERANCE, rtol=0, err_msg=name)
