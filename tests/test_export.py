"""Exported models: their signatures, their answers without Python, and their warm-up requests."""

import dataclasses
import functools
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde import warmup
from tests.serving import server

needs_compiler = pytest.mark.skipif(
    server.compiler() is None, reason="needs a C compiler to build the server: none was found"
)
Y0 = np.array([[1.0, 0.5], [-0.5, 2.0], [0.3, -0.2], [3.0, 1.0]])
TIMES = np.array([[0.25, 0.5, 0.8], [0.1, 0.9, np.nan], [0.7, np.nan, np.nan], [0.2, 1.0, 1.5]])
SEEDS = np.int32([7, -3, 7, 11])
SAVEAT = [0.5, 1.0]
CONSISTENT = np.stack([Y0[:, 0], Y0[:, 0] ** 2], 1)


def network(outputs=2, seed=0, dtype="float32"):
    init = keras.initializers.RandomNormal(stddev=0.4, seed=seed)
    hidden = keras.layers.Dense(8, "tanh", kernel_initializer=init, dtype=dtype)
    last = keras.layers.Dense(outputs, kernel_initializer=init, dtype=dtype)
    return keras.Sequential([hidden, last])


def functional(layer):
    """A model with a layer in its middle, in that layer's dtype."""
    y0 = keras.Input((2,), name="y0", dtype=layer.state_dtype)
    head = keras.layers.Dense(3, dtype=layer.dtype_policy)
    return keras.Model(y0, head(layer(y0)))


def stochastic(kind, **keywords):
    if kind is nde.NeuralSDE:
        diffusion = keras.Sequential([network(6, seed=1), keras.layers.Reshape((2, 3))])
        keywords["noise_dim"] = 3
    else:
        diffusion = network(seed=1)
    return kind(network(), diffusion, t_span=(0.0, 1.0), saveat=SAVEAT, seed=2**40 + 5, **keywords)


def sampled_delay():
    layer = nde.NeuralCDDE(network(), (0.0, 1.0), [0.3], saveat=SAVEAT, history="sampled")
    layer([Y0, np.array([-0.5, 0.0]), np.stack([Y0, Y0], 1)])
    return layer


def constrained():
    mass = [[1.0, 0.0], [0.0, 0.0]]
    layer = nde.NeuralODEMM(
        network(1, dtype="float64"),
        lambda y: y[:, 1:] - y[:, :1] ** 2,
        (0.0, 1.0),
        mass,
        dtype="float64",
    )
    layer(CONSISTENT)
    return layer


@dataclasses.dataclass
class Kind:
    """What is exported, and which signatures it must have.

    Attributes:
        make: makes the model.
        signatures: beside `serving_default`.
        inputs: arrays by name.
    """

    make: Any
    signatures: tuple
    inputs: Any = dataclasses.field(default_factory=lambda: {"y0": np.float32(Y0)})
    tolerance: float = 2e-6


KINDS = {
    "ode": Kind(
        lambda: functional(nde.NeuralODE(network(), (0.0, 1.0), saveat=SAVEAT)), ("at_times",)
    ),
    "ode_float64": Kind(
        lambda: functional(nde.NeuralODE(network(dtype="float64"), (0.0, 1.0), dtype="float64")),
        ("at_times",),
        {"y0": Y0},
        1e-12,
    ),
    "diagonal_noise": Kind(
        lambda: functional(
            stochastic(nde.NeuralDSDE, solver="euler_maruyama", dt0=0.0625, controller="constant")
        ),
        ("at_times", "with_seed"),
    ),
    "general_noise": Kind(
        lambda: functional(stochastic(nde.NeuralSDE, trajectories=2)),
        ("at_times", "with_seed"),
        tolerance=1e-4,
    ),
    "jumps": Kind(
        lambda: functional(
            nde.NeuralJumpSDE(
                network(),
                network(seed=1),
                network(seed=2),
                3.0,
                (0.0, 1.0),
                dt0=0.0625,
                solver="euler_maruyama",
                controller="constant",
                saveat=SAVEAT,
                seed=5,
            )
        ),
        ("at_times", "with_seed"),
    ),
    "delay": Kind(
        lambda: functional(
            nde.NeuralCDDE(network(), (0.0, 1.0), [0.2, 0.5], saveat=SAVEAT, max_record=64)
        ),
        ("at_times",),
    ),
    "sampled_delay": Kind(
        sampled_delay,
        ("at_times",),
        {
            "y0": np.float32(Y0),
            "past_times": np.tile(np.float32([-0.5, 0.0]), (4, 1)),
            "past": np.float32(np.stack([2 * Y0, Y0], 1)),
        },
    ),
    "constraint": Kind(constrained, ("at_times",), {"y0": CONSISTENT}, 1e-10),
}


