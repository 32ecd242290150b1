"""Fills the tables of `methods.md` from the methods themselves."""

from keras_neuralde.tableaus import EXPLICIT

MARKER = "<!-- explicit methods -->"


def on_page_markdown(markdown, **_):
    """Replaces the marker by one row for each table."""
    if MARKER not in markdown:
        return markdown
    return markdown.replace(MARKER, "\n".join(explicit_rows()))


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
