# SPDX-License-Identifier: Apache-2.0
"""Print the text in a picture, and where each line is. read_text.py IMAGE"""

import sys

from ocdserve.backend import Reader


def main(image: str) -> None:
    for line in Reader.load().read(image).reading_order():
        x, y = line.quad[0].round().astype(int)
        print(f"{x:5} {y:5}  {line.text}")


if __name__ == "__main__":
    main(sys.argv[1])
