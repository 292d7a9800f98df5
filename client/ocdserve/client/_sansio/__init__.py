# SPDX-License-Identifier: Apache-2.0
"""Sans-I/O core of the client: what a call does, as steps that a facade performs with or without `await`."""
