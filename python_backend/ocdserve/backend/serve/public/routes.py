# SPDX-License-Identifier: Apache-2.0
"""Which requests the front door passes on, and how it refuses the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ocdserve.backend.serve.public.envoy import Json, disabled, header, negated, path, per_filter, typed
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.contract import ASKED_MODELS, REQUEST_TOO_LARGE, TOO_MANY_REQUESTS

SERVED = ASKED_MODELS
SERVICE = "/inference.GRPCInferenceService/"
# RPCs that name a model, and the field that does.
MODEL_FIELDS = {"ModelInfer": "model_name", "ModelReady": "name", "ModelMetadata": "name", "ModelConfig": "name"}

# Of the process for plain uploads; the second one answers where there is a recogniser.
_UPLOADS = ("/detect", "/read")
_JSON_LENGTH = "inference-header-content-length"
# Filters that wait for the request, or look for Triton's errors.
_NOT_FOR_REFUSALS = ("buffer", "grpc_field_extraction", "rbac", "lua")
_ANY_PATH = {"prefix": "/"}


def routes(options: PublicOptions, upload_port: int) -> list[Json]:
    """What happens to a request: the first route that matches it."""
    models = "|".join(SERVED)
    infer = path(f"/v2/models/({models})/infer")
    about = path(f"/v2(/models/({models})(/ready|/config)?)?")
    alive = path("/v2/health/(live|ready)")
    rpcs = path(f"{SERVICE}({'|'.join((*MODEL_FIELDS, 'ServerMetadata'))})")
    probes = path(f"({SERVICE}Server(Live|Ready)|/grpc.health.v1.Health/Check)")
    post, get = header(":method", exact="POST"), header(":method", exact="GET")
    grpc = header("content-type", regex=r"application/grpc(\+proto)?")
    # Of a header that is sent twice one value is enough to match, and Triton takes the first. So each value is compared
    # with what is wrong.
    split = header(_JSON_LENGTH, present_match=True)
    number = negated(header(_JSON_LENGTH, regex="|0.*|.*[^0-9].*|.{11,}"))
    short = negated(header(_JSON_LENGTH, range_match={"start": options.max_json_bytes + 1, "end": 2**62}))
    small = {"buffer": typed("extensions.filters.http.buffer.v3.BufferPerRoute", buffer=_body(options.max_json_bytes))}
    # For load balancers.
    without_token = {**small, "api_key_auth": disabled()} if options.tokens else small
    compressed = "compressed requests are not accepted; send them without compression"
    no_number = (
        "Inference-Header-Content-Length must be one whole number above 0, the bytes of JSON before the binary data"
    )
    return [
        _refusal(415, compressed, _ANY_PATH, *_encoded("content-encoding")),
        _refusal(415, compressed, _ANY_PATH, *_encoded("grpc-encoding")),
        _passed("http", options, alive, get, filters=without_token),
        _passed("http", options, about, get, filters=small),
        _passed("http", options, infer, post, split, number, short),
        _refusal(413, "", infer, post, split, number),
        _refusal(400, no_number, infer, post, split),
        # Without the header all of the body is JSON.
        _passed("http", options, infer, post, filters=small),
        _passed("grpc", options, probes, post, grpc, filters=without_token),
        _passed("grpc", options, rpcs, post, grpc),
        *([] if options.no_uploads else [_upload(options, upload_port, address, post) for address in _UPLOADS]),
        _refusal(404, "this is not served here; docs/production.md lists what is", _ANY_PATH),
    ]


def _encoded(name: str) -> tuple[Json, Json]:
    return header(name, present_match=True), negated(header(name, exact="identity"))


def _body(most: int) -> Json:
    return {"max_request_bytes": most}


def _passed(
    cluster: str, options: PublicOptions, match: Json, *headers: Json, filters: Mapping[str, Json] | None = None
) -> Json:
    return {
        "match": {**match, "headers": list(headers)},
        "route": {"cluster": cluster, "timeout": f"{options.answer_timeout}s"},
        **per_filter(filters or {}),
    }


def _upload(options: PublicOptions, port: int, address: str, *headers: Json) -> Json:
    """To the process for plain uploads, which answers only what is sent to its own address."""
    route = _passed("upload", options, path(address), *headers)
    route["route"]["host_rewrite_literal"] = f"127.0.0.1:{port}"
    return {**route, "request_headers_to_remove": ["origin"]}


def _refusal(status: int, message: str, match: Json, *headers: Json) -> Json:
    return {
        "match": {**match, "headers": list(headers)},
        "direct_response": {"status": status, "body": {"inline_string": message}},
        **per_filter({name: disabled() for name in _NOT_FOR_REFUSALS}),
    }


@dataclass(frozen=True)
class _Reply:
    """How a refusal by an HTTP status looks; the gRPC status, and another HTTP one, are Envoy's where they are None."""

    grpc: int | None = None
    text: str = "%LOCAL_REPLY_BODY%"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None


