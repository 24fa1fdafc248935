"""Triton kernels: the whole time loop of a layer, forward and backward, one program for each batch tile and direction.

They are launched by `fusedrnn.backends.triton`. Importing them needs Triton. Everything is in float32 but what is read
from and written to memory and the operands of products, which have the dtype of the layer. Units beyond H are zeros.
"""
