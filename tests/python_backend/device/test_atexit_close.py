# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

PROGRAM = """
from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.contract import UnavailableError


class Thing:
    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails
        close_at_exit(self)

    def close(self):
        print(self.name)
        if self.fails:
            raise UnavailableError("it is gone")


device, network, other = Thing("device"), Thing("network", fails=True), Thing("forgotten")
del other
"""


def test_what_was_made_last_is_closed_first_and_what_is_gone_not_at_all() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["network", "device"], "")
