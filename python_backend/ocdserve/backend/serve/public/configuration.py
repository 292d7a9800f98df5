# SPDX-License-Identifier: Apache-2.0
"""The configuration of Envoy, the front door's proxy, as its JSON."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ocdserve.backend.serve.process.command import Ports
from ocdserve.backend.serve.public.envoy import Json, address, http_filter, path, typed
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.backend.serve.public.routes import MODEL_FIELDS, SERVED, SERVICE, local_replies, routes

# Addresses whose requests are counted at a time; more than that share the places of those that came long ago.
_MOST_ADDRESSES = 10_000
_MOST_HEADERS, _MOST_HEADER_KIB = 64, 16
_MOST_STREAMS = 100
# A thread and two copies of the image each.
_MOST_UPLOADS = 16
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 18, 1 << 20
# Shares of the memory limit at which the proxy gives back what it does not need, refuses new requests, and cuts off
# those that go on: over HTTP/2, which counts the memory of each, the largest first, over HTTP/1 all that send.
_SHRINK, _REFUSE, _CUT_OFF, _FULL = 0.7, 0.8, 0.9, 0.98
# Requests of less memory than this power of two are not cut off.
_SMALL_REQUEST = 20


@dataclass(frozen=True)
class Places:
    """Where the proxy finds its files, and Triton.

    Attributes:
        folder: Private folder of the configuration, the log and the socket of the proxy's administration.
        port: Port to listen on.
        triton: Triton's ports on the loopback interface.
        upload: Port of the process for plain uploads.
    """

    folder: Path
    port: int
    triton: Ports
    upload: int

    @property
    def admin(self) -> Path:
        """Socket of the administration."""
        return self.folder / "admin"

    @property
    def listeners(self) -> Path:
        """File of the listener, which the proxy reads again when it is replaced."""
        return self.folder / "listeners.json"


def bootstrap(options: PublicOptions, places: Places) -> Json:
    """What the proxy is started with; the listener, with certificate and tokens, is in a file of its own."""
    listeners_file = {"path_config_source": {"path": str(places.listeners)}, "resource_api_version": "V3"}
    return {
        "node": {"id": "ocdserve", "cluster": "ocdserve"},
        "admin": {
            "address": {"pipe": {"path": str(places.admin), "mode": 0o600}},
            "ignore_global_conn_limit": True,
        },
        "dynamic_resources": {"lds_config": listeners_file},
        "static_resources": {
            "clusters": [
                _cluster("http", places.triton.http, options.max_connections, http_protocol_options={}),
                # All clients share a connection. A header that Triton cannot read would stay in its HPACK table, and
                # fail the requests of others that refer to it.
                _cluster(
                    "grpc", places.triton.grpc, options.max_connections, http2_protocol_options={"hpack_table_size": 0}
                ),
                _cluster("upload", places.upload, _MOST_UPLOADS, http_protocol_options={}),
            ]
        },
        "overload_manager": _overload(options),
    }


def listeners(
    options: PublicOptions, places: Places, certificate: tuple[str, str] | None, tokens: Sequence[str] | None
) -> Json:
    """The port, its TLS, and what happens to requests."""
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="public",
        # Both protocols on one port: by ALPN, and without TLS by how a connection begins.
        codec_type="AUTO",
        use_remote_address=True,
        normalize_path=True,
        server_name="ocdserve",
        max_request_headers_kb=_MOST_HEADER_KIB,
        common_http_protocol_options={
            "idle_timeout": f"{options.idle_timeout}s",
            "max_headers_count": _MOST_HEADERS,
        },
        http2_protocol_options={
            "max_concurrent_streams": _MOST_STREAMS,
            "initial_stream_window_size": _STREAM_WINDOW,
            "initial_connection_window_size": _CONNECTION_WINDOW,
        },
        request_headers_timeout=f"{options.header_timeout}s",
        request_timeout=f"{options.upload_timeout}s",
        stream_idle_timeout=f"{options.upload_timeout + options.answer_timeout}s",
        http_filters=_filters(options, tokens),
        route_config={"virtual_hosts": [_virtual_host(options, places)]},
        local_reply_config=local_replies(options),
    )
    chain: Json = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        "transport_socket_connect_timeout": f"{options.header_timeout}s",
    }
    if certificate is not None:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": _tls(*certificate)}
    listener = typed(
        "config.listener.v3.Listener", name="public", address=address(options.host, places.port), filter_chains=[chain]
    )
    return {"resources": [listener]}


def _virtual_host(options: PublicOptions, places: Places) -> Json:
    return {
        "name": "public",
        "domains": ["*"],
        "routes": routes(options, places.upload),
        # The first two say "identity"; nothing else is passed on. Compressed errors cannot be corrected. A trace is
        # sent whatever its rate, if a client asks.
        "request_headers_to_remove": [
            *("content-encoding", "grpc-encoding", "accept-encoding"),
            *(() if options.tokens else ("traceparent", "tracestate")),
        ],
    }


def _filters(options: PublicOptions, tokens: Sequence[str] | None) -> list[Json]:
    script = resources.files(__package__).joinpath("responses.lua").read_text("utf-8")
    filters = [http_filter("lua", "Lua", default_source_code={"inline_string": script})]
    if options.rate:
        filters.append(_rate_limit(options.rate))
    if tokens is not None:
        credentials = [{"key": token, "client": str(number)} for number, token in enumerate(tokens)]
        key = {"key_sources": [{"header": "Authorization"}], "forwarding": {"hide_credentials": True}}
        filters.append(http_filter("api_key_auth", "ApiKeyAuth", credentials=credentials, **key))
    return [
        *filters,
        http_filter("buffer", "Buffer", max_request_bytes=options.max_body_bytes),
        _named_models(),
        http_filter("rbac", "RBAC", rules=_served_models_only()),
        http_filter("router", "Router", suppress_envoy_headers=True),
    ]


def _rate_limit(rate: int) -> Json:
    always = {"default_value": {"numerator": 100}}
    bucket = {"max_tokens": 2 * rate, "tokens_per_fill": rate, "fill_interval": "1s"}
    return http_filter(
        "local_ratelimit",
        "LocalRateLimit",
        stat_prefix="rate",
        filter_enabled=always,
        filter_enforced=always,
        rate_limits=[{"actions": [{"remote_address": {}}]}],
        # An entry without a value has a bucket for each address.
        descriptors=[{"entries": [{"key": "remote_address"}], "token_bucket": bucket}],
        max_dynamic_descriptors=_MOST_ADDRESSES,
        always_consume_default_token_bucket=False,
        token_bucket={"max_tokens": 2**31, "tokens_per_fill": 2**31, "fill_interval": "1s"},
    )


def _named_models() -> Json:
    """The filter that reads which model an RPC names."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from tritonclient.grpc import model_config_pb2, service_pb2

    files = FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    methods = {f"{SERVICE.strip('/')}.{name}": field for name, field in MODEL_FIELDS.items()}
    return http_filter(
        "grpc_field_extraction",
        "GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(files.SerializeToString()).decode()},
        extractions_by_method={method: {"request_field_extractions": {field: {}}} for method, field in methods.items()},
    )


