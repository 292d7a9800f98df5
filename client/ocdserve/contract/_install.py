# SPDX-License-Identifier: Apache-2.0
"""How to install what is missing, in the words of every message."""

import re


def install_command(requirement: str) -> str:
    """The command that installs a requirement; for an extra of ocdserve, that of a source tree too.

    >>> print(install_command("ocdserve[tables]"))
    `pip install 'ocdserve[tables]'` (in a source tree: `make extra NAME=tables`)
    """
    extra = re.fullmatch(r"ocdserve\[([a-z,-]+)\]", requirement)
    return f"`pip install '{requirement}'`" + (f" (in a source tree: `make extra NAME={extra[1]}`)" if extra else "")
