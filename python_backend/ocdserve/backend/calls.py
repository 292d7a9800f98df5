# SPDX-License-Identifier: Apache-2.0
"""What detectors and readers in process share: images of any kind, in batches, in any number, and pages."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.stages.image import decode
from ocdserve.contract import Downloads, Limits, RequestParameters, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, for_each, load_image
from ocdserve.results.many import Outcome, numbered, outcomes
from ocdserve.results.pages import check_only_page, pages_of
from ocdserve.results.pictures import LimitedImage, check_max_side

AnyImage = TypeVar("AnyImage", bound=Image)
_Found = TypeVar("_Found", bound=Detections)
_Parameters = TypeVar("_Parameters", bound=RequestParameters)


class LocalCalls(ABC, Generic[_Found, _Parameters]):
    """The calls of a detector or reader, around what it answers to a batch of images.

    Attributes:
        limits: Limits of decoding.
        downloads: How images given by URL are fetched; None: they are refused.
    """

    limits: Limits
    downloads: Downloads | None
    _parameters: ClassVar[type[RequestParameters]] = RequestParameters
    _outcome: ClassVar[type[Outcome[Any]]] = Outcome

    @abstractmethod
    def answer(self, images: Sequence[Image], parameters: _Parameters, bgr: bool = False) -> list[_Found]:
        """The result for each image, by the stages, with parameters that have been parsed."""

    def _parsed(self, overrides: Mapping[str, Any]) -> _Parameters:
        parsed: Any = self._parameters.parse(overrides)
        return parsed  # type: ignore[no-any-return]

    def _call_batch(
        self, images: Sequence[Image], bgr: bool, max_side: int | None, overrides: Mapping[str, Any]
    ) -> list[_Found]:
        parameters = self._parsed(overrides)
        if max_side is None:
            return self.answer(images, parameters, bgr)
        check_max_side(max_side)
        limited = for_each(
            lambda image: LimitedImage.of(
                load_image(image, bgr=bgr, downloads=self.downloads), max_side, parameters.page
            ),
            images,
        )
        # Pages have been decoded; pixels have none.
        found = self.answer([one.image for one in limited], replace(parameters, page=None), False)
        return [one.restore(each) for one, each in zip(limited, found, strict=True)]

    def _call_many(
        self,
        images: Iterable[AnyImage],
        concurrency: int,
        ordered: bool,
        bgr: bool,
        max_side: int | None,
        overrides: Mapping[str, Any],
    ) -> Generator[Any, None, None]:
        check_count("concurrency", concurrency)
        check_max_side(max_side)
        self._parsed(overrides)

        def one(image: AnyImage, _: threading.Event) -> _Found:
            return self._call_batch([image], bgr, max_side, overrides)[0]

        return outcomes(images, one, concurrency, ordered, self._outcome)

    def _call_pages(
        self,
        image: Image,
        pages: Sequence[int] | None,
        dpi: float,
        concurrency: int,
        bgr: bool,
        max_side: int | None,
        overrides: Mapping[str, Any],
    ) -> Generator[Any, None, None]:
        loaded = load_image(image, bgr=bgr, downloads=self.downloads)
        split = (page.image for page in pages_of(loaded, pages, dpi, self.limits))
        return numbered(self._call_many(split, concurrency, True, False, max_side, overrides), pages)

    def _pixels(self, image: Image, page: int | None, bgr: bool) -> NDArray[np.uint8]:
        """Upright uint8 (H, W, 3) RGB pixels of an image, within the limits."""
        loaded = load_image(image, bgr=bgr, downloads=self.downloads)
        if isinstance(loaded, bytes):
            return decode(loaded, self.limits, page)
        check_only_page(page)
        self.limits.check(loaded.shape[1], loaded.shape[0])
        return loaded
