"""Warm-up requests for TensorFlow Serving: a file of records that the server plays at loading.

The file holds `tensorflow.serving.PredictionLog` messages. Only a few of their fields are needed,
so that they are put together here by the rules of Protocol Buffers' wire format
(https://protobuf.dev/programming-guides/encoding/) instead of asking for the package
`tensorflow-serving-api`. The numbers of the fields are those of its files `prediction_log.proto`,
`predict.proto` and `model.proto`.
"""

import os

import tensorflow as tf

_PREDICT_LOG = 6  # PredictionLog.predict_log
_REQUEST = 1  # PredictLog.request
_MODEL_SPEC, _INPUTS = 1, 2  # PredictRequest.model_spec, .inputs
_SIGNATURE_NAME = 3  # ModelSpec.signature_name
_KEY, _VALUE = 1, 2  # of an entry of a map

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def write_requests(path, requests):
    """Writes the file of warm-up requests of a SavedModel.

    Args:
        path: the directory of the SavedModel.
        requests: pairs `(signature name, {input name: array})`.
    """
    file = os.path.join(path, FILE)
    tf.io.gfile.makedirs(os.path.dirname(file))
    with tf.io.TFRecordWriter(file) as writer:
        for name, inputs in requests:
            writer.write(prediction_log(name, inputs))


def prediction_log(signature_name, inputs):
    """A request as a serialised `PredictionLog`."""
    spec = _field(_SIGNATURE_NAME, signature_name.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number, content):
    """A field whose content is delimited by its length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number):
    """A whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
