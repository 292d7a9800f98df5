# SPDX-License-Identifier: Apache-2.0
"""`python -m ocdserve.backend.kernels.cpu`: compile the library if it is missing or outdated."""

import sys

from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.kernels.cpu.compile import LIBRARY, CompilationError, compile_library


def main() -> int:
    """Exit status 0 if the library is usable in the end."""
    if library.examine(LIBRARY) is None:
        return 0
    try:
        compile_library()
    except (CompilationError, OSError) as error:
        print(f"ocdserve: post-processing stays with NumPy, which is slower: {error}", file=sys.stderr)
        return 1
    problem = library.examine(LIBRARY)
    if problem:
        print(f"ocdserve: the library was compiled, but {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
