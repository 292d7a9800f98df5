# SPDX-License-Identifier: Apache-2.0
# Options of `ocdserve build`. Of several pods that build at the same time one puts its folder in place, and the others
# fail, are started again and find it.
folder=/engines/$(python - "$@" <<'END'
import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

from ocdserve.builder.engine.targets import present_gpu, runtime_version

# Another network in a file of the same name is another detector; `default` is ocdserve's.
files = [hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in sys.argv[1:] if Path(one).is_file()]
key = "\n".join((present_gpu()[1], version("ocdserve"), *sys.argv[1:], *files))
print(f"{present_gpu()[0]}-trt{runtime_version('tensorrt')}-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
END
)
[[ -e $folder/detector.json ]] || ocdserve build "$@" --engine-store /engines/store --output "$folder"
ln -sfn "$folder" /built/bundle
