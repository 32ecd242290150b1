"""Optimizers for losses that hold differential equations."""

from keras_neuralde.optimizers.bfgs import BFGS as BFGS
from keras_neuralde.optimizers.chain import Chain as Chain
from keras_neuralde.optimizers.lbfgs import LBFGS as LBFGS
from keras_neuralde.optimizers.line_search import Progress as Progress
