# SPDX-License-Identifier: Apache-2.0
"""The earlier path of `python -m ocdserve.backend.kernels.cpu`."""

import sys

from ocdserve.backend.kernels.cpu.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
