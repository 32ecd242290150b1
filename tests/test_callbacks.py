"""Callbacks: pictures and statistics of a training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.observation import observe

T = np.linspace(0.1, 1.0, 5)


def decay(**keywords):
    layer = nde.NeuralODE(keras.layers.Dense(1), (0.0, 1.0), saveat=T, name="decay", **keywords)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile("adam", "mse", jit_compile=True)
    return model


X = np.ones((2, 1), np.float32)
Y = np.repeat(np.exp(-T)[None, :, None], 2, axis=0)


def test_pictures_come_every_so_often_and_at_the_end(tmp_path):
    show = nde.callbacks.PlotPrediction(X, Y, T, directory=tmp_path, every=2, row=1)
    decay().fit(X, Y, epochs=5, verbose=0, callbacks=[show])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch_0002.png", "epoch_0004.png", "epoch_0005.png"]


def test_a_picture_holds_what_the_model_predicts(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(nde.plot, "prediction", lambda *a, **k: (drawn.append((a, k)), k["ax"])[1])
    model = decay()
    show = nde.callbacks.PlotPrediction(X, Y, T, directory=tmp_path, every=1)
    model.fit(X, Y, epochs=1, verbose=0, callbacks=[show])
    (t, predicted, data), _ = drawn[0]
    np.testing.assert_array_equal(t, T)
    np.testing.assert_array_equal(predicted, model.predict(X, verbose=0)[0])
    np.testing.assert_array_equal(data, Y[0])


def test_a_wrong_number_of_axes_is_refused(tmp_path):
    show = nde.callbacks.PlotPrediction(X, Y, T, directory=tmp_path, every=1, row=(0, 0))
    with pytest.raises(ValueError, match="2 axes that `row` chooses from.*Received"):
        decay().fit(X, Y, epochs=1, verbose=0, callbacks=[show])
    with pytest.raises(ValueError, match="`every` must be an integer"):
        nde.callbacks.PlotPrediction(X, every=0)


def test_statistics_are_those_of_the_solve(tmp_path):
    """Against the counts of the same solve made by hand, and as TensorBoard reads them."""
    model = decay(rtol=1e-5)
    log = nde.callbacks.SolverStatistics(X, tmp_path)
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[log]).history
    kernel, bias = (tf.constant(w) for w in model.layers[0].get_weights())
    problem = nde.ODEProblem(lambda t, y, p: y @ p[0] + p[1], X, (0.0, 1.0), [kernel, bias])
    stats = nde.solve(problem, saveat=T, batch_ndims=1, rtol=1e-5).stats
    assert history["decay/steps"][-1] == float(np.mean(stats.num_steps))
    assert history["decay/rejected"][-1] == float(np.mean(stats.num_rejected))
    assert history["decay/max_steps"][-1] == int(np.max(stats.num_steps))
    assert history["decay/failed"] == [0, 0]
    written = {}
    for record in tf.data.TFRecordDataset([str(path) for path in tmp_path.iterdir()]):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            written[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert set(written) == {(name, k) for name in history if "/" in name for k in range(2)}
    for (name, step), value in written.items():
        assert value == pytest.approx(history[name][step], rel=1e-6)


def test_failures_are_counted_and_named_once(capsys):
    model = decay(max_steps=2, rtol=1e-6)
    log = nde.callbacks.SolverStatistics(X, every=2)
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[log]).history
    assert history["decay/failed"] == [2, 2, 2]
    assert capsys.readouterr().out.count("reached max_steps") == 1


def test_a_layer_called_twice_is_two_solves():
    layer = nde.NeuralODE(keras.layers.Dense(1), (0.0, 1.0), name="twice")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layer(layer(inputs)))
    model.compile("adam", "mse", jit_compile=True)
    log = nde.callbacks.SolverStatistics(X)
    history = model.fit(X, X, epochs=1, verbose=0, callbacks=[log]).history
    assert {"twice/steps", "twice_2/steps"} <= set(history)


def test_a_model_without_a_solve_is_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="saw no solve"):
        model.fit(X, X, epochs=1, verbose=0, callbacks=[nde.callbacks.SolverStatistics(X)])


def test_nothing_is_seen_outside_or_in_a_graph():
    problem = nde.ODEProblem(lambda t, y, p: -y, 1.0, (0.0, 1.0))
    with observe() as outer:
        with observe() as inner:
            nde.solve(problem)
        tf.function(lambda: nde.solve(problem).y, jit_compile=True)()
    nde.solve(problem)
    assert (len(outer), len(inner)) == (0, 1)
