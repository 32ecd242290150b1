"""Keras layers whose outputs are solutions of differential equations."""

from keras_neuralde.layers.neural_ode import NeuralODE as NeuralODE