@functools.cache
def exported(name):
    """The model of a kind, and where its SavedModel is."""
    keras.utils.set_random_seed(1)
    model = KINDS[name].make()
    path = tempfile.mkdtemp(prefix=name) + "/1"
    return model, path, nde.export_saved_model(model, path)


def predict(model, inputs):
    """The answers of a model to one row after the other."""
    values = list(inputs.values())
    pick = [[value[i : i + 1] for value in values] for i in range(len(inputs["y0"]))]
    return np.concatenate([model(one if len(one) > 1 else one[0], training=False) for one in pick])


def layer_of(model):
    layers = [model] if not isinstance(model, keras.Model) else model.layers
    found = [x for x in layers if isinstance(x, nde.layers.base.DifferentialEquationLayer)]
    return found[0]


@functools.cache
def served(name):
    """The model of a kind, and the answers of the server, all in one run of it."""
    inputs = KINDS[name].inputs
    model, path, names = exported(name)
    layer = layer_of(model)
    own = np.atleast_1d(layer.t_span[1] if layer.saveat is None else layer.saveat)
    timed = {**inputs, "times": TIMES}
    requests = {
        "default": ("serving_default", inputs),
        "default, one row": ("serving_default", rows(inputs, slice(2, 3))),
        "times": ("at_times", timed),
        "times, one row": ("at_times", rows(timed, slice(1, 2))),
        "times, backwards": ("at_times", rows(timed, slice(None, None, -1))),
        "times, shared": ("at_times", {**inputs, "times": own}),
    }
    if "with_seed" in names:
        same = rows(inputs, [0, 0, 0, 0])
        requests |= {
            "seeds": ("with_seed", {**inputs, "seed": SEEDS}),
            "seeds, same rows": ("with_seed", {**same, "seed": SEEDS}),
            "one seed": ("with_seed", {**inputs, "seed": np.int32(7)}),
        }
    answers = server.serve(path, list(requests.values()))
    outputs = [answer["output_0"] for answer, _ in answers]
    return model, dict(zip(requests, outputs, strict=True))


def rows(inputs, which):
    return {name: value[which] for name, value in inputs.items()}


