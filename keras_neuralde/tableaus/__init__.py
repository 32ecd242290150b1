"""Runge-Kutta methods as tables of numbers."""

from keras_neuralde.tableaus import explicit, high_order
from keras_neuralde.tableaus.tableau import ButcherTableau as ButcherTableau

EXPLICIT = {
    table.name: table
    for table in (
        explicit.EULER,
        explicit.MIDPOINT,
        explicit.HEUN,
        explicit.RALSTON,
        explicit.BOSH3,
        explicit.RK4,
        explicit.DOPRI5,
        explicit.TSIT5,
        high_order.VERN7,
        high_order.DOPRI8,
    )
}
"""The explicit methods by name, in the order of their order."""
