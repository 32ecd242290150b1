"""Keras layers whose outputs are solutions of differential equations."""

from keras_neuralde.layers.neural_ode import NeuralODE as NeuralODE
from keras_neuralde.layers.neural_ode_mm import NeuralODEMM as NeuralODEMM
