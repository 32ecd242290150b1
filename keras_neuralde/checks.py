"""What every door asks of a plain argument: one sentence each, with what was expected and came."""

import difflib
import inspect
import numbers
import os
from typing import Any

import numpy as np


def check_whole(name, value, least=1):
    """A whole number, as an `int`.

    Args:
        name: the argument's name, for the sentence; so in all of these functions.
        value: what came.
        least: the smallest number that makes sense.

    Raises:
        ValueError: for anything else.

    Example:

    >>> check_whole("max_steps", 10)
    10
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {value!r}")
    return int(value)


def check_integer(name, value):
    """A whole number of either sign, as an `int`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"`{name}` must be an integer. Received: {value!r}")
    return int(value)


def check_flag(name, value):
    """A boolean, as a `bool`.

    Raises:
        TypeError: for anything else; `"no"` would count as true.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False. Received: {value!r}")
    return bool(value)


def check_choice(name, value, allowed):
    """One of some names.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {list(allowed)}. Received: {value!r}")
    return value


def check_function(name, value, form):
    """Something that can be called.

    Args:
        name: the argument's name.
        value: what came.
        form: how it is called, such as `"f(t, y, p)"`.

    Raises:
        TypeError: for anything else.
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a function {form}. Received: {value!r}")
    return value


def check_takes(f, form, *arguments):
    """A function that can be called with these arguments.

    Args:
        f: the function.
        form: how it is called, such as `"f(t, y, p)"`.
        *arguments: what it is about to be called with.

    Raises:
        TypeError: if it takes fewer or more.
    """
    try:
        inspect.signature(f).bind(*arguments)
    except ValueError:
        pass  # Some callables have no signature.
    except TypeError as error:
        raise TypeError(
            f"a function is called as {form}. Received: one that takes {inspect.signature(f)}"
        ) from error


def check_number(name, value):
    """A finite number, as a `float`; arrays and tensors of one number count.

    Raises:
        ValueError: for anything else.
    """
    number = _number(value)
    if number is None or not np.isfinite(number):
        raise ValueError(f"`{name}` must be a finite number. Received: {value!r}")
    return number


def check_positive(name, value):
    """A finite number above zero, as a `float`.

    Raises:
        ValueError: for anything else.
    """
    number = _number(value)
    if number is None or not 0.0 < number < np.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {value!r}")
    return number


def check_not_negative(name, value):
    """A number of zero or more, as a `float`.

    Raises:
        ValueError: for anything else.
    """
    number = _number(value)
    if number is None:
        raise ValueError(f"`{name}` must be a number. Received: {value!r}")
    if not number >= 0.0:
        raise ValueError(f"`{name}` must not be negative or NaN. Received: {value!r}")
    return number


def _number(value):
    """`value` as a `float`; `None` for what is not one number."""
    if isinstance(value, numbers.Real):
        return None if isinstance(value, bool) else float(value)
    if isinstance(value, str) or getattr(value, "shape", None) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def check_array(name: str, value: Any) -> np.ndarray:
    """Numbers as a NumPy array of a floating type: their own, or float64.

    Raises:
        TypeError: for what is not made of real numbers, or not rectangular.
    """
    cause: Exception | None = None
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array if array.dtype.kind == "f" else array.astype(float)
    except (TypeError, ValueError) as error:
        cause = error
    raise TypeError(f"`{name}` must be an array of numbers. Received: {value!r}") from cause


def check_labels(name, value):
    """A list of strings.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"`{name}` must be a list of names. Received: {value!r}")
    return list(value)


def check_keywords(whose, keywords, *allowed):
    """Keywords that are known.

    Args:
        whose: the function that takes them.
        keywords: what came, a dictionary.
        *allowed: the known names, in one or more collections.

    Raises:
        TypeError: for another name; the sentence has the nearest known one.
    """
    names = [name for some in allowed for name in some]
    for name, value in keywords.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise TypeError(
                f"{whose} has no keyword `{name}`; it must be one that the documentation lists. "
                f"Received: {name}={value!r}.{hint}"
            )


def check_path(name, value):
    """A path, as a `str`.

    Raises:
        TypeError: for anything else.
    """
    try:
        return os.fspath(value)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a path. Received: {value!r}") from error
