# SPDX-License-Identifier: Apache-2.0
"""One NVIDIA GPU: driver, streams, memory, loaded modules."""
