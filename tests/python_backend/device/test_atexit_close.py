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


def test_objects_are_closed_in_reverse_order_unless_collected() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["network", "device"], "")
