"""Brownian motion that is never stored: every increment is computed from its key when asked for.

Random numbers come from a counter: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011) maps (seed; trajectory, component, cell, node) to 128 bits.
They are integer operations, so that compiled programs, plain graphs and all devices see the same
bits, and a trajectory's noise depends on the seed and on its number alone.

Time is cut into cells of equal width with independent increments. Inside a cell the path is a
binary tree: the midpoint of an interval is drawn from the law that is conditional on the increment
w and the space-time Lévy area H of the interval (Foster, Lyons & Oberhauser, "An optimal polynomial
approximation of Brownian motion", SIAM J. Numer. Anal. 58, 2020). The path is thus one function of
time, whatever steps ask for it and in whatever order or direction.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Trajectories from which on a loop for their draws pays.
_MANY = 16
# Halvings of a cell. Below that the path is drawn from its exact law, given the small interval's
# increment and area, with one pair of normals for the whole interval.
_DEPTH = 24


class Increment(NamedTuple):
    """What a path does between two times.

    Attributes:
        w: `(rows, components)`, W(t_next) - W(t).
        area: the same shape, the space-time Lévy area H: the mean over the interval of W minus the
            chord between its ends. It is independent of `w` and N(0, |t_next - t| / 12), and
            the integral of W(s) - W(t) over the interval is (t_next - t) (w / 2 + area).
    """

    w: tf.Tensor
    area: tf.Tensor


class Rest(NamedTuple):
    """What a trajectory on a grid of fixed steps has not yet seen of the cell that it is in.

    Attributes:
        cell: `(rows,)` int32, the number of the cell; -1 before the first.
        pieces: `(rows,)` int32, how often the cell was cut.
        w: `(components, rows)`, the increment of what is left, in the order in which it is asked
            for, which may be backwards in time.
        area: the same of its space-time Lévy area.
    """

    cell: tf.Tensor
    pieces: tf.Tensor
    w: tf.Tensor
    area: tf.Tensor


class BrownianPath:
    """The Brownian paths of a batch of trajectories, `components` independent ones for each.

    Args:
        seed: `(2,)` int32, or `(rows, 2)` for a seed of each trajectory.
        trajectory: `(rows,)` int32, the numbers of the trajectories.
        components: how many independent Brownian motions a trajectory has.
        start: `(rows,)`, one end of the time span.
        end: `(rows,)`, the other end.
        cell: scalar, the width of the cells, counted from `start`; `None` for one cell, the span.
        split: whether times inside a cell may be asked for. Without it an interval must be one
            cell: that is the fast path of a grid of fixed steps.

    Example:

    >>> import tensorflow as tf
    >>> span = tf.zeros(1), tf.ones(1)
    >>> path = BrownianPath(tf.constant([7, 0]), tf.constant([0]), 2, *span)
    >>> whole = path(*span)
    >>> halves = path(tf.constant([0.0]), tf.constant([0.5])), path(tf.constant([0.5]), span[1])
    >>> bool(tf.reduce_all(tf.abs(halves[0].w + halves[1].w - whole.w) < 1e-6))
    True
    """

    def __init__(self, seed, trajectory, components, start, end, cell=None, split=True):
        seed = tf.transpose(tf.bitcast(tf.reshape(seed, (-1, 2)), tf.uint32))
        self._key = seed[:1], seed[1:]
        # Inside, components come first and trajectories last: long rows make quick programs.
        self._trajectory = tf.bitcast(trajectory, tf.uint32)[None, :]
        self._component = tf.cast(tf.range(components, dtype=tf.int32), tf.uint32)[:, None]
        self._start, self._end, self._cell, self._split = start, end, cell, split

    def __call__(self, t, t_next):
        """The increment from `t` to `t_next`, `(rows,)` each; they lie in the same cell.

        `t_next` may be before `t`; then `w` is W(t_next) - W(t) all the same.
        """
        if self._split:
            w, area = self._between(t, t_next)
        else:
            h = tf.abs(t_next - t)
            z = self._apart(self._cell_of(t, t_next)[0], tf.ones_like(h, tf.uint32), t.dtype)
            sign = tf.where(t_next < t, -tf.ones_like(h), tf.ones_like(h))
            w, area = sign * tf.sqrt(h) * z[0], tf.sqrt(h / 12.0) * z[1]
        w, area = tf.stop_gradient(tf.transpose(w)), tf.stop_gradient(tf.transpose(area))
        return Increment(w, area)

    def begin(self):
        """What `draw` takes along from one interval to the next; nothing here."""
        return ()

    def align(self, t, t_next):
        """A time shortly before `t_next`, as seen from `t`, at which the path is quick to find.

        It is a fraction of the span with a power of two below, at most an eighth of the way back.
        Steps that end there do not feel rounding: a path is rough, so that a step that is longer by
        1e-8 meets noise that is different by 1e-4, and two machines would soon take other steps.
        """
        span = tf.abs(self._end - self._start)
        halvings = tf.math.ceil(tf.math.log(span / tf.abs(t_next - t)) / np.log(2.0)) + 3.0
        unit = span * tf.pow(tf.constant(0.5, span.dtype), halvings)
        count = tf.floor(tf.abs(t_next - self._start) / unit + 1e-3)
        forwards = self._end >= self._start
        return tf.where(forwards, self._start + count * unit, self._start - count * unit)

    def _cell_of(self, t, t_next):
        """The numbers of the cells, `(rows,)` uint32, where they begin in time, their widths."""
        low, high = tf.minimum(self._start, self._end), tf.maximum(self._start, self._end)
        if self._cell is None:
            return tf.zeros_like(low, tf.uint32), low, high - low
        # Cells are counted from `start`, but numbered from the lower end, so that both directions
        # agree where the span is a whole number of cells.
        backwards = self._end < self._start
        count = tf.maximum(tf.math.ceil((high - low) / self._cell - 1e-3), 1.0)
        middle = tf.abs(0.5 * (t + t_next) - self._start)
        step = tf.minimum(tf.floor(middle / self._cell), count - 1.0)
        near = step * self._cell
        far = tf.where(step == count - 1.0, high - low, near + self._cell)
        begin = tf.where(backwards, high - far, low + near)
        number = tf.where(backwards, count - 1.0 - step, step)
        return tf.cast(tf.cast(number, tf.int64), tf.uint32), begin, far - near

    def _apart(self, cell, node, dtype):
        """`_normals` out of reach of what uses them.

        XLA would draw them inside of every computation that does, again and again and element by
        element in the order of its layout. A loop of one turn, which the compiler cannot know to be
        one, makes them once; for a few trajectories it costs more than it saves.
        """
        if cell.shape[0] is not None and cell.shape[0] < _MANY:
            return self._normals(cell, node, dtype)
        empty = tf.zeros_like(self._component + node, dtype)

        def turn(*_):
            return tf.constant(False), *self._normals(cell, node, dtype)

        once = ~tf.reduce_all(tf.math.is_nan(self._start))
        return tf.while_loop(lambda more, *_: more, turn, (once, empty, empty))[1:]

    def _normals(self, cell, node, dtype):
        """Two independent normal numbers for each component and trajectory."""
        zero = tf.zeros_like(self._component + node)
        component, trajectory = self._component + zero, self._trajectory + zero
        bits = philox(self._key, (cell + zero, node + zero, component, trajectory))
        return normals(bits, dtype)

    def _between(self, t, t_next):
        """Descends the tree to both times at once, in float64: differences lose digits.

        Arrays are `(2, components, rows)`, the first axis for the two times.
        """
        dtype = t.dtype
        cell, low, width = self._cell_of(t, t_next)
        low, width = tf.cast(low, tf.float64), tf.cast(width, tf.float64)
        times = tf.cast(tf.stack([t, t_next]), tf.float64)[:, None, :]
        size = width + tf.zeros_like(times)
        x = (times - low) / tf.where(size > 0.0, size, tf.ones_like(size))
        x = _on_grid(tf.clip_by_value(x, 0.0, 1.0), times, size, dtype)
        node = tf.ones_like(x, tf.uint32)

        def draw(node):
            return [tf.cast(z, tf.float64) for z in self._normals(cell, node, dtype)]

        z = draw(node)
        w, area = tf.sqrt(size) * z[0], tf.sqrt(size / 12.0) * z[1]

        def more(depth, x, *_):
            return (depth < _DEPTH) & tf.reduce_any((x > 0.0) & (x < 1.0))

        def halve(depth, x, node, size, z0, z1, w, area, position, integral):
            bend, twist = tf.sqrt(size / 16.0) * z0, tf.sqrt(size / 48.0) * z1
            left, left_area = 0.5 * w + 1.5 * area + bend, 0.25 * area - 0.5 * bend + twist
            going = (x > 0.0) & (x < 1.0)
            up, down = going & (x >= 0.5), going & (x < 0.5)
            over = 0.5 * size * (position + 0.5 * left + left_area)
            integral += tf.where(up, over, 0.0)
            position += tf.where(up, left, 0.0)
            w = tf.where(up, w - left, tf.where(down, left, w))
            area = tf.where(up, left_area - 2.0 * twist, tf.where(down, left_area, area))
            x = tf.where(going, 2.0 * x - tf.where(up, tf.ones_like(x), 0.0), x)
            node = tf.where(going, 2 * node + tf.cast(up, tf.uint32), node)
            size = tf.where(going, 0.5 * size, size)
            # Drawn here for the next turn: the loop's boundary keeps XLA from drawing them again
            # for each of the lines above.
            return depth + 1, x, node, size, *draw(2 * node), w, area, position, integral

        zero = tf.zeros_like(w)
        loop = (tf.constant(0), x, node, size, *draw(2 * node), w, area, zero, zero)
        _, x, _, size, z0, z1, w, area, position, integral = tf.while_loop(more, halve, loop)
        part, part_area = _cut(x, size, w, area, z0, z1)[0]
        integral += x * size * (position + 0.5 * part + part_area)
        position += part
        h = times[1] - times[0]
        mean = (integral[1] - integral[0]) / tf.where(h == 0.0, tf.ones_like(h), h)
        chord = 0.5 * (position[0] + position[1])
        bent = tf.where(h == 0.0, tf.zeros_like(mean), mean - chord)
        return tf.cast(position[1] - position[0], dtype), tf.cast(bent, dtype)


class CutGridPath(BrownianPath):
    """Brownian paths on a grid of fixed steps that something may cut anywhere.

    Intervals are asked for in their order, each once, and one that ends inside a cell is drawn from
    the law that is conditional on the cell, as far as it is still to come: two pairs of normal
    numbers for an interval, whatever its length, where a tree takes a pair for each halving. A
    cell as a whole has the noise that it has without cuts. What it does inside depends on where it
    is cut.

    Args:
        *arguments: those of `BrownianPath`; `cell` is needed.

    Example:

    >>> import tensorflow as tf
    >>> span, third = (tf.zeros(1), tf.ones(1)), tf.constant([0.3])
    >>> path = CutGridPath(tf.constant([7, 0]), tf.constant([0]), 2, *span, tf.constant(0.5))
    >>> first, rest = path.draw(span[0], third, path.begin())
    >>> second, rest = path.draw(third, tf.constant([0.5]), rest)
    >>> grid = BrownianPath(
    ...     tf.constant([7, 0]), tf.constant([0]), 2, *span, tf.constant(0.5), split=False
    ... )
    >>> whole = grid(span[0], tf.constant([0.5]))
    >>> bool(tf.reduce_all(tf.abs(first.w + second.w - whole.w) < 1e-6))
    True
    """

    def __call__(self, t, t_next):
        raise NotImplementedError("a path that is cut knows its intervals in their order: `draw`")

    def begin(self):
        """The `Rest` before the first interval."""
        nothing = tf.zeros_like(self._start)
        none = tf.zeros((self._component.shape[0], 1), nothing.dtype) + nothing
        return Rest(-tf.ones_like(nothing, tf.int32), tf.zeros_like(nothing, tf.int32), none, none)

    def draw(self, t, t_next, rest):
        """The `Increment` from `t` to `t_next`, as from a call, and the `Rest` after it.

        Args:
            t: `(rows,)`, where the last interval ended.
            t_next: `(rows,)`, in the same cell; equal to `t` in rows that rest.
            rest: the `Rest` at `t`.
        """
        dtype = t.dtype
        cell, low, width = self._cell_of(t, t_next)
        number = tf.bitcast(cell, tf.int32)
        moved, fresh = t_next != t, number != rest.cell
        forwards = self._end >= self._start
        end = tf.where(forwards, low + width, low)
        whole = tf.abs(end - t_next) <= resolution(t_next, self._start)
        pieces = tf.where(fresh, tf.zeros_like(number), rest.pieces)
        node = tf.stack([tf.ones_like(cell), tf.bitcast(pieces + 2, tf.uint32)])[:, None, :]

        def wide(x):
            return tf.cast(x, tf.float64)

        z0, z1 = (wide(z) for z in self._apart(cell, node, dtype))
        size = tf.where(whole | ~moved, tf.abs(wide(t_next) - wide(t)), tf.abs(wide(end) - wide(t)))
        share = tf.abs(wide(t_next) - wide(t)) / tf.where(size > 0.0, size, tf.ones_like(size))
        share = tf.where(whole, tf.ones_like(share), tf.minimum(share, 1.0))
        # In the order of the intervals: backwards in time, areas change their signs.
        sign = tf.where(forwards, tf.ones_like(size), -tf.ones_like(size))
        w = tf.where(fresh, tf.sqrt(size) * z0[0], wide(rest.w))
        area = tf.where(fresh, sign * tf.sqrt(size / 12.0) * z1[0], wide(rest.area))
        first, last = _cut(share, size, w, area, z0[1], z1[1])
        w, area = (
            tf.transpose(tf.cast(tf.where(moved, sign * x, tf.zeros_like(x)), dtype)) for x in first
        )
        left = Rest(
            number, pieces + tf.cast(~whole, tf.int32), *(tf.cast(x, dtype) for x in last)
        )  # fmt: skip
        left = Rest(*(tf.where(moved, new, old) for new, old in zip(left, rest, strict=True)))
        found = Increment(w, area), left
        return tf.nest.map_structure(tf.stop_gradient, found)


def resolution(t, start):
    """How far from the end of a cell a time may be that is meant to be there, `(rows,)`.

    Args:
        t: `(rows,)`.
        start: `(rows,)`, from where the cells are counted.
    """
    eps = float(np.finfo(t.dtype.as_numpy_dtype).eps)
    return 2.0 * eps * (tf.abs(t) + tf.abs(t - start))


def _on_grid(x, times, width, dtype):
    """A time that the dtype cannot tell from a coarse node is that node: a short descent."""
    nearest = tf.round(x * 2.0**20) * 2.0**-20
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    return tf.where(tf.abs(x - nearest) * width <= eps * (width + tf.abs(times)), nearest, x)


def _cut(x, size, w, area, z0, z1):
    """Increment and area of the first `x` of an interval and of its rest.

    They are drawn from the law that is conditional on the whole. `x` may be 0 or 1; then nothing is
    left to chance.
    """
    y = 1.0 - x
    known = x * w + 6.0 * x * y * area
    chance = tf.sqrt(tf.maximum(size * x * y * (1.0 - 3.0 * x * y), 0.0)) * z0
    part = known + chance
    rest = y * w - 6.0 * x * y * area - chance
    # x part_area + y rest_area is given; of each the share that the whole leaves open is drawn.
    cubes = x * x * x + y * y * y
    given = 0.5 * w + area - 0.5 * x * part - y * part - 0.5 * y * rest
    open_ = z1 * tf.sqrt(size * x * y / (12.0 * cubes))
    part_area = x * x * given / cubes + y * open_
    rest_area = y * y * given / cubes - x * open_
    return (part, part_area), (rest, rest_area)


def philox(key, counter):
    """Philox4x32-10: four words of random bits for each counter.

    Args:
        key: two uint32 tensors.
        counter: four uint32 tensors of one shape.

    Returns:
        Four uint32 tensors of that shape.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


