"""Compiled programs for eager calls, kept by what they depend on.

An eager `solve` compiles once for an equation, its shapes and its settings; values never enter the
key. A lambda that is made anew for each call but has the same code and closes over the same
objects finds its program again.
"""

import collections
import threading
import types
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

_LIMIT = 128
_VALUE_TYPES = (int, float, complex, str, bytes, bool, type(None))

_Function = TypeVar("_Function", bound=Callable)


def as_written(function: _Function) -> _Function:
    """The function, which AutoGraph leaves as it is; its type stays known to type checkers."""
    return tf.autograph.experimental.do_not_convert(function)


def compiled(function, jit):
    """A `tf.function` whose traces raise no warning.

    TensorFlow counts traces by the line where a function is written, and warns after five: five
    equations, each of which is traced once, look to it like one that is traced again and again.

    Args:
        function: what it runs.
        jit: whether XLA compiles it.
    """
    program = tf.function(function, jit_compile=jit, autograph=False)
    program._omit_frequent_tracing_warning = True  # Private; without it only the warning is back.
    return program


class ProgramCache:
    """A bounded, least-recently-used store."""

    def __init__(self, limit=_LIMIT):
        self._limit = limit
        self._entries = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key, references, make):
        """The entry for `key`, made when missing.

        Args:
            key: hashable; ids in it belong to `references`.
            references: objects kept alive with the entry, so that their ids stay theirs.
            make: called without arguments to build the entry.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        entry = make()
        with self._lock:
            self._entries[key] = (entry, references)
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
        return entry

    def clear(self):
        """Forgets all programs."""
        with self._lock:
            self._entries.clear()

    def __len__(self):
        return len(self._entries)


def function_key(function, references, depth=4):
    """What makes two Python functions the same to a tracer.

    Args:
        function: any callable.
        references: a list that receives the objects whose ids the key holds.
        depth: how far to look into functions that the function closes over.

    Returns:
        A hashable key.
    """
    references.append(function)
    if isinstance(function, types.MethodType):
        references.append(function.__self__)
        return id(function.__self__), function_key(function.__func__, references, depth)
    if not isinstance(function, types.FunctionType) or depth == 0:
        return id(function)
    cells = function.__closure__ or ()
    held = [_cell_contents(cell) for cell in cells]
    held += list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    # A global that is bound anew, as notebooks do, makes another function.
    names = sorted(_names(function.__code__) & function.__globals__.keys())
    held += [function.__globals__[name] for name in names]
    references.extend(held)
    parts = tuple(_value_key(value, references, depth) for value in held)
    return id(function.__code__), id(function.__globals__), tuple(names), parts


def _names(code):
    """Names that a function's code, or code inside it, looks up."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _cell_contents(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a recursive definition
        return None


def _value_key(value, references, depth):
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return function_key(value, references, depth - 1)
    if isinstance(value, _VALUE_TYPES):
        return type(value), repr(value)
    if isinstance(value, tuple):
        return type(value), *(_value_key(item, references, depth) for item in value)
    return id(value)
