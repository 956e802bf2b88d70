"""Tests of harness/evaluation.py: fixed batches, a stream per episode, equal results for any number of processes."""

import random

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from harness.environment_rows import EnvironmentFailure
from harness.evaluation import EpisodeNoise, Evaluator, evaluate

SEED = 500
FAILING_SEED = 900


class RandomWalk(gymnasium.Env):
    """Draws from its own generator and, like OGBench's mazes, from numpy's global one: at reset and in step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time = seed, 0
        self.limit = int(self.np_random.integers(3, 12))
        self.state = np.random.uniform(-1, 1, 3) + np.random.randn()  # noqa: NPY002
        return self.state, {}

    def step(self, action):
        if self.seed == FAILING_SEED and self.time == 1:
            raise ZeroDivisionError("simulated failure")
        self.time += 1
        noise = self.np_random.normal(size=3) + 0.1 * np.random.randn(3)  # noqa: NPY002
        self.state = self.state + 0.1 * noise + 0.3 * np.array([action[0], action[1], action[0] * action[1]])
        success = bool(self.state[0] > 1.5)
        reward = float(self.state.sum())
        return self.state, reward, success, self.time >= self.limit, {"success": success, "heavy": object()}


class NoSuccess(gymnasium.Wrapper):
    def step(self, action):
        *result, info = self.env.step(action)
        return *result, {}


def walk_without_success():
    return NoSuccess(RandomWalk())


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)


class Agent(nn.Module):
    """A linear policy that uses all three kinds of noise; remembers the batches it has seen."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(6).view(2, 3) / 10 - 0.2)
        self.noise = Noise()
        self.batches = []

    @torch.no_grad()
    def act(self, observations, scale=1.0):
        self.batches.append(observations.clone())
        rows = len(observations)
        draws = self.noise.normal(rows, 2) * self.noise.uniform(rows, 1) + self.noise.integers(3, rows, 2)
        return torch.tanh(self.layer(observations) + scale * draws)


def same(first, second, rows=slice(None)):
    """Bit-equal results on the rows that both have."""
    return all(
        np.array_equal(getattr(first, name)[rows], getattr(second, name)[rows])
        for name in ("returns", "lengths", "successes")
    )


def test_episodes_are_those_of_a_plain_loop():
    result = evaluate(Agent(), RandomWalk, episodes=6, seed=SEED, environments=4)
    agent, bits = Agent(), np.random.get_bit_generator()
    for episode in range(6):
        seed = SEED + episode
        environment, agent.noise = RandomWalk(), EpisodeNoise([seed], torch.empty(0))
        own_bits = np.random.MT19937(seed)
        np.random.set_bit_generator(own_bits)
        observation, _ = environment.reset(seed=seed)
        total, length, ended = 0.0, 0, False
        while not ended:
            action = agent.act(torch.tensor(observation, dtype=torch.float32)[None])[0].numpy()
            np.random.set_bit_generator(own_bits)  # as between other rows: it forgets half of a pair of normal draws
            observation, reward, terminated, truncated, info = environment.step(action)
            total, length, ended = total + reward, length + 1, terminated or truncated
        assert result.lengths[episode] == length
        assert result.returns[episode] == pytest.approx(total, rel=1e-5)  # products of another shape round differently
        assert result.successes[episode] == info["success"]
    np.random.set_bit_generator(bits)
    assert set(result.successes) == {0.0, 1.0}, "both outcomes should occur in this test"


def test_two_processes_give_the_result_of_none_and_end_with_their_pipes():
    expected = evaluate(Agent(), RandomWalk, 7, SEED, environments=3)
    assert len(set(expected.returns)) == 7
    with Evaluator(RandomWalk, environments=3, workers=2) as evaluator:
        assert same(evaluator.evaluate(Agent(), 7, SEED), expected)
        assert same(evaluator.evaluate(Agent(), 7, SEED), expected), "environments are used again"
        assert_failure_is_named(evaluator)
        assert same(evaluator.evaluate(Agent(), 7, SEED), expected), "its processes are new"
        first, second = evaluator.rows.processes
        evaluator.rows.connections[0].close()  # what the parent's death does
        first.join(20)
        assert first.exitcode == 0
        assert second.is_alive()
    assert not second.is_alive()


