"""What `octavo serve` can be told, and how the command line says it. Needs no web library, as octavo.openai does."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from octavo.checks import number, whole
from octavo.errors import InvalidOption

__all__ = ["ServeOptions", "add_arguments", "options_of"]

_LISTS = ("allowed_origins", "allowed_methods", "allowed_headers")  # given as JSON, as to other servers


class ServeOptions(msgspec.Struct, kw_only=True):
    """host, port: where it listens; port 0 takes a free one. api_key: see create_app. served_model_name: likewise.

    workers: web processes; one engine serves them all. drain_timeout: seconds that requests have to end after SIGTERM.
    page: the chat page at /. engine_restarts: how many times within ten minutes an engine that died is started again,
    0: the server ends with it. The rest: see create_app.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: tuple[str, ...] = ()
    served_model_name: tuple[str, ...] = ()
    workers: int = 1
    drain_timeout: float = 30.0
    max_body_bytes: int = 32 << 20
    keep_alive: float = 15.0
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    response_store_bytes: int = 64 << 20
    access_log: bool = True
    page: bool = True
    engine_restarts: int = 3
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False

    def cors(self) -> dict[str, Any]:
        """What create_app is told of other origins."""
        return {name: getattr(self, name) for name in (*_LISTS, "allow_credentials")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="X", help="default 127.0.0.1, this machine alone")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    group.add_argument("--api-key", action="append", default=[], metavar="KEY", help="asked for; may be given again")
    group.add_argument("--served-model-name", action="append", default=[], metavar="NAME", help="may be given again")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="web processes that share the engine")
    group.add_argument("--drain-timeout", type=float, default=30.0, metavar="S", help="to end requests after SIGTERM")
    group.add_argument("--max-body-bytes", type=int, default=32 << 20, metavar="N", help="of one request")
    group.add_argument("--keep-alive", type=float, default=15.0, metavar="S", help="seconds of silence in a stream")
    group.add_argument("--tool-parser", default="auto", metavar="X", help="how the model calls tools; see create_app")
    group.add_argument("--reasoning-parser", default="auto", metavar="X", help="how it marks its thoughts; likewise")
    access = "a line a request on stderr, without its text"
    group.add_argument("--access-log", action=argparse.BooleanOptionalAction, default=True, help=access)
    store = "of the last responses, to be continued; kept with one worker only"
    group.add_argument("--response-store-bytes", type=int, default=64 << 20, metavar="N", help=store)
    group.add_argument("--page", action=argparse.BooleanOptionalAction, default=True, help="the chat page at /")
    restarts = "of an engine that died, within ten minutes; 0: the server ends with it"
    group.add_argument("--engine-restarts", type=int, default=3, metavar="N", help=f"default 3; {restarts}")
    origins = "whose web pages may call the server from a browser (CORS); default none"
    group.add_argument("--allowed-origins", default="[]", metavar="JSON", help=f'["https://a.com"], ["*"]: {origins}')
    group.add_argument(
        "--allowed-methods", default='["*"]', metavar="JSON", help="that those pages may use; default all"
    )
    group.add_argument("--allowed-headers", default='["*"]', metavar="JSON", help="that they may send; default all")
    cookies = "they may send cookies and the browser's own authorization"
    group.add_argument("--allow-credentials", action=argparse.BooleanOptionalAction, default=False, help=cookies)


def options_of(arguments: argparse.Namespace) -> ServeOptions:
    """Raises InvalidOption."""
    values = {name: getattr(arguments, name) for name in ServeOptions.__struct_fields__}
    for name in _LISTS:
        try:
            values[name] = msgspec.json.decode(values[name], type=tuple[str, ...])
        except msgspec.DecodeError as error:
            flag = "--" + name.replace("_", "-")
            raise InvalidOption(flag, values[name], f'a JSON list of strings, as ["*"]: {error}') from None
    options = msgspec.convert(values, ServeOptions)
    whole("--port", options.port, 0, 65535)
    whole("--workers", options.workers, 1, 256)
    whole("--engine-restarts", options.engine_restarts, 0)
    number("--drain-timeout", options.drain_timeout, 0.0)
    number("--keep-alive", options.keep_alive, 0.0, above=True)
    whole("--max-body-bytes", options.max_body_bytes, 1)
    whole("--response-store-bytes", options.response_store_bytes, 0)
    for name, given in (("--api-key", options.api_key), ("--served-model-name", options.served_model_name)):
        if not all(given):  # the variable that it came from was not set
            raise InvalidOption(name, "", "not empty")
    return options
