# SPDX-License-Identifier: Apache-2.0
"""hOCR by hocr-spec, ALTO by two readers and by what its schema allows."""

import io
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.contract import InvalidInputError
from ocdserve.results.reading import Reading
from ocdserve.results.reading.characters import clean
from ocdserve.results.reading.markup import to_alto, to_hocr
from tests.results.reading.pages import RECEIPT, box, reading, turned

with warnings.catch_warnings():  # compiled, it warns of its own code
    warnings.simplefilter("ignore")
    import hocr_spec
    from alto import parse as parse_alto
    from alto_tools import alto_tools

XHTML = "{http://www.w3.org/1999/xhtml}"
NASTY = [
    ("<b>&amp;\"'", box(10, 10, 190, 30)), ("\0\ud800 x", box(10, 60, 190, 80)), ("]]> -->", box(10, 110, 190, 130)),
]  # fmt: skip
PAGES: dict[str, list[Reading]] = {
    "receipt": [reading(RECEIPT)],
    "empty": [reading([])],
    "nasty": [reading(NASTY)],
    "rotated": [reading([(text, turned(quad, 30)) for text, quad in RECEIPT])],
    "column": [reading([("上海 市", box(10, 10, 30, 190))])],
    "right to left": [reading([("שלום עולם 12.50", box(10, 10, 190, 30))])],
    "several": [reading(RECEIPT), reading([]), reading(NASTY, page=7)],
}