def _served_models_only() -> Json:
    """Deny RPCs that name other models than those for clients, such as the steps between them."""
    served = {"or_match": {"value_matchers": [{"string_match": {"exact": name}} for name in SERVED]}}
    allowed = [
        {
            "sourced_metadata": {
                "metadata_matcher": {
                    "filter": "envoy.filters.http.grpc_field_extraction",
                    "path": [{"key": field}],
                    "value": {"list_match": {"one_of": served}},
                }
            }
        }
        for field in sorted(set(MODEL_FIELDS.values()))
    ]
    names_none = {"not_rule": {"url_path": {"path": path(f"{SERVICE}Model.*")}}}
    permissions = [{"or_rules": {"rules": [names_none, *allowed]}}]
    return {"action": "ALLOW", "policies": {"served": {"permissions": permissions, "principals": [{"any": True}]}}}


def _tls(certificate: str, key: str) -> Json:
    pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
    return typed(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair]},
    )


def _cluster(name: str, port: int, most: int, **protocol: Json) -> Json:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), most)
    endpoint = {"endpoint": {"address": address("127.0.0.1", port)}}
    protocols = typed("extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol)
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocols},
    }


def _overload(options: PublicOptions) -> Json:
    heap = "envoy.resource_monitors.fixed_heap"
    limits = {"max_heap_size_bytes": options.max_proxy_bytes}
    connections = {"max_active_downstream_connections": options.max_connections}
    kind = "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    gradually = {"scaling_threshold": _CUT_OFF, "saturation_threshold": _FULL}
    triggers = {
        "shrink_heap": {"threshold": {"value": _SHRINK}},
        "stop_accepting_requests": {"threshold": {"value": _REFUSE}},
        "reset_high_memory_stream": {"scaled": gradually},
    }
    return {
        "refresh_interval": "0.1s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _SMALL_REQUEST},
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": typed("extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", **limits),
            },
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(kind, **connections),
            },
        ],
        "actions": [
            {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": heap, **trigger}]}
            for name, trigger in triggers.items()
        ],
        "loadshed_points": [
            {
                "name": "envoy.load_shed_points.http1_server_abort_dispatch",
                "triggers": [{"name": heap, "threshold": {"value": _CUT_OFF}}],
            }
        ],
    }
