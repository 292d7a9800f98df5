# SPDX-License-Identifier: Apache-2.0
import hashlib
import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend.network.load import load_network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import SCHEMA_VERSION, DetectorSpec, NetworkSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import InvalidInputError, UnavailableError

# Of networks: inputs and outputs with their channels.
ENDS = (("x", 3), ("p", 1))


def parsed(**fields: Any) -> DetectorSpec:
    return DetectorSpec.from_json(json.dumps(fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with a network of four bytes."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "detector.json").write_text(DetectorSpec(name="mine").to_json())
    (directory / "model.onnx").write_bytes(b"onnx")
    return directory


class TestPresets:
    def test_they_are_those_of_the_design(self) -> None:
        assert list(PRESETS) == ["ppocr", "ppocr-fast", "ocdnet", "dbnet"]
        assert all(spec.name == name for name, spec in PRESETS.items())

    def test_their_box_thresholds_are_those_of_their_networks(self) -> None:
        thresholds = {name: spec.postprocess.box_thresh for name, spec in PRESETS.items()}
        assert thresholds == {"ppocr": 0.6, "ppocr-fast": 0.6, "ocdnet": 0.55, "dbnet": 0.5}

    def test_ocdnet_is_normalised_and_sized_as_nvidia_does(self) -> None:
        spec = PRESETS["ocdnet"]
        assert spec.network.color == "BGR"
        assert spec.network.mean == (122.67891434, 116.66876762, 104.00698793)
        assert spec.network.std == (255, 255, 255)
        assert (spec.resize.kind, spec.resize.width, spec.resize.height) == ("fixed", 1280, 736)

    def test_ppocr_maps_pixels_to_minus_one_to_one(self) -> None:
        spec = PRESETS["ppocr"].network
        assert (spec.color, spec.mean, spec.std) == ("BGR", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

    def test_dbnet_uses_the_imagenet_statistics(self) -> None:
        spec = PRESETS["dbnet"].network
        assert (spec.color, spec.mean, spec.std) == ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

    @pytest.mark.parametrize("name", PRESETS)
    def test_each_survives_its_json(self, name: str) -> None:
        assert DetectorSpec.from_json(PRESETS[name].to_json()) == PRESETS[name]


class TestJson:
    def test_an_empty_object_is_the_default(self) -> None:
        assert DetectorSpec.from_json("{}") == DetectorSpec()
        assert json.loads(DetectorSpec().to_json())["schema_version"] == SCHEMA_VERSION == 1

    def test_given_fields_are_taken_and_the_rest_are_defaults(self) -> None:
        spec = parsed(
            network={"color": "RGB", "mean": [1, 2, 3]}, resize={"kind": "fixed"}, postprocess={"thresh": 0.2}
        )
        assert spec == DetectorSpec(
            network=NetworkSpec(color="RGB", mean=(1.0, 2.0, 3.0)),
            resize=ResizePolicy(kind="fixed"),
            postprocess=PostprocessParams(thresh=0.2),
        )

    def test_the_text_ends_with_a_newline_and_is_indented(self) -> None:
        assert DetectorSpec().to_json().startswith('{\n  "name"')
        assert DetectorSpec().to_json().endswith("}\n")

    @given(
        st.builds(
            DetectorSpec,
            name=st.text(max_size=20),
            model=st.sampled_from(["model.onnx", "model.plan", "größe.onnx"]),
            network=st.builds(
                NetworkSpec,
                input=st.none() | st.text(min_size=1, max_size=9),
                output=st.none() | st.text(min_size=1, max_size=9),
                color=st.sampled_from(["BGR", "RGB"]),
                mean=st.tuples(*[st.floats(-500, 500)] * 3),
                std=st.tuples(*[st.floats(1e-3, 500)] * 3),
            ),
            resize=st.builds(
                ResizePolicy,
                kind=st.sampled_from(["fixed", "letterbox", "short_side", "long_side"]),
                width=st.integers(1, 128).map(lambda n: 32 * n),
                height=st.integers(1, 128).map(lambda n: 32 * n),
                side=st.integers(32, 4096),
                enlarge=st.booleans(),
                shrink=st.booleans(),
                bucket=st.sampled_from([32, 64, 256]),
            ),
            postprocess=st.builds(
                PostprocessParams,
                mode=st.sampled_from(["default", "tao"]),
                thresh=st.floats(0, 1),
                box_thresh=st.floats(0, 1),
                unclip_ratio=st.floats(0, 10),
                max_candidates=st.integers(1, 100_000),
                min_size=st.floats(0, 10_000),
                dilation=st.booleans(),
                polygons=st.booleans(),
            )
            | st.builds(PostprocessParams, unclip=st.sampled_from(["exact", "analytic"])),
        )
    )
    def test_every_valid_detector_survives_its_json(self, spec: DetectorSpec) -> None:
        assert DetectorSpec.from_json(spec.to_json()) == spec

    @pytest.mark.parametrize(("section", "name"), [("postprocess", "max_candidates"), ("resize", "width")])
    def test_a_whole_number_written_as_a_fraction_is_one(self, section: str, name: str) -> None:
        value = getattr(getattr(parsed(**{section: {name: 640.0}}), section), name)
        assert (value, type(value)) == (640, int)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not valid JSON: Expecting"),
            ("", "not valid JSON"),
            ("[]", "must hold a JSON object; got list"),
            ("null", "must hold a JSON object; got NoneType"),
            ('{"a": 1} {}', "not valid JSON: Extra data"),
            ("[" * 100_000, "not valid JSON"),
            ('{"name": ' + "9" * 5000 + "}", "not valid JSON"),
        ],
    )
    def test_text_that_is_no_json_object_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            DetectorSpec.from_json(text)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"schema_version": 2}, r"schema_version must be 1; got 2\. Build the bundle again"),
            ({"schema_version": "1"}, r"schema_version must be .*got '1'"),
            ({"postproces": {}}, r"unknown field postproces; did you mean postprocess\?"),
            ({"postprocess": {"tresh": 0.3}}, r"unknown field postprocess\.tresh; did you mean postprocess\.thresh\?"),
            ({"resize": {"with": 640}}, r"unknown field resize\.with; did you mean resize\.width\?"),
            ({"network": {"colour": "RGB"}}, r"unknown field network\.colour; did you mean network\.color\?"),
            ({"network": {"qqq": 1}}, r"unknown field network\.qqq; known are input, output, color, mean, std"),
            ({"network": []}, r"network must be a JSON object; got \[\]"),
            ({"resize": None}, r"resize must be a JSON object; got None"),
            ({"name": 5}, r"name must be .*got 5"),
            ({"model": ""}, r"model must name a file next to detector\.json; got ''"),
            ({"model": "../model.onnx"}, r"model must name a file next to .*got '\.\./model\.onnx'"),
            ({"model": ".."}, r"model must name a file next to .*got '\.\.'"),
            ({"model": "detector.json"}, r"model must name .*got 'detector\.json'"),
            ({"precision": None}, r"precision must be .*got None"),
            ({"network": {"color": "GRAY"}}, r"network\.color must be BGR or RGB; got 'GRAY'"),
            ({"network": {"mean": [1, 2]}}, r"network\.mean must be three numbers, one per channel; got \[1, 2\]"),
            ({"network": {"mean": 5}}, r"network\.mean must be three numbers.*got 5"),
            ({"network": {"mean": None}}, r"network\.mean must be three numbers.*got None"),
            ({"network": {"mean": "abc"}}, r"network\.mean must be three numbers.*got 'abc'"),
            ({"network": {"mean": [float("nan"), 0, 0]}}, r"network\.mean must be .*nan"),
            ({"network": {"std": [1, 0, 1]}}, r"network\.std must be positive, it divides; got \(1\.0, 0\.0, 1\.0\)"),
            ({"network": {"std": [1, 1e-300, 1]}}, r"network\.std must be positive.*least is 1e-6"),
            ({"network": {"std": [1, 10**400, 1]}}, r"network\.std must be three numbers"),
            ({"network": {"mean": [1, -1e300, 1]}}, r"network\.mean must be from -1e6 to 1e6; got"),
            ({"resize": {"side": 10**400}}, r"resize\.side must be .*type int"),
            ({"network": {"std": [1, float("inf"), 1]}}, r"network\.std must be .*inf"),
            ({"network": {"input": 5}}, r"network\.input must be .*got 5"),
            ({"network": {"output": ["p"]}}, r"network\.output must be .*got \['p'\]"),
            ({"resize": {"kind": "crop"}}, r"resize\.kind must be one of fixed, .*got 'crop'"),
            ({"resize": {"kind": "fixed", "width": 1000}}, r"resize\.width must be a multiple .*got 1000"),
            ({"resize": {"width": "640"}}, r"resize\.width must be .*got '640'"),
            ({"resize": {"width": 640.5}}, r"resize\.width must be .*got 640\.5"),
            ({"resize": {"width": float("inf")}}, r"resize\.width must be .*got inf"),
            ({"resize": {"width": float("nan")}}, r"resize\.width must be .*got nan"),
            ({"resize": {"width": True}}, r"resize\.width must be .*got True"),
            ({"resize": {"enlarge": 1}}, r"resize\.enlarge must be .*got 1"),
            ({"resize": {"reduce_jpeg": 1}}, r"resize\.reduce_jpeg must be .*got 1"),
            (
                {"resize": {"reduce_jpeg": True}, "postprocess": {"mode": "tao"}},
                r"resize\.reduce_jpeg must be false in mode tao.*got true",
            ),
            ({"postprocess": {"mode": "db"}}, r"postprocess\.mode must be one of default, tao; got 'db'"),
            ({"postprocess": {"thresh": 2}}, r"postprocess\.thresh must be .*got 2"),
            ({"postprocess": {"thresh": "0.3"}}, r"postprocess\.thresh must be .*got '0\.3'"),
            ({"postprocess": {"max_candidates": 1.5}}, r"postprocess\.max_candidates must be .*got 1\.5"),
            ({"postprocess": {"polygons": 1}}, r"postprocess\.polygons must be .*got 1"),
        ],
        ids=lambda value: repr(value)[:100],
    )
    def test_a_bad_field_is_refused_by_its_full_name_with_rule_and_value(
        self, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            parsed(**fields)


class TestLoad:
    def test_a_folder_gives_its_contract_and_its_network(self, folder: Path) -> None:
        bundle = Bundle.load(folder)
        assert bundle == Bundle.load(str(folder)) == Bundle(DetectorSpec(name="mine"), folder / "model.onnx")
        assert bundle.sha256() == hashlib.sha256(b"onnx").hexdigest()

    def test_without_a_folder_it_is_the_default_network_of_rapidocr(self) -> None:
        bundle = Bundle.load()
        assert bundle.spec == replace(PRESETS["ppocr"], precision="bf16")
        assert bundle.model_path.name == "PP-OCRv6_det_small.onnx"
        assert bundle.model_path.parent.parent.name == "rapidocr"

    def test_built_in_detectors_have_names_which_folders_may_take(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert Bundle.load("default") == Bundle.load()
        fast = Bundle.load("fast")
        assert fast.spec.resize.sizes(1440, 1080) == ((960, 736), (960, 736))
        for bundle, name in ((Bundle.load(), "default-fp32"), (fast, "fast-fp32")):
            assert (bundle.spec.precision, Bundle.load(name).spec.precision) == ("bf16", "fp32")
            assert Bundle.load(name) == replace(bundle, spec=replace(bundle.spec, precision="fp32"))
        folder.rename(tmp_path / "fast")
        monkeypatch.chdir(tmp_path)
        assert Bundle.load("fast").spec.name == "mine"

    @pytest.mark.parametrize(("name", "most_bytes"), [("fast", 5_000_000), ("lite", 2_500_000)])
    def test_shipped_detectors_are_small_bundles_with_reports(self, name: str, most_bytes: int) -> None:
        bundle = Bundle.load(name)
        assert bundle.spec.name == f"ppocr-{name}"
        assert bundle.model_path.stat().st_size < most_bytes
        weights = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))["weights"]
        assert "PP-OCRv6_det_small.onnx" in weights["origin"] and weights["licence"] == "Apache-2.0"

    def test_without_rapidocr_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UnavailableError, match=r"rapidocr>=3\.10\. Run `pip install 'ocdserve\[server\]'`"):
            Bundle.load()

    def test_a_folder_without_detector_json_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"is no bundle: it holds no detector\.json"):
            Bundle.load(tmp_path)

    def test_a_file_is_no_folder(self, folder: Path) -> None:
        with pytest.raises(InvalidInputError, match="is no bundle"):
            Bundle.load(folder / "model.onnx")

    def test_a_bundle_without_its_network_is_refused(self, folder: Path) -> None:
        (folder / "model.onnx").unlink()
        with pytest.raises(InvalidInputError, match=r"the network 'model\.onnx' is not next to it\. Copy the bundle"):
            Bundle.load(folder)

    def test_a_name_that_no_file_can_have_is_refused(self, folder: Path) -> None:
        (folder / "detector.json").write_text(DetectorSpec(model="x" * 5000).to_json())
        with pytest.raises(InvalidInputError, match="is not next to it"):
            Bundle.load(folder)

    def test_an_error_in_detector_json_names_the_file_and_the_field(self, folder: Path) -> None:
        (folder / "detector.json").write_text('{"resize": {"kind": 1}}')
        with pytest.raises(InvalidInputError, match=r"detector\.json: resize\.kind must be"):
            Bundle.load(folder)

    @pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\x80\x81", b"PK\x03\x04\xe9"])
    def test_a_detector_json_that_is_no_text_is_refused_by_name(self, folder: Path, content: bytes) -> None:
        (folder / "detector.json").write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"detector\.json: "):
            Bundle.load(folder)


