"""The server of the page: on 127.0.0.1, in a thread of its own, until somebody ends it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.review_page.app import make_app
from patchlake.pipeline.review_page.desk import Desk
from patchlake.pipeline.review_page.guard import Keys

_HERE = "127.0.0.1"
# For answers that are under way when the session ends.
_LAST_WORDS_S = 3


@contextmanager
def served(desk: Desk, port: int = 0) -> Iterator[tuple[str, threading.Event]]:
    """Serve a page until the block ends; yield its link, and what is set when the person is done.

    Args:
        desk: Keeps images and decisions.
        port: Where; 0: any that is free.

    Raises:
        ConfigError: if the port is taken.
    """
    try:
        listening = socket.create_server((_HERE, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port} of {_HERE} is not to be had: {error}") from None
    keys = Keys(listening.getsockname()[1])
    done = threading.Event()
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(desk, keys, done.set),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
    )
    # Not the main thread: signals are the command's.
    thread = threading.Thread(target=server.run, args=([listening],), name="page", daemon=True)
    thread.start()
    try:
        yield keys.link, done
    finally:
        server.should_exit = True
        thread.join(2 * _LAST_WORDS_S)
        listening.close()
