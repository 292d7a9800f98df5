# SPDX-License-Identifier: Apache-2.0
"""Sans-I/O core of the client: a request state machine that yields steps, which a facade performs."""
