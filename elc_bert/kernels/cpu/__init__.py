"""Fused kernels for CPUs, in C and with matrix products by OpenBLAS."""
