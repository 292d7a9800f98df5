# SPDX-License-Identifier: Apache-2.0
"""What a build costs in accuracy: the gate, the search for layers to exclude, the plot."""
