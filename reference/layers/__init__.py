"""Layers from their formulas: linear, dropout, convolution, pooling, batch normalisation.

They are written with sums, means and loops over elementary tensor operations, so that autograd
gives their gradients too. They follow the dtype of what they are given; give them float64.
"""
