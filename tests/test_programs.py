"""When an eager solve finds its compiled program again, and when it must not."""

import numpy as np
import tensorflow as tf

import keras_neuralde as nde
from keras_neuralde.programs import ProgramCache, compiled, function_key

rate = 1.0


def uses_global(t, y, p):
    return -rate * y


def uses_global_inside(t, y, p):
    return (lambda: -rate * y)()


def key(function):
    return function_key(function, [])


def test_a_global_bound_anew_is_seen():
    global rate
    for function in (uses_global, uses_global_inside):
        for value in (1.0, 2.0, tf.constant(3.0, tf.float64), tf.constant(4.0, tf.float64)):
            rate = value
            y = nde.solve(nde.ODEProblem(function, np.ones(()), (0.0, 1.0)), rtol=1e-8).y
            np.testing.assert_allclose(y, np.exp(-float(value)), rtol=1e-4)
    rate = 1.0


def test_same_code_and_closure_make_one_key():
    def make(value):
        return lambda t, y, p: value * y

    tensor = tf.constant(2.0)
    assert key(make(tensor)) == key(make(tensor))
    assert key(make(1.5)) == key(make(1.5)) != key(make(2.5))
    assert key(make(tensor)) != key(make(tf.constant(2.0)))


def test_functions_in_closures_and_methods():
    class Field:
        def call(self, t, y, p):
            return y

    def outer(inner):
        return lambda t, y, p: inner(y)

    one, other = Field(), Field()
    assert key(one.call) == key(one.call) != key(other.call)
    assert key(outer(np.sin)) != key(outer(np.cos))


def test_the_cache_is_bounded_and_forgets_the_oldest():
    cache = ProgramCache(limit=2)
    for name in ("a", "b", "a", "c"):
        cache.get(name, [], lambda name=name: name)
    assert len(cache) == 2
    assert cache.get("a", [], lambda: "new") == "a"
    assert cache.get("b", [], lambda: "new") == "new"


def test_programs_of_several_equations_are_no_retracing(caplog):
    """TensorFlow takes functions of one line for one function, and warns of its traces."""
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:

        def warns(make):
            caplog.clear()
            for k in range(8):
                make(lambda x, k=k: x + k)(tf.constant(1.0))
            return "retracing" in caplog.text

        assert warns(tf.function)
        assert not warns(lambda function: compiled(function, False))
    finally:
        logger.removeHandler(caplog.handler)