class TestSave:
    def test_the_copy_is_the_same_bundle(self, folder: Path, tmp_path: Path) -> None:
        bundle = Bundle.load(folder)
        copy = bundle.save(tmp_path / "a" / "b")
        assert copy == Bundle.load(tmp_path / "a" / "b")
        assert (copy.spec, copy.sha256()) == (bundle.spec, bundle.sha256())

    def test_the_default_bundle_can_be_copied(self, tmp_path: Path) -> None:
        copy = Bundle.load().save(tmp_path)
        assert Bundle.load(tmp_path) == copy
        assert copy.sha256() == Bundle.load().sha256()

    def test_saving_a_bundle_over_itself_changes_nothing(self, folder: Path) -> None:
        Bundle.load(folder).save(folder)
        assert (folder / "model.onnx").read_bytes() == b"onnx"
        assert Bundle.load(folder).spec.name == "mine"


class TestManifest:
    def test_a_copy_has_the_hashes_of_its_files(self, folder: Path, tmp_path: Path) -> None:
        (folder / "report.json").write_text("{}")
        Bundle.load(folder).save(tmp_path / "copy")
        manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
        assert set(manifest["sha256"]) == {"detector.json", "model.onnx", "report.json"}
        # By sha256sum.
        assert manifest["sha256"]["report.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

    @pytest.mark.parametrize("name", ["model.onnx", "detector.json"])
    def test_a_file_that_changed_is_refused(self, folder: Path, tmp_path: Path, name: str) -> None:
        Bundle.load(folder).save(tmp_path / "copy")
        with (tmp_path / "copy" / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(InvalidInputError, match=rf"copy: {name} changed since manifest\.json was written\. Copy"):
            Bundle.load(tmp_path / "copy")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', '{"sha256": null}', "\xff", "[" * 10_000])
    def test_a_damaged_manifest_is_refused(self, folder: Path, text: str) -> None:
        (folder / "manifest.json").write_text(text, "latin-1")
        with pytest.raises(InvalidInputError, match=r"manifest\.json"):
            Bundle.load(folder)

    def test_without_one_a_line_says_so_or_the_bundle_is_refused(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        Bundle.load(folder)
        assert [record.getMessage() for record in caplog.records] == [
            f"{folder} holds no manifest.json: its files were not verified"
        ]
        with pytest.raises(
            InvalidInputError, match=r"holds no manifest\.json; `ocdserve build` and `publish` write one"
        ):
            Bundle.load(folder, require_manifest=True)

    def test_the_built_in_detector_needs_none(self, caplog: pytest.LogCaptureFixture) -> None:
        Bundle.load(None, require_manifest=True)
        assert caplog.records == []


class TestExternalData:
    @staticmethod
    def network(folder: Path, location: str) -> Path:
        """An ONNX file whose weights are in another file, `location` next to it."""
        weights = numpy_helper.from_array(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1), "w")
        shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", c, "H", "W")) for name, c in ENDS]
        node = helper.make_node("Conv", ["x", "w"], ["p"])
        graph = helper.make_graph([node], "red", shapes[:1], shapes[1:], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        path = folder / "exported.onnx"
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
        assert (folder / location).stat().st_size == 12
        return path

    @pytest.mark.parametrize("location", ["exported.onnx.data", "weights/all.bin"])
    def test_a_copy_has_it_too(self, tmp_path: Path, location: str) -> None:
        path = self.network(tmp_path, location)
        copy = Bundle(DetectorSpec(model="exported.onnx"), path).save(tmp_path / "copy")
        shutil.rmtree((tmp_path / location).parent) if "/" in location else (tmp_path / location).unlink()
        loaded = Bundle.load(tmp_path / "copy", require_manifest=True)
        assert loaded == copy
        pixels = np.full((32, 32, 3), (0, 0, 255), np.uint8)
        assert load_network(loaded).infer([pixels])[0].max() == 255
        again = loaded.save(tmp_path / "again")
        assert (again.model_path.parent / location).is_file()

    @pytest.mark.parametrize("location", ["exported.onnx.data", "weights/all.bin"])
    def test_it_is_verified_too(self, tmp_path: Path, location: str) -> None:
        Bundle(DetectorSpec(model="exported.onnx"), self.network(tmp_path, location)).save(tmp_path / "copy")
        (tmp_path / "copy" / location).write_bytes(b"\0" * 12)
        with pytest.raises(InvalidInputError, match=f"{location} changed since manifest.json was written"):
            Bundle.load(tmp_path / "copy")
        (tmp_path / "copy" / location).unlink()
        with pytest.raises(InvalidInputError, match=f"{location}' is not next to it"):
            Bundle.load(tmp_path / "copy")

    @pytest.mark.parametrize("location", ["../outside", "/etc/hostname", "a/../../outside", "link"])
    def test_files_outside_of_the_bundle_are_refused(self, tmp_path: Path, location: str) -> None:
        folder = tmp_path / "bundle"
        folder.mkdir()
        path = self.network(folder, "inside")
        (tmp_path / "outside").write_bytes(b"\0" * 12)
        (folder / "link").symlink_to(tmp_path / "outside")
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(model.SerializeToString())
        bundle = Bundle(DetectorSpec(model="exported.onnx"), path)
        with pytest.raises(InvalidInputError, match="outside of the bundle"):
            bundle.save(tmp_path / "copy")
        assert not (tmp_path / "copy" / "exported.onnx").exists()
        with pytest.raises(InvalidInputError, match="no readable ONNX file"):
            load_network(bundle)

    @pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "pipe", "x" * 5000])
    def test_a_manifest_names_files_of_the_bundle_only(self, folder: Path, name: str) -> None:
        Bundle.load(folder).save(folder)
        (folder.parent / "outside").write_bytes(b"")
        os.mkfifo(folder / "pipe")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"][name] = hashlib.sha256(b"").hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InvalidInputError, match=f"the file '{name}' is not next to it"):
            Bundle.load(folder)


class TestEngineAndRuntime:
    def test_a_copy_takes_everything_of_the_build_along(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        files = ("model.onnx", "model.plan", "report.json", "calibration.cache", "damage.png")
        for name in files:
            (source / name).write_bytes(name.encode())
        spec = DetectorSpec(model="model.onnx", engine="model.plan", runtime="tensorrt")
        (source / "detector.json").write_text(spec.to_json())
        copy = Bundle.load(source).save(tmp_path / "copy")
        assert copy.engine_path == tmp_path / "copy" / "model.plan"
        assert {name: (tmp_path / "copy" / name).read_bytes() for name in files} == {
            name: name.encode() for name in files
        }

    def test_a_missing_engine_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"")
        (tmp_path / "detector.json").write_text(DetectorSpec(model="model.onnx", engine="model.plan").to_json())
        with pytest.raises(InvalidInputError, match=r"'model\.plan' is not next to it"):
            Bundle.load(tmp_path)

    @pytest.mark.parametrize("engine", ["", "..", "a/b.plan", "detector.json", 3])
    def test_an_engine_elsewhere_is_refused(self, engine: object) -> None:
        with pytest.raises(InvalidInputError, match="engine must name a file"):
            DetectorSpec(engine=engine)  # type: ignore[arg-type]

    def test_a_runtime_that_is_no_name_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="runtime must be"):
            DetectorSpec(runtime=3)  # type: ignore[arg-type]


def test_a_file_in_mode_tao_has_the_threshold_of_tao() -> None:
    read = DetectorSpec.from_json
    assert read('{"postprocess": {"mode": "tao"}}').postprocess.box_thresh == 0.55
    assert read('{"postprocess": {"mode": "tao", "box_thresh": 0.7}}').postprocess.box_thresh == 0.7
    assert read('{"postprocess": {}}').postprocess.box_thresh == 0.6
