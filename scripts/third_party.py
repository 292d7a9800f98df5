# SPDX-License-Identifier: Apache-2.0
"""Print THIRD_PARTY.md: the packages that an installation of ocdserve brings, by the metadata of this environment.

With an argument, print the extras that the environment must have.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

# What users install; those of NVIDIA's GPU packages, which no machine without a GPU has, are named in words.
EXTRAS = (
    "images",
    "pdf",
    "tables",
    "completion",
    "evaluate",
    "rapidocr",
    "server",
    "public",
    "builder",
    "tensorrt-rtx",
)
INTRODUCTION = """\
# Third-party packages

ocdserve is under the Apache License 2.0 ([LICENSE](LICENSE)). An installation brings the packages below, each under the
licence that its metadata declares. `make lock` writes this list, `make sbom` one in CycloneDX's form with versions.
Packages that only the extras `gpu` and `gpu-jpeg` bring (TensorRT, CUDA, nvImageCodec, pycuda) are under NVIDIA's
licences, pycuda under MIT. The extra `train` also brings PyTorch (BSD-3-Clause and others), lightning and tensorboard
(Apache-2.0), onnxscript, optuna and torch-pruning (MIT), `modelopt` NVIDIA ModelOpt (Apache-2.0), `batch` fsspec and
s3fs (BSD-3-Clause), botocore and aiobotocore (Apache-2.0), `ray` Ray (Apache-2.0) and pandas (BSD-3-Clause), and what
they need.

The weights of the detectors `fast` and `lite`, in `ocdserve/backend/weights`, are PP-OCRv6's small detector
(Apache-2.0, by the PaddlePaddle authors, from the package rapidocr), changed by our training; `lite` has fewer channels
too. They are under the Apache License 2.0; what they were trained on, and its licences, is in `report.json` next to
each.

| package | licence | extra |
|---|---|---|"""


def packages() -> dict[str, tuple[str, str]]:
    """Licence and first extra of each package that is installed, by its name in small letters."""
    found: dict[str, tuple[str, str]] = {}
    for extra in ("", *EXTRAS):
        waiting = [("ocdserve", frozenset({extra} - {""}))]
        seen = set()
        while waiting:
            name, extras = waiting.pop()
            if (name, extras) in seen:
                continue
            seen.add((name, extras))
            try:
                one = distribution(name)
            except PackageNotFoundError:  # of an extra that this environment lacks
                continue
            key = re.sub(r"[-_.]+", "-", one.name.lower())
            if key != "ocdserve":
                found.setdefault(key, (licence(one), extra or "(always)"))
            for line in one.requires or ():
                wanted = Requirement(line)
                if wanted.marker is None or any(wanted.marker.evaluate({"extra": each}) for each in extras or {""}):
                    waiting.append((wanted.name, frozenset(wanted.extras)))
    return dict(sorted(found.items()))


def licence(one: Distribution) -> str:
    """The declared licence: an SPDX expression where there is one, else a short text, else the classifiers'."""
    metadata = one.metadata
    short = metadata.get("License", "").strip()
    names = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or () if text.startswith("License")]
    declared = metadata.get("License-Expression") or (short if "\n" not in short and len(short) < 60 else "")
    return declared or ", ".join(names) or "not declared"


if __name__ == "__main__":
    if sys.argv[1:]:
        print(",".join(EXTRAS))
    else:
        rows = (f"| {name} | {declared} | {extra} |" for name, (declared, extra) in packages().items())
        print(INTRODUCTION, *rows, sep="\n")
