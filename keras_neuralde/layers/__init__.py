"""Keras layers whose outputs are solutions of differential equations."""

from keras_neuralde.layers.neural_cdde import NeuralCDDE as NeuralCDDE
from keras_neuralde.layers.neural_jump_sde import NeuralJumpSDE as NeuralJumpSDE
from keras_neuralde.layers.neural_ode import NeuralODE as NeuralODE
from keras_neuralde.layers.neural_ode_mm import NeuralODEMM as NeuralODEMM
from keras_neuralde.layers.neural_sde import NeuralDSDE as NeuralDSDE
from keras_neuralde.layers.neural_sde import NeuralSDE as NeuralSDE
from keras_neuralde.layers.operators import FiniteDifference as FiniteDifference
from keras_neuralde.layers.operators import Laplacian as Laplacian
from keras_neuralde.layers.operators import SpectralDerivative as SpectralDerivative
