"""Fused kernels for GPUs (CUDA and ROCm), in Triton."""
