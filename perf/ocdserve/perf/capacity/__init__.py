# SPDX-License-Identifier: Apache-2.0
"""How much a machine can serve within a latency limit, and the best tuning for it."""
