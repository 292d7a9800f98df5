# SPDX-License-Identifier: Apache-2.0
"""Facts about a detector: what its network expects, resize policy, thresholds, bundle."""