def local_replies(options: PublicOptions) -> Json:
    """The form of all refusals: Triton's JSON over HTTP, the message alone over gRPC."""
    is_grpc = {"header_filter": {"header": header("content-type", prefix="application/grpc")}}
    mappers = []
    for status, reply in {**_replies(options), None: _Reply()}.items():
        has_status = [] if status is None else [_status(status)]
        code = {} if reply.grpc is None else {"grpc-status": str(reply.grpc)}
        both = {"and_filter": {"filters": [is_grpc, *has_status]}} if has_status else is_grpc
        text = {"text_format_source": {"inline_string": reply.text}}
        mappers.append(_mapper(both, text, {**reply.headers, **code}))
        if has_status:
            mapper = _mapper(has_status[0], _as_json(reply.text), reply.headers)
            mappers.append(mapper if reply.status is None else {**mapper, "status_code": reply.status})
    return {"mappers": mappers, "body_format": _as_json(_Reply.text)}


def _replies(options: PublicOptions) -> dict[int | None, _Reply]:
    invalid, late, exhausted = 3, 4, 8
    later = {"retry-after": "1"}
    busy = "the server is not ready or has too much to do; try again later"
    token = "a token of this server is missing: send the header `Authorization: Bearer TOKEN`"
    return {
        400: _Reply(invalid),
        401: _Reply(text=token, headers={"www-authenticate": "Bearer"}),
        403: _Reply(text=f"the request names no model that is served here: {', '.join(SERVED)}"),
        408: _Reply(
            late,
            f"the request was not complete in time: {options.header_timeout} s are allowed for its headers, "
            f"{options.upload_timeout} s for all of it",
        ),
        413: _Reply(
            exhausted,
            f"{REQUEST_TOO_LARGE}: at most {options.max_body_bytes} bytes are accepted, of them at most "
            f"{options.max_json_bytes} bytes of JSON; send tensors as binary data, and large images in tiles",
        ),
        415: _Reply(invalid),
        429: _Reply(
            exhausted, f"{TOO_MANY_REQUESTS}: more than {options.rate} per second came from your address", later
        ),
        431: _Reply(invalid, "the headers of the request are too many or too long"),
        # Requests over HTTP/1 that are cut off because the proxy's memory is full.
        500: _Reply(text=busy, headers=later, status=503),
        503: _Reply(text=busy, headers=later),
        504: _Reply(late, f"the server has not answered within {options.answer_timeout} s; send smaller requests"),
    }


def _mapper(condition: Json, body: Json, headers: Mapping[str, str]) -> Json:
    added = [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]
    return {"filter": condition, "body_format_override": body, "headers_to_add": added}


def _as_json(text: str) -> Json:
    return {"json_format": {"error": text}, "content_type": "application/json"}


def _status(code: int) -> Json:
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": "none"}}}}
