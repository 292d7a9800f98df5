# SPDX-License-Identifier: Apache-2.0
"""Training: networks, data, losses and trainers in PyTorch; needs the extra `train`."""
