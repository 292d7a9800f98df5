# SPDX-License-Identifier: Apache-2.0
"""What only a machine with a GPU can tell, in one command: exactness, times, networks, serving.

`perf/gpu_check/run.sh` starts it in an environment of its own. Every part runs in a process of its own, so that none
can break the next, and writes what it knows as it goes on: a run that is cut off leaves its results.
"""
