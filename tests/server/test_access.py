"""Who is let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

from bitnet.errors import ParameterError
from bitnet.server.access import hostname
from bitnet.server.settings import Settings

KEYS = ("first-key", "second-key")
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded(tiny_gguf: Path) -> Iterator[serving.Client]:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=64), api_key=KEYS) as client:
        yield client


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_every_route(guarded: serving.Client, key: str) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}):
        assert guarded.post(CHAT, json=BODY, headers=headers).status_code == 200
        assert guarded.get("/metrics", headers=headers).status_code == 200
    del guarded.headers["authorization"]
    assert guarded.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    guarded.headers["authorization"] = f"Bearer {KEYS[0]}"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer first-key2", "Basic first-key", "Bearer " + "x" * 20_000])
def test_no_other_key_does(guarded: serving.Client, given: str) -> None:
    response = guarded.get("/v1/models", headers={"Authorization": given})
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"


def test_every_route_is_guarded_but_those_that_say_how_it_is(guarded: serving.Client) -> None:
    paths = [*guarded.get("/openapi.json").json()["paths"], "/openapi.json", "/nothing"]
    wrong = {"Authorization": "Bearer wrong"}
    free = {path for path in paths for verb in ("GET", "POST") if guarded.request(verb, path, headers=wrong).is_success}
    assert free == {"/health", "/ready"}


def test_a_key_that_no_text_can_be(guarded: serving.Client) -> None:
    with serving.connection(guarded) as raw:
        raw.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 401")


EVIL_HOSTS = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", ""]
GOOD_HOSTS = ["localhost", "LOCALHOST:1234", "127.0.0.1:8080", "[::1]:8080", "192.168.1.7", "[fe80::1]"]


@pytest.mark.parametrize("host", EVIL_HOSTS)
def test_a_strangers_name_for_this_server_is_refused(client: serving.Client, host: str) -> None:
    response = client.post(CHAT, json=BODY, headers={"Host": host})
    assert response.status_code == 403 and response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_addresses_and_localhost_are_names_of_this_server(client: serving.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_further_names_are_given_by_the_operator(tiny_gguf: Path) -> None:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=64), allowed_host=("my.example",)) as client:
        assert client.get("/health", headers={"Host": "My.Example:80"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.example"}).status_code == 403


def test_where_there_are_keys_any_name_will_do(guarded: serving.Client) -> None:
    assert guarded.post(CHAT, json=BODY, headers={"Host": "bitnet.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://", "x"])
def test_pages_of_strangers_may_not_call(client: serving.Client, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = client.request(method, "/v1/models", headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173"])
def test_pages_of_this_machine_may_call(client: serving.Client, origin: str) -> None:
    response = client.post(CHAT, json=BODY, headers={"Origin": origin})
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == origin
    assert "origin" in response.headers["vary"].lower()
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = client.options(CHAT, headers={"Origin": origin, **asked})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_a_page_can_read_the_error(guarded: serving.Client) -> None:
    headers = {"Origin": "http://localhost:3000", "Authorization": "Bearer wrong"}
    response = guarded.get("/v1/models", headers=headers)
    assert response.status_code == 401 and response.headers["access-control-allow-origin"] == headers["Origin"]
    asked = {"Access-Control-Request-Method": "POST"}  # which never carries the key
    assert guarded.options(CHAT, headers={**headers, **asked}).status_code == 204


def test_further_origins_are_given_by_the_operator(tiny_gguf: Path) -> None:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=64), cors_origin=("https://my.example",)) as client:
        assert client.get("/health", headers={"Origin": "https://my.example"}).status_code == 200
        assert client.get("/health", headers={"Origin": "http://my.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_a_public_address_wants_a_key(host: str) -> None:
    with pytest.raises(ParameterError, match="Anyone who can reach") as caught:
        Settings(host=host)
    assert "--api-key" in caught.value.hint and "--insecure" in caught.value.hint
    assert Settings(host=host, api_key=("k",)).host == Settings(host=host, insecure=True).host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_alone_wants_none(host: str) -> None:
    assert Settings(host=host).is_local


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "schlüssel"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ParameterError):
        Settings(api_key=(key,))


@pytest.mark.parametrize("given, name", [("[::1]:80", "::1"), ("A.b.:80", "a.b"), ("::1", ""), ("x", "x")])
def test_hostname(given: str, name: str) -> None:
    assert hostname(given) == name
