# SPDX-License-Identifier: Apache-2.0
"""The front door: a proxy before Triton that strangers may reach."""
