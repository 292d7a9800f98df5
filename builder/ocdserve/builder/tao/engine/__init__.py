# SPDX-License-Identifier: Apache-2.0
"""The action `gen_trt_engine`."""
