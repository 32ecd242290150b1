"""Ordinary differential equations at the front door."""

import numpy as np
import tensorflow as tf

from keras_neuralde import adjoints, captures, controllers, solvers, values
from keras_neuralde.checks import check_array
from keras_neuralde.controllers import Constant
from keras_neuralde.equations.base import Equation, Lifted, checked, spanning
from keras_neuralde.fields import Field, Implicit
from keras_neuralde.programs import function_key
from keras_neuralde.sparsity import find_band


class OrdinaryEquation(Equation):
    """An `ODEProblem`."""

    _pattern = None

    def choose_solver(self, solver, adjoint, controller):
        if solver != "auto":
            return solver
        if self.problem.mass_matrix is not None:
            return "rodas5p"
        # Neither other adjoints nor constant steps go with a method that switches.
        constant = isinstance(controllers.get(controller or "I"), Constant)
        switches = adjoints.get(adjoint).name == "discrete" and not constant
        return solvers.Switching() if switches else "tsit5"

    def check(self, settings):
        problem, solver = self.problem, settings.solver
        refuse_delay_solver(problem, solver)
        if solver.stochastic:
            raise ValueError(
                f"solver {solver.name!r} is for an SDEProblem; an ODEProblem has no noise. "
                "Use an ODE solver such as 'tsit5'."
            )
        if solver.splits:
            raise ValueError(
                f"{solver!r} is for a SplitODEProblem; an ODEProblem has one part. Use "
                f"{solver.name!r}, which treats all of it implicitly."
            )
        for name in ("mass_matrix", "jacobian", "jac_sparsity"):
            if getattr(problem, name) is not None and not solver.implicit:
                raise ValueError(
                    f"`{name}` belongs to implicit solvers, such as 'rodas5p'; solver "
                    f"{solver.name!r} cannot use it. Leave it out, or choose an implicit solver."
                )
        if problem.jacobian is not None and not callable(problem.jacobian):
            raise TypeError(
                f"`jacobian` must be a function jacobian(t, y, p). Received: {problem.jacobian!r}"
            )

    def inputs(self, settings, layout, inputs, seed):
        self._pattern = _sparsity(self.problem, layout)
        return _mass_matrix(self.problem, settings.solver, layout)

    def key(self, references):
        jacobian, pattern = self.problem.jacobian, self._pattern
        return (
            function_key(self.problem.f, references),
            None if jacobian is None else function_key(jacobian, references),
            None if pattern is None else pattern.tobytes(),
        )

    def lift(self, layout, p):
        specs = spanning(layout, p)
        jacobian = self.problem.jacobian
        if jacobian is not None:
            jacobian = captures.lift(_checked_jacobian(jacobian, layout), *specs)
        field = captures.lift(checked(self.problem.f, layout), *specs)
        return LiftedOrdinary(field, jacobian, self._pattern)


class LiftedOrdinary(Lifted):
    """The traced field, the traced Jacobian and its pattern; the last two may be `None`."""

    def __init__(self, field, jacobian, sparsity):
        self.functions = (field,)
        self.field = field
        self.jacobian = jacobian
        self.sparsity = sparsity

    def bind(self, context):
        substitute = context.settings.solver.delegated and bool(self.field.captures)
        implicit = implicit_terms(context, self.jacobian, self.sparsity)
        return Field(
            self.field, context.layout, context.batch_dims, context.p_leaves, substitute, implicit
        )


def refuse_delay_solver(problem, solver):
    """Refuses `MethodOfSteps` for an equation without delays."""
    if solver.remembers:
        raise ValueError(
            f"MethodOfSteps is for a DDEProblem; give its inner solver {solver.name!r} to a "
            f"{type(problem).__name__}."
        )


def implicit_terms(context, jacobian=None, sparsity=None):
    """What implicit methods know of the equation."""
    settings, inputs, terms = context.settings, context.inputs, context.terms
    constant = not settings.solver.adaptive or isinstance(settings.controller, Constant)
    banded = sparsity is not None and not {"mass", "mass_inverse"} & inputs.keys()
    return Implicit(
        inputs.get("mass"),
        inputs.get("mass_inverse"),
        inputs.get("constraints"),
        inputs.get("pseudoinverse"),
        jacobian,
        sparsity,
        find_band(sparsity) if banded else None,
        None if constant else (terms.rtol, terms.atol),
    )


