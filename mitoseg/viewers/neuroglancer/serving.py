"""The server: its port, its link, and its end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import neuroglancer

from mitoseg.errors import UserError

LOCAL = "127.0.0.1"


@contextmanager
def serving(state: neuroglancer.ViewerState, *, bind: str = LOCAL, port: int = 0) -> Iterator[neuroglancer.Viewer]:
    """Serve a scene to browsers until the block is left.

    Args:
        state: What is shown.
        bind: The address that is listened on; ``0.0.0.0`` is every one of this machine, for whoever has the link.
        port: 0 chooses a free one.

    Yields:
        The viewer; ``get_viewer_url()`` is its link.

    Raises:
        UserError: The port is taken or not allowed, or there is no such address.
    """
    try:
        _listen(bind, port)
        neuroglancer.set_server_bind_address(bind, port)
        viewer = neuroglancer.Viewer()
    except OSError as error:
        raise _refused(error, bind, port) from error
    try:
        viewer.set_state(state)
        yield viewer
    finally:
        neuroglancer.stop()


def _listen(bind: str, port: int) -> None:
    """Listen for a moment: where that fails the library would leave sockets open."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    socket.create_server((bind, port), family=family).close()


def _refused(error: OSError, bind: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError("the port is taken", port, "choose another, or port=0 for a free one")
    if error.errno == errno.EACCES:
        return UserError("the port may not be used", port, "choose one above 1023, or port=0 for a free one")
    return UserError("cannot listen on that address", bind, "give bind=127.0.0.1, or an address of this machine")


def wait_for_interrupt() -> None:
    """Return at Ctrl+C."""
    never = Event()
    try:
        while not never.wait(1.0):  # without a limit Windows would not heed the key
            pass
    except KeyboardInterrupt:
        return
