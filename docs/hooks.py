"""Fills the tables of `methods.md` from the methods themselves."""

from keras_neuralde import solvers
from keras_neuralde.tableaus import ESDIRK, EXPLICIT, ROSENBROCK

MARKER = "<!-- explicit methods -->"
IMPLICIT_MARKER = "<!-- implicit methods -->"


def on_page_markdown(markdown, **_):
    """Replaces each marker by one row for each table."""
    for marker, rows in ((MARKER, explicit_rows), (IMPLICIT_MARKER, implicit_rows)):
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(rows()))
    return markdown


def explicit_rows():
    """The rows of the explicit Runge-Kutta methods."""
    yield "| Name | Order | Error estimate | Evaluations a step | Interpolant | Source |"
    yield "|---|---|---|---|---|---|"
    for table in EXPLICIT.values():
        evaluations = table.num_stages - table.first_same_as_last
        extra = len(table.interpolant()[0])
        cells = [
            f"`{table.name}`",
            table.order,
            f"order {table.error_order}" if table.has_error else "none: fixed steps",
            f"{evaluations} (+{extra} to interpolate)" if extra else evaluations,
            f"order {table.dense_order}" if table.dense else "cubic Hermite",
            table.source,
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def implicit_rows():
    """The rows of the Rosenbrock and ESDIRK methods."""
    yield "| Name | Kind | Order | Error estimate | Stages | Interpolant | Mass matrix | Source |"
    yield "|---|---|---|---|---|---|---|---|"
    for table in (*ROSENBROCK.values(), *ESDIRK.values()):
        solver = solvers.get(table.name)
        cells = [
            f"`{table.name}`",
            "Rosenbrock" if table.name in ROSENBROCK else "ESDIRK",
            table.order,
            f"falls like h^{table.error_order + 1}",
            table.num_stages,
            f"order {table.dense_order}" if table.dense else "cubic Hermite",
            "any" if solver.singular_mass else "invertible",
            table.source,
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"
