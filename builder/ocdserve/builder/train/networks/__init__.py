# SPDX-License-Identifier: Apache-2.0
"""OCDNet's networks by NVIDIA TAO's module names; need PyTorch, not Lightning."""
