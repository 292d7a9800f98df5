# SPDX-License-Identifier: Apache-2.0
"""The checks that need a GPU, in one command: exactness, times, networks, serving.

`perf/gpu_check/run.sh` starts it in its own environment. Each part runs in its own process, so that a crash does not
affect the others, and saves its results as it goes, so that a run that is cut off keeps them.
"""
