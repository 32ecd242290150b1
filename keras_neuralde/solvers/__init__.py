"""One-step methods."""

from keras_neuralde.solvers.base import Solver as Solver
from keras_neuralde.solvers.base import Step as Step
from keras_neuralde.solvers.explicit_rk import ExplicitRungeKutta as ExplicitRungeKutta
from keras_neuralde.solvers.registry import get as get
from keras_neuralde.solvers.registry import names as names
from keras_neuralde.solvers.registry import serialize as serialize