def _mass_matrix(problem, solver, layout):
    """The inputs that a mass matrix adds."""
    if problem.mass_matrix is None:
        return {}
    n, dtype = layout.width, layout.dtype
    mass = values.as_float(problem.mass_matrix, dtype, "mass_matrix")
    if mass.shape != (n, n):
        raise ValueError(
            f"`mass_matrix` must be of shape ({n}, {n}) for a state of {n} components. "
            f"Received shape: {mass.shape}"
        )
    known = values.known(mass)
    if known is None:
        if solver.inverts_mass:
            raise ValueError(
                f"solver {solver.name!r} needs a mass matrix that is known when the solve is "
                f"built; use 'rodas5p' or 'rosenbrock23'. Received: {mass}"
            )
        # Inside a graph: the equations without a time derivative are the rows of zeros.
        constraints = tf.linalg.diag(tf.cast(tf.reduce_all(tf.equal(mass, 0.0), axis=1), dtype))
        return {"mass": mass, "constraints": constraints}
    if not np.all(np.isfinite(known)):
        raise ValueError("`mass_matrix` must be finite. Received: NaN or infinite entries")
    known = known.astype(float)
    inverse = np.linalg.pinv(known)
    if np.linalg.matrix_rank(known) == n:
        if solver.inverts_mass:
            return {"mass_inverse": tf.constant(np.linalg.inv(known), dtype)}
        return {"mass": mass}
    if not solver.singular_mass:
        raise ValueError(
            f"solver {solver.name!r} needs a mass matrix that can be inverted; use an implicit "
            f"method by its name, such as 'rodas5p' or 'kvaerno5'. Received: {mass}"
        )
    # The projector onto what no M y' can reach: the left null space.
    singular = {"mass": mass, "constraints": tf.constant(np.eye(n) - known @ inverse, dtype)}
    if solver.inverts_mass:
        singular["pseudoinverse"] = tf.constant(inverse, dtype)
    return singular


def _sparsity(problem, layout):
    """The pattern of the Jacobian as booleans, or `None`."""
    if problem.jac_sparsity is None:
        return None
    n = layout.width
    pattern = problem.jac_sparsity
    # Sparse matrices of SciPy become arrays by this method alone.
    pattern = pattern.toarray() if hasattr(pattern, "toarray") else pattern
    pattern = check_array("jac_sparsity", pattern)
    if pattern.shape != (n, n):
        raise ValueError(
            f"`jac_sparsity` must be an array of shape ({n}, {n}), nonzero where the Jacobian may "
            f"be. Received shape: {pattern.shape}"
        )
    if np.any(np.isnan(pattern)):
        raise ValueError(
            "`jac_sparsity` must be nonzero where the Jacobian may be and zero elsewhere. "
            "Received: NaN among its entries"
        )
    return pattern != 0


def _checked_jacobian(function, layout):
    n, batch = layout.width, list(layout.batch_shape)
    shapes = [tf.TensorShape([*batch, n, n])]
    if len(layout.state_shapes) == 1:
        shapes.append(tf.TensorShape([*batch, *layout.state_shapes[0] * 2]))

    def jacobian(t, y, p):
        matrix = function(t, y, p)
        if matrix is None:
            raise ValueError(
                f"jacobian(t, y, p) must return the shape {shapes[0]}: ∂f_i/∂y_j in row i and "
                "column j. Received: None"
            )
        matrix = tf.convert_to_tensor(matrix)
        if matrix.dtype != layout.dtype:
            raise TypeError(
                f"jacobian(t, y, p) must return the dtype of `y`, {layout.dtype.name}. "
                f"Received: {matrix.dtype.name}"
            )
        if not any(matrix.shape.is_compatible_with(shape) for shape in shapes):
            raise ValueError(
                f"jacobian(t, y, p) must return the shape {shapes[0]}: ∂f_i/∂y_j in row i and "
                f"column j. Received: {matrix.shape}"
            )
        return matrix

    return jacobian
