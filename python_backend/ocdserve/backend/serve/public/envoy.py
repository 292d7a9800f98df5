# SPDX-License-Identifier: Apache-2.0
"""Words of Envoy's configuration that recur."""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def typed(kind: str, **settings: Any) -> Json:
    """A message with its type."""
    return {"@type": f"type.googleapis.com/envoy.{kind}", **settings}


def http_filter(name: str, kind: str, **settings: Any) -> Json:
    """A filter of HTTP requests and responses."""
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": typed(f"extensions.filters.http.{name}.v3.{kind}", **settings),
    }


def per_filter(settings: Mapping[str, Json]) -> Json:
    """Settings of a route that replace those of filters, by the filters' names."""
    return {"typed_per_filter_config": {f"envoy.filters.http.{name}": value for name, value in settings.items()}}


def disabled() -> Json:
    """The setting that switches any filter off."""
    return typed("config.route.v3.FilterConfig", disabled=True)


def header(name: str, **rule: Any) -> Json:
    """A condition on a header: `exact`, `prefix`, `regex`, `present_match` or `range_match`."""
    if "regex" in rule:
        rule = {"safe_regex": {"regex": rule["regex"]}}
    return {"name": name, **({"string_match": rule} if {"exact", "prefix", "safe_regex"} & set(rule) else rule)}


def negated(condition: Json) -> Json:
    """The opposite of a condition on a header."""
    return {**condition, "invert_match": True}


def path(regex: str) -> Json:
    """A condition on the whole path."""
    return {"safe_regex": {"regex": regex}}


def address(host: str, port: int) -> Json:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}
