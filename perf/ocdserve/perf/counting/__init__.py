# SPDX-License-Identifier: Apache-2.0
"""Instructions, calls and bytes of the hot loops against their budgets."""
