# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.backend.kernels.gpu [FOLDER [sm_XX ...]]`: compile the kernels ahead, as a release has them.

Without arguments, for every architecture of a release, to where `compile_for` looks first.
"""

import sys
from pathlib import Path

from ocdserve.backend.kernels.gpu.compile import RELEASE_ARCHITECTURES, SHIPPED, compile_release
from ocdserve.contract import OcdserveError


def main(arguments: list[str]) -> int:
    """Exit status 0 if everything was compiled."""
    folder = Path(arguments[0]) if arguments else SHIPPED
    architectures = arguments[1:] or [f"sm_{number}" for number in RELEASE_ARCHITECTURES]
    try:
        compile_release(folder, architectures)
    except OcdserveError as error:
        print(f"ocdserve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
