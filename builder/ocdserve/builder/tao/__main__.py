# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.builder.tao`: the `ocdnet` command, whose name TAO Deploy's package has too."""

import sys

from ocdserve.builder.tao.cli import main

if __name__ == "__main__":
    sys.exit(main())
