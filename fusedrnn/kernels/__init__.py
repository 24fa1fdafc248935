"""Triton kernels: the time loop of a layer, forward and backward, with the recurrent weights on chip or in memory.

They are launched by `fusedrnn.backends.launches`. Importing them needs Triton. All is in float32 but what is read from
and written to memory and the operands of products, which have the dtype of the layer. Units beyond H are zeros.
"""