def _multiply(word, constant):
    """The high and the low word of a product of 32-bit words."""
    product = tf.cast(word, tf.uint64) * tf.constant(constant, tf.uint64)
    high = tf.bitwise.right_shift(product, tf.constant(32, tf.uint64))
    return tf.cast(high, tf.uint32), tf.cast(product, tf.uint32)


def normals(bits, dtype):
    """Two independent standard normal tensors from four words (Box & Muller, 1958).

    Sine and cosine are polynomials on an eighth of the circle: XLA would call the C library once
    for each number, at three times the cost.
    """
    radius, angle = bits[0], bits[1]
    low_radius, low_angle = bits[2], bits[3]
    quarter = tf.bitwise.right_shift(angle + (1 << 29), tf.constant(30, tf.uint32))
    turn = tf.cast(tf.bitcast(tf.bitwise.left_shift(angle, tf.constant(2, tf.uint32)), tf.int32),
                   dtype)  # fmt: skip
    if dtype == tf.float64:
        uniform = tf.cast(radius, dtype) + (tf.cast(low_radius, dtype) + 1.0) * 2.0**-32
        turn += tf.cast(low_angle, dtype) * 2.0**-30
        terms = 9
    else:
        uniform = tf.cast(radius, dtype) + 1.0
        terms = 5
    r = tf.sqrt(-2.0 * tf.math.log(uniform * 2.0**-32))
    a = turn * (2.0 * np.pi * 2.0**-34)
    sine, cosine = _sine_and_cosine(a, terms)
    odd = (quarter & 1) > 0
    first, second = tf.where(odd, sine, cosine), tf.where(odd, cosine, sine)
    first = tf.where(((quarter + 1) & 2) > 0, -first, first)
    second = tf.where((quarter & 2) > 0, -second, second)
    return r * first, r * second


def _sine_and_cosine(a, terms):
    """Taylor polynomials on [-π/4, π/4]."""
    square = a * a
    sine = cosine = tf.ones_like(a)
    for n in range(terms, 0, -1):
        sine = 1.0 - square * sine / float(2 * n * (2 * n + 1))
        cosine = 1.0 - square * cosine / float((2 * n - 1) * 2 * n)
    return a * sine, cosine
