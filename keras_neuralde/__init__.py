"""keras_neuralde: differential equations inside Keras models."""

from keras_neuralde import adjoints as adjoints
from keras_neuralde import controllers as controllers
from keras_neuralde import layers as layers
from keras_neuralde import optimizers as optimizers
from keras_neuralde import plot as plot
from keras_neuralde import solvers as solvers
from keras_neuralde.ensemble import EnsembleSolution as EnsembleSolution
from keras_neuralde.ensemble import Summary as Summary
from keras_neuralde.ensemble import solve_ensemble as solve_ensemble
from keras_neuralde.initial_state import consistent_state as consistent_state
from keras_neuralde.layers import NeuralDSDE as NeuralDSDE
from keras_neuralde.layers import NeuralODE as NeuralODE
from keras_neuralde.layers import NeuralODEMM as NeuralODEMM
from keras_neuralde.layers import NeuralSDE as NeuralSDE
from keras_neuralde.long_series import Collocation as Collocation
from keras_neuralde.long_series import collocate as collocate
from keras_neuralde.long_series import collocation_loss as collocation_loss
from keras_neuralde.long_series import growing_horizons as growing_horizons
from keras_neuralde.long_series import multiple_shooting as multiple_shooting
from keras_neuralde.long_series import shooting_groups as shooting_groups
from keras_neuralde.minimize import minimize as minimize
from keras_neuralde.minimize_result import MinimizeResult as MinimizeResult
from keras_neuralde.minimize_result import MinimizeStatus as MinimizeStatus
from keras_neuralde.parameters import flatten_parameters as flatten_parameters
from keras_neuralde.problems import DDEProblem as DDEProblem
from keras_neuralde.problems import ODEProblem as ODEProblem
from keras_neuralde.problems import SDEProblem as SDEProblem
from keras_neuralde.solution import Solution as Solution
from keras_neuralde.solution import SolveError as SolveError
from keras_neuralde.solution import Stats as Stats
from keras_neuralde.solution import Status as Status
from keras_neuralde.solve import solve as solve
from keras_neuralde.training import ClosureTrainer as ClosureTrainer
from keras_neuralde.training import Model as Model

__version__ = "0.1.0.dev0"
