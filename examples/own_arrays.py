"""DIPOLE on arrays of one's own: a copy of one algorithm file, numpy and torch, nothing else of this repository.

    cp algorithms/dipole.py examples/own_arrays.py SOMEWHERE && cd SOMEWHERE && python own_arrays.py

The arrays here are a game of one step whose best action is known, so that the last lines show what was learned.
"""

import numpy as np
import torch
from dipole import DIPOLE, DIPOLEConfig

random = np.random.default_rng(0)
states = random.uniform(-1, 1, (5_000, 3)).astype(np.float32)
actions = random.uniform(-1, 1, (5_000, 2)).astype(np.float32)  # in [-1, 1]: scale yours
rewards = -np.abs(actions - states[:, :2]).sum(axis=1)  # the best action is the first two numbers of the state
next_states = states  # of every transition the state that followed
masks = np.zeros(5_000, dtype=np.float32)  # 1 = the episode goes on (also after a time limit), 0 = it ended there
arrays = {"observations": states, "actions": actions, "rewards": rewards, "masks": masks}
data = {name: torch.from_numpy(array) for name, array in (arrays | {"next_observations": next_states}).items()}

config = DIPOLEConfig(actor_hidden_dims=(64, 64), value_hidden_dims=(64, 64), learning_rate=1e-3, inverse_temperature=5)
agent = DIPOLE(config, observation_dim=3, action_dim=2)
for _ in range(400):
    rows = torch.randint(len(states), (256,))
    metrics = agent.update({name: column[rows] for name, column in data.items()})

torch.save(agent.state_dict(), "agent.pt")  # and later, elsewhere:
agent = DIPOLE(config, observation_dim=3, action_dim=2)
agent.load_state_dict(torch.load("agent.pt", weights_only=True))

print(f"data: mean reward {rewards.mean():.2f}")
for greediness in (0.0, 1.0):
    chosen = agent.act(data["observations"][:500], greediness=greediness, num_candidates=1)
    errors = np.abs(chosen.numpy() - states[:500, :2]).sum(axis=1)
    print(f"greediness {greediness}: mean reward {-errors.mean():.2f}")
