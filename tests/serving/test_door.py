"""Who may come in: keys, hosts, origins."""

import httpx
import pytest
from small_server import MODEL, running

from llm_journey.core.errors import BadInputError
from llm_journey.serving.errors import ApiError
from llm_journey.serving.guard import Door, read_keys

KEY = "a-key-of-24-characters-1"


def headers(host: str = "127.0.0.1:8000", **more: str) -> dict[bytes, bytes]:
    return {b"host": host.encode()} | {name.encode(): value.encode() for name, value in more.items()}


def refusal(door: Door, given: dict[bytes, bytes], path: str = "/v1/models") -> int:
    with pytest.raises(ApiError) as caught:
        door.check(path, given)
    return caught.value.status


def test_without_keys_only_on_the_loopback() -> None:
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        with pytest.raises(BadInputError, match="give keys by --api-key-file"):
            Door(host, [])
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        Door(host, [])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_foreign_hosts_are_refused_on_the_loopback(host: str) -> None:
    """DNS rebinding: a page's name that was bound to 127.0.0.1."""
    assert refusal(Door("127.0.0.1", []), headers(host)) == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_own_hosts_are_answered(host: str) -> None:
    Door("127.0.0.1", []).check("/v1/models", headers(host))


def test_hosts_beyond_the_loopback() -> None:
    door = Door("0.0.0.0", [KEY], more_hosts=["models.example.org"])
    for host in ("models.example.org", "10.0.0.7:8000", "Models.Example.Org:443"):
        door.check("/v1/models", headers(host, authorization=f"Bearer {KEY}"))
    assert refusal(door, headers("evil.example", authorization=f"Bearer {KEY}")) == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1"])
def test_foreign_origins_are_refused(origin: str) -> None:
    assert refusal(Door("127.0.0.1", []), headers(origin=origin)) == 403
    Door("127.0.0.1", []).check("/v1/models", headers(origin="http://127.0.0.1:8000"))


@pytest.mark.parametrize("given", ["", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY])
def test_wrong_keys_are_refused_and_health_needs_none(given: str) -> None:
    door = Door("127.0.0.1", ["another-key-entirely", KEY])
    assert refusal(door, headers(authorization=given)) == 401
    assert refusal(door, headers(authorization=given), "/metrics") == 401
    door.check("/healthz", headers())
    door.check("/v1/models", headers(authorization=f"bearer {KEY}"))


def test_key_files(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n{KEY}\n\n  another-key-entirely \n")
    assert read_keys(path) == [KEY, "another-key-entirely"]
    for text in ("", "# nothing\n", "short\n"):
        path.write_text(text)
        with pytest.raises(BadInputError) as caught:
            read_keys(path)
        assert "short\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_keys(tmp_path / "none")


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_server_with_keys(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals have OpenAI's shape; no log line and no answer holds a key or a prompt."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a secret prompt"}], "max_tokens": 2}
    with caplog.at_level("INFO"), running(keys=(KEY,)) as server, httpx.Client(base_url=server.url) as client:
        refused = client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["code"] == "invalid_api_key"
        right = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
        answered = client.post("/v1/chat/completions", json=body, headers=right)
        assert (answered.status_code, answered.headers["x-request-id"]) == (200, "mine-1")
        assert client.get("/v1/models", headers={**right, "origin": "http://evil.example"}).status_code == 403
        assert client.get("/healthz").json() == {"status": "ok"}
        figures = client.get("/metrics", headers=right).text
    logged = [record.facts for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert [line["status"] for line in logged] == [401, 200, 403, 200, 200]
    assert logged[1]["id"] == "mine-1" and logged[1]["completion_tokens"] <= 2
    assert KEY not in str(logged) and "secret" not in str(logged)
    assert 'journey_requests_total{route="/v1/chat/completions",status="200"} 1.0' in figures
    assert f'journey_prompt_tokens_total{{model="{MODEL}"}}' in figures
