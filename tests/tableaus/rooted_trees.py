"""Rooted trees and the order conditions of Runge-Kutta methods.

A rooted tree is the tuple of its subtrees in a fixed order; the single node is `()`. For every tree
τ the method must satisfy Σ_i b_i Φ_i(τ) = 1 / γ(τ), and its continuous extension Σ_i b_i(θ) Φ_i(τ)
= θ^ρ(τ) / γ(τ), with ρ the number of nodes (Hairer, Nørsett & Wanner, "Solving Ordinary
Differential Equations I", sections II.2 and II.6).
"""

import functools
import math
from fractions import Fraction


@functools.cache
def trees(nodes):
    """All rooted trees with that many nodes."""
    return tuple(_forests(nodes - 1, nodes - 1, None))


def _forests(nodes, largest, last):
    """Multisets of trees with `nodes` nodes in all, as tuples in non-increasing order."""
    if nodes == 0:
        yield ()
        return
    for size in range(min(nodes, largest), 0, -1):
        for index, tree in enumerate(trees(size)):
            if last is not None and (size, index) > last:
                continue
            for rest in _forests(nodes - size, size, (size, index)):
                yield (tree, *rest)


@functools.cache
def nodes(tree):
    return 1 + sum(nodes(branch) for branch in tree)


@functools.cache
def density(tree):
    """γ(τ): the product of the numbers of nodes of τ and of all its subtrees."""
    return nodes(tree) * math.prod(density(branch) for branch in tree)


def stage_weights(a):
    """Returns the function Φ(τ), one number for each stage, of the table with rows `a`."""

    @functools.cache
    def phi(tree):
        weights = [1] * len(a)
        for branch in tree:
            inner = phi(branch)
            weights = [w * _dot(row, inner) for w, row in zip(weights, a, strict=True)]
        return weights

    return phi


def residuals(a, b, order, theta=1):
    """Σ_i b_i Φ_i(τ) - θ^ρ / γ(τ) for all trees with exactly `order` nodes."""
    phi = stage_weights(a)
    return [_dot(b, phi(tree)) - theta**order * Fraction(1, density(tree)) for tree in trees(order)]


def _dot(row, values):
    return sum(x * y for x, y in zip(row, values, strict=False) if x != 0)


def rosenbrock_residuals(alpha, gammas, b, order, theta=1):
    """The same for Rosenbrock methods with an exact Jacobian.

    A node with one branch sums over β = α + γ, one with several over α (Hairer & Wanner, "Solving
    Ordinary Differential Equations II", theorem IV.7.4).
    """
    beta = [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(alpha, gammas, strict=True)]

    @functools.cache
    def phi(tree):
        rows = beta if len(tree) == 1 else alpha
        weights = [1] * len(b)
        for branch in tree:
            inner = phi(branch)
            weights = [w * _dot(row, inner) for w, row in zip(weights, rows, strict=True)]
        return weights

    return [_dot(b, phi(tree)) - theta**order / density(tree) for tree in trees(order)]
