# SPDX-License-Identifier: Apache-2.0
"""A script for the environment of a peer: answers encoded images with it. Needs Python and the peer, nothing of ours.

Its arguments are the peer's name, a number of threads and the ONNX file of our network, for peers that can run it. It
reads images from standard input, each after its length (8 bytes, little-endian), until that is closed. To standard
output it writes a line of JSON when the peer is loaded, and one per image: `quads`, of four corners (x, y) in pixels of
the image, and `texts`, empty where the peer only detects. Where something fails, the line has an `error` instead.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

_Quads = list[list[list[float]]]
_Answer = Callable[[bytes], tuple[_Quads, list[str]]]


def _faster_paddle(size: str, threads: int, network: str) -> _Answer:
    """It always reads, with networks of its own, and its boxes are upright."""
    engine = import_module("faster_paddle").OcrEngine(model_size=size, threads=threads)

    def answer(encoded: bytes) -> tuple[_Quads, list[str]]:
        found = engine.ocr(encoded)["bounds"].values()
        boxes = [(*map(float, (*each["topLeftCoord"], *each["bottomRightCoord"])),) for each in found]
        quads = [[[left, top], [right, top], [right, bottom], [left, bottom]] for left, top, right, bottom in boxes]
        return quads, [str(each["text"]) for each in found]

    return answer


def _rapidocrlite(settings: Callable[[str], dict[str, Any]], threads: int, network: str) -> _Answer:
    """Its detection alone, by its native engine."""
    os.environ["PPOCR_BENCH_THREADS"] = str(threads)
    detector = import_module("rapidocr").RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            **settings(network),
        }
    )

    def answer(encoded: bytes) -> tuple[_Quads, list[str]]:
        boxes = detector(encoded).boxes
        return [] if boxes is None else boxes.tolist(), []

    return answer


def _our_network(network: str) -> dict[str, Any]:
    # It would download a recogniser that is not named, though it is not used.
    return {"Det.model_path": network, "Rec.model_path": network, "Rec.rec_keys_path": os.devnull}


def _indra(network: str) -> dict[str, Any]:
    return {"Det.model_type": "lite", "Rec.model_type": "lite"}


# By name: the package, whose name its environment has, and what loads the peer.
PEERS: dict[str, tuple[str, Callable[[int, str], _Answer]]] = {
    "faster-paddle": ("faster-paddle", partial(_faster_paddle, "small")),
    "faster-paddle-tiny": ("faster-paddle", partial(_faster_paddle, "tiny")),
    "rapidocrlite": ("rapidocrlite", partial(_rapidocrlite, _our_network)),
    "rapidocrlite+Indra": ("rapidocrlite", partial(_rapidocrlite, _indra)),
}


def serve(load: Callable[[], _Answer]) -> None:
    """Load a peer, and answer images until standard input ends."""
    lines = os.fdopen(os.dup(1), "w")
    # What a peer prints must not come between the answers.
    os.dup2(2, 1)

    def write(**line: Any) -> None:
        print(json.dumps(line), file=lines, flush=True)

    try:
        answer = load()
        write()
        while length := sys.stdin.buffer.read(8):
            quads, texts = answer(sys.stdin.buffer.read(int.from_bytes(length, "little")))
            write(quads=quads, texts=texts)
    except Exception as error:  # the peer may raise anything
        write(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    serve(partial(PEERS[sys.argv[1]][1], int(sys.argv[2]), sys.argv[3]))
