# SPDX-License-Identifier: Apache-2.0
"""The stages on an NVIDIA GPU; importing this package needs neither a GPU nor CUDA."""
