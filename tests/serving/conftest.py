"""One server for all tests that only ask it things."""

from collections.abc import Iterator

import pytest
from small_server import Running, embedder_in, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, _sockets: None) -> Iterator[Running]:
    with running(embedder=embedder_in(tmp_path_factory.mktemp("embedder"))) as found:
        yield found


@pytest.fixture(scope="module")
def _sockets() -> Iterator[None]:
    """Module fixtures come before a test's marks are looked at."""
    import pytest_socket

    pytest_socket.enable_socket()
    yield
    pytest_socket.disable_socket(allow_unix_socket=True)
