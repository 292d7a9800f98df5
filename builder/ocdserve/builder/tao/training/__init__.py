# SPDX-License-Identifier: Apache-2.0
"""Actions of NVIDIA TAO's training image; needs the extra `train`."""
