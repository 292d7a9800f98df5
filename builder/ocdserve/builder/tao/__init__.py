# SPDX-License-Identifier: Apache-2.0
"""The `ocdnet` command of NVIDIA TAO Deploy on our builder and detector: same specs, same files."""
