"""Functions of one trajectory as functions of a batch of them."""

import itertools

import tensorflow as tf


def by_row(one, template, first, place=2):
    """A function for one trajectory as a function for a batch.

    Args:
        one: the function, such as `one(t, y, p)`.
        template: the structure of its p.
        first: the number of the first leaf of p.
        place: which of its arguments is p.
    """

    def batched(*arguments):
        before, p, after = arguments[:place], arguments[place], arguments[place + 1 :]

        def row(arguments):
            before, varied, after = arguments
            return one(*before, _parameters(varied, p["shared"], template, first), *after)

        return tf.vectorized_map(row, (before, p["varied"], after))

    return batched


def delayed_by_row(one, template, first):
    """`by_row` for the field of a delay equation, `one(t, y, h, p)`.

    All trajectories read their pasts together, so that the field is mapped once more for every
    read: first for the time of the first one, then, with what was read there, for that of the
    second, and so on. The compiler drops what only later reads need.
    """

    def field(t, y, h, p):
        read: list = []
        while True:
            requests: list = []

            def row(arguments, requests=requests, read=read):
                t, y, varied, values = arguments
                requests.clear()

                def past(t_past, *, derivative=False):
                    requests.append((tf.convert_to_tensor(t_past, t.dtype), bool(derivative)))
                    if len(requests) <= len(values):
                        return values[len(requests) - 1]
                    return tf.nest.map_structure(tf.zeros_like, y)

                dy = one(t, y, past, _parameters(varied, p["shared"], template, first))
                unread = requests[len(read)][0] if len(requests) > len(read) else t
                return dy, unread + tf.zeros_like(t)

            dy, times = tf.vectorized_map(row, (t, y, p["varied"], read))
            if len(requests) <= len(read):
                return dy
            read.append(h(times, derivative=requests[len(read)][1]))

    return field


def _parameters(varied, shared, template, first):
    """The p of one trajectory."""
    numbers = itertools.count(first)
    leaves = []
    for leaf in tf.nest.flatten(template):
        if leaf is not None:
            key = str(next(numbers))
            leaf = varied[key] if key in varied else shared[key]
        leaves.append(leaf)
    return tf.nest.pack_sequence_as(template, leaves)
