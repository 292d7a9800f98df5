# SPDX-License-Identifier: Apache-2.0
"""Networks alone, and JPEG bytes to quads under load: in one process, in several, through Triton."""
