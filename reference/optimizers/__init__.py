"""Optimizers, from the algorithm boxes of their documentation pages, in float64.

Each holds its own copies of the parameters and takes the gradients as an argument: nothing is
hidden in `.grad`. Options belong to all parameters: several groups are several optimizers. `lr` may
be set between two steps, as a scheduler does.
"""

from reference.optimizers.adam import Adam, AdamW
from reference.optimizers.adam_variants import Adamax, NAdam, RAdam, SparseAdam
from reference.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from reference.optimizers.matrices import Adafactor, Muon, orthogonalised
from reference.optimizers.quasi_newton import lbfgs_path
from reference.optimizers.sgd import ASGD, SGD
from reference.optimizers.signs import Rprop

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "lbfgs_path",
    "orthogonalised",
]
