"""Fused kernels for CPUs, in C and through OpenBLAS."""
