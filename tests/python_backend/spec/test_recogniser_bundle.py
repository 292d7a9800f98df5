# SPDX-License-Identifier: Apache-2.0
"""Bundles of recognisers: as those of detectors, with characters and widths."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import bars_recogniser
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle, paddle_characters
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec, WidthPolicy
from ocdserve.contract import InvalidInputError

MINE = RecogniserSpec(
    name="mine",
    network=RecogniserNetworkSpec(color="RGB", blank=3, scores="logits"),
    height=32,
    widths=WidthPolicy(((100, 100),), 100, "stretch"),
    characters=("a", "ß", "字", " ", '"', "\\"),
    space_threshold=None,
)


def parsed(**fields: Any) -> RecogniserSpec:
    return RecogniserSpec.from_json(json.dumps(fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(bars_recogniser.network(), tmp_path / "bars.onnx")
    RecogniserBundle(MINE, tmp_path / "bars.onnx").save(tmp_path / "bundle")
    return tmp_path / "bundle"


class TestSpec:
    def test_json_keeps_every_field(self) -> None:
        assert RecogniserSpec.from_json(MINE.to_json()) == MINE
        content = json.loads(MINE.to_json())
        assert (content["kind"], content["characters"]) == ("recogniser", ["a", "ß", "字", " ", '"', "\\"])
        # Thousands of characters are no thousands of lines.
        assert len(RecogniserSpec(characters=("x",) * 9999).to_json().splitlines()) < 60

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "detector"}, "kind must be 'recogniser'; got 'detector'"),
            ({"hight": 32}, "unknown field hight; did you mean height?"),
            ({"height": 0}, "height must be from 1 to 1024 pixels; got 0"),
            ({"min_text_score": 2}, "min_text_score must be a number from 0 to 1; got 2"),
            ({"turn_below": 1.5}, "turn_below must be a number from 0 to 1; got 1.5"),
            ({"space_threshold": -1}, "space_threshold must be a number from 0 to 1; got -1"),
            ({"characters": "abc"}, "characters must be a list of texts, one for each class but the blank, none empty"),
            ({"characters": ["a", ""]}, "characters must be a list of texts, one for each class but the blank, none e"),
            ({"network": {"blank": -1}}, "network.blank must be the index of a class, from 0; got -1"),
            (
                {"characters": ["a", "b"], "network": {"blank": 3}},
                "network.blank must be the index of one of the 3 classes, one per character and the blank; got 3",
            ),
            ({"network": {"scores": "ids"}}, "network.scores must be one of softmax, logits; got 'ids'"),
            ({"network": {"std": [0, 1, 1]}}, "network.std must be positive, it divides"),
            ({"widths": {"fit": "cut"}}, "widths.fit must be one of pad, stretch; got 'cut'"),
            ({"widths": {"smallest": 8}}, "widths.smallest must be a width of widths.steps; got 8"),
            ({"widths": {"smallest": 4000}}, "widths.smallest must be a width of widths.steps; got 4000"),
            *(
                ({"widths": {"steps": steps}}, "widths.steps must be pairs of a limit and a step that divides it")
                for steps in ([], [[320]], [[320, 7]], [[320, 0]], [[640, 32], [320, 16]], [[70000, 16]], 5, [[3.5, 1]])
            ),
            ({"schema_version": 2}, "schema_version must be 1; got 2. Build the bundle again"),
            ({"model": "recogniser.json"}, "model must name a file next to recogniser.json"),
        ],
    )
    def test_a_wrong_field_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            parsed(**fields)


class TestWidths:
    def test_steps_grow_with_the_width(self) -> None:
        widths = WidthPolicy()
        given_widths = (1, 16, 17, 320, 321, 640, 641, 1281, 3199, 3200, 3201, 99999)
        assert [widths.fitted(width) for width in given_widths] == [
            16, 16, 32, 320, 352, 640, 704, 1408, 3200, 3200, 3200, 3200
        ]  # fmt: skip

    @given(st.integers(1, 3200), st.integers(1, 3200))
    def test_a_width_is_never_cut_and_its_result_never_changes(self, width: int, other: int) -> None:
        widths = WidthPolicy()
        assert width <= widths.fitted(width) <= width + 127
        assert widths.fitted(widths.fitted(width)) == widths.fitted(width)
        assert (width <= other) <= (widths.fitted(width) <= widths.fitted(other))

    def test_one_width_takes_every_line(self) -> None:
        one = WidthPolicy(((100, 100),), 100, "stretch")
        assert {one.fitted(width) for width in (1, 99, 100, 101, 5000)} == {100}


class TestBundle:
    def test_a_folder_is_loaded_as_it_was_saved(self, folder: Path) -> None:
        loaded = RecogniserBundle.load(folder, require_manifest=True)
        assert loaded == RecogniserBundle(MINE, folder / "model.onnx")
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx", "recogniser.json"]
        again = loaded.save(folder.parent / "again")
        assert again.digest() == loaded.digest()
        assert RecogniserBundle.load(again.model_path.parent).spec == MINE

    def test_a_changed_file_is_refused(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"else")
        with pytest.raises(InvalidInputError, match=r"model\.onnx changed since manifest\.json was written"):
            RecogniserBundle.load(folder)

    def test_the_digest_follows_the_characters(self, folder: Path) -> None:
        loaded = RecogniserBundle.load(folder)
        other = RecogniserBundle(RecogniserSpec(characters=("b",)), loaded.model_path)
        assert other.digest() != loaded.digest()

    def test_each_kind_refuses_the_other(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(
            InvalidInputError,
            match=r"bundle is the bundle of a recogniser; a detector's, with detector.json, is needed here. Give it",
        ):
            Bundle.load(folder)
        detector = Bundle.load().save(tmp_path / "detector").model_path.parent
        with pytest.raises(InvalidInputError, match=r"is the bundle of a detector; a recogniser's, with recogniser.js"):
            RecogniserBundle.load(detector)
        shutil.copy(folder / "recogniser.json", detector)
        assert Bundle.load(detector).spec.name == "ppocr"

    def test_a_name_that_is_no_folder_is_explained(self) -> None:
        with pytest.raises(
            InvalidInputError,
            match=r"^defualt is no bundle: it holds no recogniser.json. Name a folder made by a build, or a built-in "
            r"recogniser: default, fast; did you mean default\?$",
        ):
            RecogniserBundle.load("defualt")

    def test_the_default_one_is_that_of_the_installed_package(self) -> None:
        spec = RecogniserBundle.load().spec
        assert RecogniserBundle.load("default").spec == spec
        # 18,708 characters of the metadata and the space, as its network has 18,710 classes with the blank.
        assert (len(spec.characters), spec.classes, spec.space) == (18_709, 18_710, (18_709, 0.1))
        assert spec.characters[:3] == ("!", '"', "#")

    def test_a_network_without_metadata_has_no_characters(self, tmp_path: Path) -> None:
        onnx.save(bars_recogniser.network(characters=None), tmp_path / "plain.onnx")
        onnx.save(bars_recogniser.network(), tmp_path / "bars.onnx")
        (tmp_path / "damaged.onnx").write_bytes(b"onnx")
        assert paddle_characters(tmp_path / "plain.onnx") == ()
        assert paddle_characters(tmp_path / "damaged.onnx") == ()
        assert paddle_characters(tmp_path / "bars.onnx") == ("r", "g", "b", " ")
