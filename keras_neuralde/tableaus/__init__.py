"""Runge-Kutta methods as tables of numbers."""

from keras_neuralde.tableaus import esdirk, explicit, high_order, rosenbrock
from keras_neuralde.tableaus.esdirk import ESDIRKTableau as ESDIRKTableau
from keras_neuralde.tableaus.rosenbrock import RosenbrockTableau as RosenbrockTableau
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

ROSENBROCK = {table.name: table for table in (rosenbrock.ROSENBROCK23, rosenbrock.RODAS5P)}
"""The Rosenbrock methods by name."""

ESDIRK = {
    table.name: table
    for table in (
        esdirk.IMPLICIT_EULER,
        esdirk.TRBDF2,
        esdirk.KVAERNO3,
        esdirk.KVAERNO5,
        esdirk.KENCARP4,
    )
}
"""The singly diagonally implicit methods with an explicit first stage by name."""