def close(name, *arrays):
    tolerance = KINDS[name].tolerance
    np.testing.assert_allclose(*arrays, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", KINDS)
class TestWithoutPython:
    def test_names(self, name):
        kind = KINDS[name]
        _, path, inputs = exported(name)
        assert list(inputs) == ["serving_default", *kind.signatures]
        assert {*server.signatures(path)} == {*inputs, "__saved_model_init_op"}
        for one, names in inputs.items():
            assert names[: len(kind.inputs)] == list(kind.inputs)
            definition = server.signatures(path)[one]
            assert set(definition.inputs) == set(names)
            for info in definition.outputs.values():
                assert info.tensor_shape.dim[0].size == -1

    def test_serving_default_is_the_model_row_by_row(self, name):
        model, answers = served(name)
        expected = predict(model, KINDS[name].inputs)
        assert np.all(np.isfinite(expected))
        close(name, answers["default"], expected)
        close(name, answers["default, one row"], expected[2:3])

    def test_at_times_of_each_row(self, name):
        model, answers = served(name)
        close(name, answers["times, one row"], answers["times"][1:2])
        close(name, answers["times, backwards"][::-1], answers["times"])
        layer = layer_of(model)
        if not hasattr(layer, "seed_generator"):
            inputs = [*map(tf.constant, KINDS[name].inputs.values())]
            states = layer([*inputs, TIMES.astype(layer.state_dtype)])
            rest = model.layers[-1](states) if isinstance(model, keras.Model) else states
            close(name, answers["times"], rest)
        # Shared times; at the layer's own they are what the default says.
        default = answers["default"]
        close(name, answers["times, shared"].reshape(default.shape), default)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", [name for name, k in KINDS.items() if "with_seed" in k.signatures])
def test_a_seed_for_each_row(name):
    model, answers = served(name)
    layer, head = layer_of(model), model.layers[-1]
    y0 = KINDS[name].inputs["y0"]
    alone = [head(layer(y0[i : i + 1], seed=int(SEEDS[i]))) for i in range(4)]
    close(name, answers["seeds"], np.concatenate(alone))
    close(name, answers["one seed"], head(layer(y0, seed=7)))
    same = answers["seeds, same rows"]
    close(name, same[0], same[2])
    assert np.abs(same[0] - same[1]).max() > 1e-2


@functools.cache
def exported_with_xla():
    path = tempfile.mkdtemp(prefix="xla") + "/1"
    model = functional(nde.NeuralODE(network(), (0.0, 1.0), saveat=SAVEAT))
    return path, nde.export_saved_model(model, path, xla=True)


@pytest.mark.slow
class TestXla:
    def test_names(self):
        names = ["serving_default", "at_times"]
        assert list(exported_with_xla()[1]) == [*names, *(name + "_xla" for name in names)]

    @needs_compiler
    def test_the_plain_signatures_do_without(self):
        path = exported_with_xla()[0]
        inputs, timed = {"y0": Y0}, {"y0": Y0, "times": TIMES}
        plain = server.serve(path, [("serving_default", inputs), ("at_times", timed)])
        twins = [("serving_default_xla", inputs), ("at_times_xla", timed)]
        with pytest.raises(RuntimeError, match="(?i)XLA"):
            server.serve(path, twins)
        for (one, _), (two, _) in zip(plain, server.serve(path, twins, True), strict=True):
            np.testing.assert_allclose(two["output_0"], one["output_0"], rtol=1e-5, atol=1e-6)

    def test_only_the_twins_must_be_compiled(self):
        loaded = tf.saved_model.load(exported_with_xla()[0])
        for name, function in loaded.signatures.items():
            definition = function.graph.as_graph_def()
            functions = definition.library.function
            must = any(one.attr["_XlaMustCompile"].b for one in functions)
            assert must == name.endswith("_xla"), name
            ops = {node.op for one in functions for node in one.node_def}
            assert not [op for op in ops if "PyFunc" in op], name


def test_without_the_package(tmp_path):
    model, path, _ = exported("ode")
    script = (
        "import sys, numpy as np, tensorflow as tf\n"
        "sys.modules['keras_neuralde'] = sys.modules['keras'] = None\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "y0 = tf.constant(np.load(sys.argv[2]))\n"
        "out = loaded.signatures['serving_default'](y0=y0)['output_0']\n"
        "assert loaded.signatures['serving_default'](y0=y0[:0])['output_0'].shape == (0, 2, 3)\n"
        "np.save(sys.argv[2], out)\n"
    )
    file = tmp_path / "y0.npy"
    np.save(file, np.float32(Y0))
    command = [sys.executable, "-c", script, path, str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    np.testing.assert_allclose(np.load(file), model(np.float32(Y0)), rtol=1e-5, atol=1e-5)


def test_a_failed_row_is_nan_and_leaves_the_others_alone(tmp_path):
    class Blowup(keras.layers.Layer):
        def call(self, y):
            return y**2

    layer = nde.NeuralODE(Blowup(), (0.0, 2.0), "bosh3", max_steps=50)
    layer(np.zeros((1, 1), "float32"))
    path = str(tmp_path / "1")
    nde.export_saved_model(layer, path, signatures="serving_default")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    out = serve(y0=tf.constant([[0.1], [1.0], [np.nan]]))["output_0"]
    np.testing.assert_allclose(out[0], 0.125, rtol=1e-2)
    assert np.all(np.isnan(out[1:]))


class TestWhichSignatures:
    def layer(self, **keywords):
        return nde.NeuralODE(keras.layers.Dense(2), (0.0, 1.0), "euler", dt0=0.5, **keywords)

    def test_no_times_without_a_time_axis(self, tmp_path):
        y0 = keras.Input((2,), name="y0")
        states = self.layer(saveat=[0.5, 1.0])(y0)
        flat = keras.Model(y0, keras.layers.Dense(1)(keras.layers.Flatten()(states)))
        pooled = keras.Model(y0, keras.layers.GlobalAveragePooling1D()(states))
        two = keras.Model(y0, self.layer()(self.layer()(y0)))
        for model, reason in ((flat, "fixed length"), (pooled, "fixed length"), (two, "2 layers")):
            assert list(nde.export_saved_model(model, tmp_path / "1")) == ["serving_default"]
            with pytest.raises(ValueError, match=reason):
                nde.export_saved_model(
                    model, tmp_path / "2", signatures=["serving_default", "at_times"]
                )

    def test_a_model_with_an_input_for_times(self, tmp_path):
        inputs = [keras.Input((2,), name="y0"), keras.Input((None,), name="times")]
        model = keras.Model(inputs, self.layer()(inputs))
        names = nde.export_saved_model(model, tmp_path / "1")
        assert names == {"serving_default": ["y0", "times"], "at_times": ["y0", "times"]}
        served = tf.saved_model.load(str(tmp_path / "1")).signatures
        y0, times = tf.constant(Y0, tf.float32), tf.constant(TIMES[:, :2], tf.float32)
        for name in names:
            out = served[name](y0=y0, times=times)["output_0"]
            np.testing.assert_allclose(out, model([y0, times]), rtol=1e-6)

    def test_a_name_that_the_model_has_taken(self, tmp_path):
        y0 = keras.Input((2,), name="times")
        model = keras.Model(y0, self.layer()(y0))
        names = nde.export_saved_model(model, tmp_path / "1")
        assert names["at_times"] == ["times", "times_of_call"]

    def test_a_layer_inside_a_field_does_not_listen(self, tmp_path):
        inner = keras.Sequential([keras.Input((2,)), self.layer(), keras.layers.Dense(2)])
        outer = nde.NeuralODE(inner, (0.0, 1.0), "euler", dt0=0.25)
        y0 = keras.Input((2,), name="y0")
        model = keras.Model(y0, outer(y0))
        nde.export_saved_model(model, tmp_path / "1")
        serve = tf.saved_model.load(str(tmp_path / "1")).signatures["at_times"]
        times = tf.constant([0.5, 1.0])
        out = serve(y0=tf.constant(Y0, tf.float32), times=times)["output_0"]
        np.testing.assert_allclose(out, outer([np.float32(Y0), times]), rtol=1e-5)

    def test_subclassed_and_sequential(self, tmp_path):
        class Mine(keras.Model):
            def __init__(self, layer):
                super().__init__()
                self.inner = layer

            def call(self, y):
                return {"states": self.inner(y)}

        for model in (Mine(self.layer()), keras.Sequential([self.layer()])):
            expected = model(np.float32(Y0))
            expected = expected["states"] if isinstance(expected, dict) else expected
            names = nde.export_saved_model(model, tmp_path / "1")
            served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
            (name,) = names["serving_default"]
            (out,) = served(**{name: tf.constant(Y0, tf.float32)}).values()
            np.testing.assert_allclose(out, expected, rtol=1e-6)

    def test_refusals(self, tmp_path):
        layer = self.layer()
        with pytest.raises(ValueError, match="call it on data once"):
            nde.export_saved_model(layer, tmp_path / "1")
        with pytest.raises(TypeError, match="`model` must be"):
            nde.export_saved_model(lambda y: y, tmp_path / "1")
        layer(np.float32(Y0))
        for wrong in (["at_times"], ["serving_default", "other"]):
            with pytest.raises(ValueError, match="`signatures` must name"):
                nde.export_saved_model(layer, tmp_path / "1", signatures=wrong)
        with pytest.raises(ValueError, match="no stochastic layer"):
            names = ["serving_default", "with_seed"]
            nde.export_saved_model(layer, tmp_path / "1", signatures=names)
        assert not (tmp_path / "1").exists()

    def test_joint_steps_are_named(self, tmp_path):
        layer = self.layer(step_control="joint")
        layer(np.float32(Y0))
        with pytest.warns(UserWarning, match="together"):
            nde.export_saved_model(layer, tmp_path / "1", signatures="serving_default")


class TestWarmup:
    @pytest.fixture
    def model(self):
        layer = nde.NeuralDSDE(
            keras.layers.Dense(2), keras.layers.Dense(2), (0.0, 1.0), "euler_maruyama", dt0=0.5,
            controller="constant", saveat=[0.5, 1.0],
        )  # fmt: skip
        y0 = keras.Input((2,), name="y0")
        return keras.Model(y0, layer(y0))

    def records(self, path):
        """The requests on file, read by the server's own message where it is installed."""
        api = pytest.importorskip(
            "tensorflow_serving.apis.prediction_log_pb2",
            reason="needs the package tensorflow-serving-api (pip install --no-deps is enough)",
        )
        for record in tf.data.TFRecordDataset(str(path / warmup.FILE)).as_numpy_iterator():
            message = api.PredictionLog.FromString(record)
            assert message.WhichOneof("log_type") == "predict_log"
            request = message.predict_log.request
            arrays = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            yield request.model_spec.signature_name, arrays

    def test_the_file_is_what_the_server_reads(self, model, tmp_path):
        path = tmp_path / "1"
        names = nde.export_saved_model(model, path, warmup=Y0)
        requests = dict(self.records(path))
        assert set(requests) == {"serving_default", "at_times", "with_seed"}
        for name, inputs in requests.items():
            assert sorted(inputs) == sorted(names[name])
            np.testing.assert_array_equal(inputs["y0"], np.float32(Y0))
        np.testing.assert_array_equal(requests["at_times"]["times"], [[0.5, 1.0]] * 4)
        np.testing.assert_array_equal(requests["with_seed"]["seed"], [0] * 4)

    def test_chosen_requests(self, model, tmp_path):
        path = tmp_path / "1"
        requests = [("with_seed", {"y0": Y0[:n], "seed": np.arange(n)}) for n in (1, 4)]
        nde.export_saved_model(model, path, warmup=requests)
        for (name, expected), (found, inputs) in zip(requests, self.records(path), strict=True):
            assert name == found
            for key, value in expected.items():
                np.testing.assert_array_equal(inputs[key], np.asarray(value, inputs[key].dtype))

    def test_the_bytes_of_a_request(self):
        # By hand: tags are (number << 3) | 2, each followed by a length.
        log = warmup.prediction_log("s", {"x": np.float32(1.0)})
        tensor = tf.make_tensor_proto(np.float32(1.0)).SerializeToString()
        spec = bytes([1 << 3 | 2, 3, 3 << 3 | 2, 1]) + b"s"
        entry = bytes([1 << 3 | 2, 1]) + b"x" + bytes([2 << 3 | 2, len(tensor)]) + tensor
        request = spec + bytes([2 << 3 | 2, len(entry)]) + entry
        inner = bytes([1 << 3 | 2, len(request)]) + request
        assert log == bytes([6 << 3 | 2, len(inner)]) + inner
        long = warmup.prediction_log("s", {"x": np.zeros(1000, np.float32)})
        assert len(long) > 4000 and long[1] & 0x80

    def test_refusals(self, model, tmp_path):
        path = tmp_path / "1"
        for wrong, sentence in (
            ([Y0, Y0], "a batch of the model's inputs"),
            ([("other", {"y0": Y0})], "must be for one of the signatures"),
            ([("at_times", {"y0": Y0})], "must be for one of the signatures"),
            ([("serving_default", {"y0": Y0[:, :1]})], "fails"),
        ):
            with pytest.raises(ValueError, match=sentence):
                nde.export_saved_model(model, path, warmup=wrong)
        assert not pathlib.Path(path).exists()
