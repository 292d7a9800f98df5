# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels and their compiler, NVRTC; importing this package needs neither a GPU nor CUDA."""