def hocr_elements(document: str, name: str) -> list[tuple[str, dict[str, list[str]]]]:
    """Text and properties of the elements of a class."""
    return [
        (
            "".join(element.itertext()),
            {key: values for key, *values in map(str.split, element.get("title", "").split(";"))},
        )
        for element in ElementTree.fromstring(document.encode()).iter()
        if element.get("class") == name
    ]


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_hocr_passes_hocr_spec(pages: list[Reading], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(to_hocr(pages, image='a ;"<photo>\\ü.jpg'), "utf-8")
    report = hocr_spec.HocrValidator("standard").validate(str(file), parse_strict=True)
    assert [str(item) for item in report.items if item.level in ("ERROR", "FATAL")] == []
    assert len(hocr_elements(file.read_text("utf-8"), "ocr_page")) == len(pages)


def test_hocr_has_lines_and_words_with_boxes_and_confidences() -> None:
    document = to_hocr(reading(RECEIPT), image="photo.jpg")
    assert hocr_elements(document, "ocr_page")[0][1] == {
        "image": ['"photo.jpg"'], "bbox": ["0", "0", "400", "300"], "ppageno": ["0"],
    }  # fmt: skip
    assert [text for text, _ in hocr_elements(document, "ocr_line")] == [
        "TOTAL",
        "4.20 €",
        "Thank you <&>",
        "谢谢 再见",
    ]
    words = hocr_elements(document, "ocrx_word")
    assert words[0] == ("TOTAL", {"bbox": ["20", "20", "120", "40"], "x_wconf": ["75.00"]})
    assert words[5] == ("<&>", {"bbox": ["220", "80", "280", "100"], "x_wconf": ["75.00"]})
    assert hocr_elements(document, "ocr_line")[0][1]["baseline"] == ["0.0000", "-4.00"]


def test_words_that_no_space_separates_are_not_separated_in_hocr() -> None:
    words = [[("上", box(10, 10, 29, 30)), ("海", box(30, 11, 50, 31))]]
    document = to_hocr(reading([("上海", box(10, 10, 50, 31))], words=words))
    assert [text for text, _ in hocr_elements(document, "ocr_line")] == ["上海"]


def test_oblique_lines_have_baselines_and_steep_ones_angles_in_hocr() -> None:
    (_, line), (_, word) = (
        hocr_elements(to_hocr(reading([("x", turned(box(100, 140, 300, 160), 30))])), name)[0]
        for name in ("ocr_line", "ocrx_word")
    )  # fmt: skip
    assert line["bbox"] == ["108", "91", "292", "209"]
    slope, offset = map(float, line["baseline"])
    # The baseline is 20 % of 20 pixels above the lower edge, whose left end is at (108.4, 108.66).
    assert slope == pytest.approx(0.5774, abs=1e-4)
    assert 209 + offset == pytest.approx(108.66 - 4 / 0.8660 - 0.4 * 0.5774, abs=0.5)
    assert word["poly"] == ["118", "91", "292", "191", "282", "209", "108", "109"]
    for degrees, angle in ((90, 270), (-60, 60), (135, 225)):
        quad = turned(box(100, 140, 300, 160), degrees)
        one = reading(
            [("ab cd", quad)], words=[[("ab", quad[:1] + quad[1:]), ("cd", (turned(box(300, 140, 340, 160), degrees)))]]
        )
        ((_, line),) = hocr_elements(to_hocr(one), "ocr_line")
        assert float(line["textangle"][0]) == pytest.approx(angle, abs=0.5)


def test_right_to_left_lines_say_so() -> None:
    (page,) = PAGES["right to left"]
    assert 'class="ocr_line" id="line_1_1" dir="rtl"' in to_hocr(page)
    assert 'BASEDIRECTION="rtl"' in to_alto(page)


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_alto_is_read_by_alto_tools_with_the_same_words(
    pages: list[Reading], capsys: pytest.CaptureFixture[str]
) -> None:
    _, tree, namespace = alto_tools.alto_parse(io.StringIO(to_alto(pages)))
    assert namespace == "http://www.loc.gov/standards/alto/ns-v4#"
    alto_tools.alto_text(tree, namespace)
    assert sorted(capsys.readouterr().out.split()) == sorted(
        word for page in pages for text in page.texts for word in clean(text).split()
    )


def test_alto_is_read_by_alto_xml_with_the_same_words_and_boxes() -> None:
    # It knows version 3, whose elements are the same.
    document = to_alto([reading(RECEIPT), reading([])], image="photo.jpg").replace("ns-v4#", "ns-v3#")
    alto = parse_alto(document)
    assert alto.description.file_name == "photo.jpg"
    first, second = alto.layout.pages
    words = first.extract_strings()
    assert [(one.content, one.hpos, one.vpos, one.width, one.height, one.confidence) for one in words] == [
        ("TOTAL", 20, 20, 100, 20, 0.75), ("4.20", 300, 20, 60, 20, 0.75), ("€", 375, 20, 15, 20, 0.75),
        ("Thank", 20, 80, 100, 20, 0.75), ("you", 140, 80, 60, 20, 0.75), ("<&>", 220, 80, 60, 20, 0.75),
        ("谢谢", 20, 104, 80, 22, 0.75), ("再见", 120, 104, 80, 22, 0.75),
    ]  # fmt: skip
    assert [line.extract_words() for line in first.extract_lines()][2] == ["Thank", "you", "<&>"]
    assert (first.width, first.height, first.physical_img_nr, second.extract_words()) == (400, 300, 1, [])


# Of alto-4-4.xsd: the children of each element in their order, with how often they may occur, and its attributes.
PLACE = {"HPOS", "VPOS", "WIDTH", "HEIGHT"}
SCHEMA = {
    "alto": ("Description? Layout", {"SCHEMAVERSION", "schemaLocation"}, set()),
    "Description": ("MeasurementUnit sourceImageInformation? Processing*", set(), set()),
    "MeasurementUnit": ("", set(), set()),
    "sourceImageInformation": ("fileName?", set(), set()),
    "fileName": ("", set(), set()),
    "Processing": ("processingCategory? processingSoftware?", set(), {"ID"}),
    "processingCategory": ("", set(), set()),
    "processingSoftware": ("softwareName? softwareVersion?", set(), set()),
    "softwareName": ("", set(), set()),
    "softwareVersion": ("", set(), set()),
    "Layout": ("Page+", set(), set()),
    "Page": ("PrintSpace?", {"WIDTH", "HEIGHT"}, {"ID", "PHYSICAL_IMG_NR"}),
    "PrintSpace": ("Shape? ComposedBlock*", PLACE, set()),
    "ComposedBlock": ("Shape? TextBlock*", PLACE, {"ID"}),
    "TextBlock": ("Shape? TextLine*", PLACE, {"ID"}),
    "TextLine": ("Shape? (String SP?)+", {"ID", "BASELINE", "BASEDIRECTION", *PLACE}, set()),
    "String": ("Shape?", {"ID", "WC", *PLACE}, {"CONTENT"}),
    "SP": ("", PLACE, set()),
    "Shape": ("Polygon", set(), set()),
    "Polygon": ("", set(), {"POINTS"}),
}


@pytest.mark.parametrize("pages", PAGES.values(), ids=PAGES)
def test_alto_has_the_structure_of_its_schema(pages: list[Reading]) -> None:
    root = ElementTree.fromstring(to_alto(pages).encode())
    identities = []
    for element in root.iter():
        children, optional, required = SCHEMA[element.tag.removeprefix("{http://www.loc.gov/standards/alto/ns-v4#}")]
        pattern = re.sub(r"([A-Za-z]+)", r"(?:\1;)", children).replace(" ", "")
        names = "".join(f"{child.tag.rpartition('}')[2]};" for child in element)
        attributes = {name.rpartition("}")[2] for name in element.keys()}  # noqa: SIM118 an element's length is its children's
        assert re.fullmatch(pattern, names), (element.tag, names)
        assert required <= attributes <= required | optional
        identities += [element.get("ID")] if element.get("ID") else []
    assert len(set(identities)) == len(identities)
    assert all(re.fullmatch("[a-z]+[0-9_]+", str(identity)) for identity in identities)


@pytest.mark.parametrize("write", [to_hocr, to_alto])
def test_there_is_one_name_or_one_per_page(write: object) -> None:
    assert callable(write)
    pages = [reading(RECEIPT), reading([])]
    document = write(pages, image=["one.jpg", "two.jpg"])
    assert ("one.jpg" in document) == (write is to_hocr)  # ALTO has a place for one
    with pytest.raises(InvalidInputError, match="one name, or one per page; got 1 for 2 pages"):
        write(pages, image=["one.jpg"])


@given(st.lists(st.text(st.characters(max_codepoint=sys.maxunicode), max_size=8), max_size=5), st.floats(0, 360))
def test_any_text_is_read_back_from_hocr_and_alto(texts: Sequence[str], degrees: float) -> None:
    lines = [
        (text, turned(box(100, 100 + 30 * index, 300, 120 + 30 * index), degrees)) for index, text in enumerate(texts)
    ]
    page = reading(lines, (400, 400))
    expected = sorted(word for text in texts for word in clean(text).split())
    alto = ElementTree.fromstring(to_alto(page).encode())
    assert sorted(str(one.get("CONTENT")) for one in alto.iter() if one.tag.endswith("String")) == expected
    assert sorted(text for text, _ in hocr_elements(to_hocr(page), "ocrx_word")) == expected
