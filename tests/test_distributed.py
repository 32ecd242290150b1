"""Training under distribution strategies, and after a process was killed: one device's numbers."""

import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from tests.distribution import processes

MODULE = "tests.distribution.train"
ALL = "adam,noise,lbfgs,chain"
SECONDS = 600

pytestmark = pytest.mark.slow


def train(commands, environment=(), expected=0):
    codes, said = processes.run(MODULE, commands, SECONDS, environment)
    ended_as_told = codes == [0] * len(codes) if expected == 0 else expected in codes
    assert ended_as_told, (codes, said)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and weights on one device."""
    file = tmp_path_factory.mktemp("one") / "one.npz"
    train([["one", file, ALL]])
    return np.load(file)


def agree(one, other, names):
    for name in names.split(","):
        assert one[f"{name} loss"][-1] < 0.9 * one[f"{name} loss"][0]
        for key in (key for key in one if key.split()[0] == name):
            np.testing.assert_allclose(other[key], one[key], rtol=1e-10, atol=1e-12, err_msg=key)


def test_two_devices_train_like_one(alone, tmp_path):
    train([["mirrored", tmp_path / "two.npz", ALL]])
    agree(alone, np.load(tmp_path / "two.npz"), ALL)


def test_two_workers_train_like_one(alone, tmp_path):
    files = [tmp_path / f"{worker}.npz" for worker in range(2)]
    train([["worker", file, ALL] for file in files], processes.cluster(2))
    for file in files:
        agree(alone, np.load(file), ALL)


@pytest.mark.parametrize("name", ["adam", "chain"])
def test_a_killed_process_goes_on_where_it_was(alone, tmp_path, name):
    file, backup = tmp_path / "resumed.npz", tmp_path / "backup"
    command = ["one", file, name, backup]
    train([command], [{"VICTIM": "1"}], expected=-signal.SIGKILL)
    assert not file.exists() and backup.exists()
    train([command])
    resumed = np.load(file)
    assert len(resumed[f"{name} loss"]) == 3
    np.testing.assert_allclose(resumed[f"{name} loss"], alone[f"{name} loss"][5:], rtol=1e-10)
    np.testing.assert_allclose(resumed[name], alone[name], rtol=1e-10, atol=1e-12)


def test_killed_workers_go_on_where_they_were(alone, tmp_path):
    files, backup = [tmp_path / f"{worker}.npz" for worker in range(2)], tmp_path / "backup"
    commands = [["worker", file, "chain", backup] for file in files]
    first, second = processes.cluster(2)
    # Whichever dies first, the other cannot go on without it and is ended too.
    train(commands, [first, {**second, "VICTIM": "1"}], expected=-signal.SIGKILL)
    assert not any(file.exists() for file in files)
    train(commands, processes.cluster(2))
    for file in files:
        resumed = np.load(file)
        np.testing.assert_allclose(resumed["chain"], alone["chain"], rtol=1e-10, atol=1e-12)
    shutil.rmtree(backup, ignore_errors=True)


def test_asynchronous_strategies_are_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model = nde.Model(model.inputs, model.outputs)
    model.compile(nde.optimizers.LBFGS(), "mse")

    class Asynchronous:
        num_replicas_in_sync = 2

    model._distribute_strategy = Asynchronous()
    with pytest.raises(ValueError, match="under MirroredStrategy"):
        model.make_train_function()
    assert tf.distribute.get_strategy().num_replicas_in_sync == 1


def test_an_ensemble_does_not_depend_on_the_number_of_devices(tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    workers = [tmp_path / f"{worker}.npz" for worker in range(2)]
    module = "tests.distribution.ensemble"
    for commands, environment in (
        ([["one", one]], [{}]),
        ([["mirrored", two]], [{}]),
        ([["worker", file] for file in workers], processes.cluster(2)),
    ):
        codes, said = processes.run(module, commands, SECONDS, environment)
        assert codes == [0] * len(commands), said
    expected = np.load(one)
    assert expected["y"].shape == (2, 7, 2)
    for found in map(np.load, (two, *workers)):
        assert "the solve failed" in str(found["said"])
        for key in ("y", "t", "steps", "status"):
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-12, err_msg=key)
    # Workers without a seed agree on one.
    first, second = (np.load(file)["fresh"] for file in workers)
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, np.load(two)["fresh"])


def test_refusals_of_spread_ensembles():
    problem = nde.ODEProblem(lambda t, y, p: -y, tf.constant(1.0), (0.0, 1.0))
    strategy = tf.distribute.get_strategy()
    with pytest.raises(TypeError, match="`strategy` must be"):
        nde.solve_ensemble(problem, 2, strategy="mirrored")
    with tf.GradientTape(), pytest.raises(ValueError, match="no gradients"):
        nde.solve_ensemble(problem, 2, strategy=strategy)
