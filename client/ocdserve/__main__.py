# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve`: the `ocdserve` command."""

import sys

from ocdserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