def test_batch_keeps_its_size_and_ended_rows_their_observation():
    agent = Agent()
    result = evaluate(agent, RandomWalk, episodes=5, seed=SEED, environments=3)
    assert {tuple(batch.shape) for batch in agent.batches} == {(3, 3)}
    first_wave = agent.batches[: result.lengths[:3].max()]
    second_wave = agent.batches[len(first_wave) :]
    shortest = int(result.lengths[:3].argmin())
    for batch in first_wave[result.lengths[shortest] :]:
        assert torch.equal(batch[shortest], first_wave[result.lengths[shortest]][shortest])
    assert len(second_wave) == result.lengths[3:].max()
    assert all((batch[2] == 0).all() for batch in second_wave), "a row without an episode holds zeros"


def test_episode_does_not_depend_on_the_others():
    result = evaluate(Agent(), RandomWalk, 7, SEED, environments=3)
    assert same(result, evaluate(Agent(), RandomWalk, 9, SEED, environments=3), slice(0, 7))
    shifted = evaluate(Agent(), RandomWalk, 6, SEED + 3, environments=3)
    assert np.array_equal(shifted.returns[:4], result.returns[3:])


def random_states(agent):
    kind, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return (
        (kind, key.tobytes(), position, has_gauss, gauss),
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        agent.noise.generator.get_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("seed", [SEED, FAILING_SEED])
def test_evaluation_changes_no_random_state(seed):
    agent = Agent()
    noise = agent.noise
    np.random.randn()  # noqa: NPY002  leaves half of a pair of normal draws in the global state
    before = random_states(agent)
    bits = np.random.get_bit_generator()
    if seed == FAILING_SEED:
        with pytest.raises(EnvironmentFailure):
            evaluate(agent, RandomWalk, 3, seed)
    else:
        evaluate(agent, RandomWalk, 3, seed)
    assert agent.noise is noise
    assert np.random.get_bit_generator() is bits
    assert random_states(agent) == before


def assert_failure_is_named(evaluator):
    with pytest.raises(EnvironmentFailure, match=f"seed {FAILING_SEED} failed") as failure:
        evaluator.evaluate(Agent(), 4, FAILING_SEED - 3)
    assert "ZeroDivisionError: simulated failure" in str(failure.value)


def test_failure_names_the_episode_and_the_cause():
    with Evaluator(RandomWalk, environments=2) as evaluator:
        assert_failure_is_named(evaluator)
        assert len(evaluator.evaluate(Agent(), 2, SEED).returns) == 2, "environments are built anew"


def test_success_is_optional_and_summary_is_complete():
    result = evaluate(Agent(), RandomWalk, 8, SEED)
    assert result.summary() == {
        "return": result.returns.mean(),
        "return_std": result.returns.std(),
        "length": result.lengths.mean(),
        "episodes": 8.0,
        "success": result.successes.mean(),
    }
    assert result.seconds > 0
    without = evaluate(Agent(), walk_without_success, 8, SEED)
    assert without.successes is None
    assert "success" not in without.summary()
    assert np.array_equal(without.scores("return"), result.returns)
    with pytest.raises(ValueError, match="reports no"):
        without.scores("success")


def test_act_options_and_dtype_reach_the_agent():
    agent = Agent().double()
    quiet = evaluate(agent, RandomWalk, 4, SEED, scale=0.0)
    assert agent.batches[0].dtype == torch.float64
    assert not np.array_equal(quiet.returns, evaluate(agent, RandomWalk, 4, SEED, scale=1.0).returns)


def test_actions_that_are_not_finite_are_refused():
    agent = Agent()
    agent.layer.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"seeds \[{SEED}, {SEED + 1}\]"):
        evaluate(agent, RandomWalk, 2, SEED)


def test_policy_without_noise_can_be_evaluated():
    class Scripted:
        def act(self, observations):
            return torch.ones(len(observations), 2)

    result = evaluate(Scripted(), RandomWalk, 3, SEED)
    assert same(result, evaluate(Scripted(), RandomWalk, 3, SEED, environments=1))


def test_noise_rows_are_streams_of_their_own():
    like = torch.empty(0, dtype=torch.float64)
    noise, other = EpisodeNoise([3, 4], like), EpisodeNoise([4, 9], like)
    for draw in (lambda n: n.normal(2, 5, 3), lambda n: n.uniform(2, 1), lambda n: n.integers(1000, 2, 4)):
        rows, other_rows = draw(noise), draw(other)
        assert torch.equal(rows[1], other_rows[0])
        assert not torch.equal(rows[0], rows[1])
    assert noise.normal(2, 1).dtype == torch.float64
    assert noise.integers(5, 2, 1).dtype == torch.int64
    values = noise.uniform(2, 4000)
    assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.02
    assert set(noise.integers(3, 2, 100).flatten().tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="one row for each of 2 rows"):
        noise.normal(6, 3)
