"""A client of scache(8), the connection cache of Postfix and of postkeep, with nothing but the standard library.

Programs that do not know each other share connections to other servers through the cache: one saves a connection that
it does not need for a moment, another finds it and goes on with it.

    import postkeep_scache

    with postkeep_scache.Cache("/var/spool/postfix/private/scache") as cache:
        session = cache.find_endpoint(b"myservice\\nmail.example.org\\n25\\n")
        if session is None:
            connection, state = connect_and_greet("mail.example.org"), b"greeted"
        else:
            connection, state = session.take(), session.endpoint_property
        ...
        cache.save_endpoint(b"myservice\\nmail.example.org\\n25\\n", b"greeted", connection)

Labels and properties are bytes without NUL (or text, which is sent as UTF-8) that mean something to clients only.
Whatever clients that share connections have to agree on belongs into the label: with whom, as whom, with which TLS. A
session that is found is not in the cache any more, so it has one owner at a time.

A `Cache` is one connection to the cache, for one thread. After an `Error` it is closed; a new one can be opened.

References: scache(8); Postfix src/global/scache_clnt.c, src/scache/scache.c.
"""

import os
import socket
import time

__all__ = ["Cache", "Error", "Refused", "Session"]

PROTOCOL = b"connection_cache_protocol"

# Longest list that a server may answer with.
_MOST_BYTES = 4 * 1024 * 1024
_READ_SIZE = 16 * 1024
# Descriptors of one message: room for more than the one that is expected, so that others are seen and closed.
_MOST_DESCRIPTORS = 8


class Error(OSError):
    """The cache cannot be reached, broke off, or said something that is not of its protocol."""


class Refused(Error):
    """The cache did not save what it was given, and has closed its copy. The connection to it is still good."""


class Session:
    """A connection that was found in the cache.

    It is closed with the object, at the end of a `with` block, or by `close`, unless it was taken.
    """

    def __init__(self, descriptor, endpoint_property, destination_property=None):
        self._descriptor = descriptor
        #: What was saved with the session.
        self.endpoint_property = endpoint_property
        #: What was saved with the destination; None when it was found by its endpoint.
        self.destination_property = destination_property

    def take(self):
        """The connection as a socket, which is the caller's from then on. Once only: ValueError."""
        return socket.socket(fileno=self.detach())

    def detach(self):
        """The same as a descriptor number."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            raise ValueError("the session was taken or closed")
        return descriptor

    def close(self):
        """Closes the connection, unless it was taken."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            socket.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()


class Cache:
    """A connection to the cache.

    - path: of its socket
    - timeout: for connecting, and for each answer, in seconds
    - announced: the server speaks first (Postfix 3.6 and later, and postkeep by default)
    """

    def __init__(self, path, timeout=5.0, announced=True):
        self._timeout = timeout
        self._input = bytearray()
        self._descriptors = []
        self._until = time.monotonic() + timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            if announced and self._list() != [(b"protocol", PROTOCOL)]:
                raise Error("the server speaks another protocol")
        except BaseException as error:
            self.close()
            raise _as_error(error) from error

    def save_endpoint(self, label, prop, connection, ttl=2):
        """Saves a connection under the label of its endpoint, and closes it here whatever happens.

        - connection: a socket, or anything with `fileno` and `close`
        - ttl: seconds, above zero; the cache takes no more than its `connection_cache_ttl_limit`
        """
        try:
            if ttl <= 0:
                raise ValueError("time to live must be above zero")
            with _Exchange(self):
                self._request(
                    b"save_endp", (b"ttl", b"%d" % ttl), (b"label", label), (b"property", prop)
                )
                prompt = self._list()
                if prompt != [(b"dummy", b"")]:
                    _check(prompt, b"status")
                    raise Refused("the cache did not save the connection")
                socket.send_fds(self._socket, [b"\0"], [connection.fileno()])
                self._status()
        finally:
            connection.close()

    def save_destination(self, label, prop, endpoint, ttl=2):
        """Binds the label of a destination to that of an endpoint."""
        if ttl <= 0:
            raise ValueError("time to live must be above zero")
        with _Exchange(self):
            self._request(
                b"save_dest",
                (b"ttl", b"%d" % ttl),
                (b"label", label),
                (b"property", prop),
                (b"label", endpoint),
            )
            self._status()

    def find_endpoint(self, label):
        """Takes a session of an endpoint out of the cache; None when there is none."""
        with _Exchange(self):
            self._request(b"find_endp", (b"label", label))
            answer = self._list()
            (status, prop) = _check(answer, b"status", b"property")
            return Session(self._descriptor(), prop) if status == b"0" else None

    def find_destination(self, label):
        """Takes a session of any endpoint of a destination out of the cache; None when there is none."""
        with _Exchange(self):
            self._request(b"find_dest", (b"label", label))
            answer = self._list()
            (status, destination, prop) = _check(answer, b"status", b"property", b"property")
            return Session(self._descriptor(), prop, destination) if status == b"0" else None

    def close(self):
        """Disconnects from the cache. What is in there stays."""
        self._socket.close()
        while self._descriptors:
            socket.close(self._descriptors.pop())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _request(self, operation, *attributes):
        text = bytearray(b"request\0" + operation + b"\0")
        for name, value in attributes:
            if isinstance(value, str):
                value = value.encode()
            if b"\0" in value:
                raise ValueError("NUL in %s" % name.decode())
            text += name + b"\0" + value + b"\0"
        self._socket.sendall(text + b"\0")

    def _status(self):
        (status,) = _check(self._list(), b"status")
        if status != b"0":
            raise Refused("the cache did not save what it was given")

    def _list(self):
        """One attribute list: names and values, each ended by a NUL, and an empty name at the end."""
        while True:
            strings = self._strings()
            if strings is not None:
                return list(zip(strings[::2], strings[1::2]))
            if len(self._input) > _MOST_BYTES:
                raise Error("the answer is too long")
            self._fill()

    def _strings(self):
        strings, start = [], 0
        while True:
            end = self._input.find(b"\0", start)
            if end < 0:
                return None
            if end == start and len(strings) % 2 == 0:
                del self._input[: end + 1]
                return strings
            strings.append(bytes(self._input[start:end]))
            start = end + 1

    def _descriptor(self):
        self._socket.sendall(b"dummy\0\0\0")
        while not self._input:
            self._fill()
        del self._input[0]
        if len(self._descriptors) != 1:
            raise Error("one descriptor was expected, and %d came" % len(self._descriptors))
        descriptor = self._descriptors.pop()
        try:
            # The session is ours whatever becomes of this.
            self._socket.sendall(b"dummy\0\0\0")
        except OSError:
            pass
        return descriptor

    def _fill(self):
        left = self._until - time.monotonic()
        if left <= 0:
            raise Error("the cache does not answer")
        self._socket.settimeout(left)
        # Always like this: a descriptor may ride on any byte, and is lost otherwise.
        data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_SIZE, _MOST_DESCRIPTORS)
        self._descriptors += descriptors
        for descriptor in descriptors:
            # Not for child processes.
            os.set_inheritable(descriptor, False)
        if not data:
            raise Error("the cache has closed the connection")
        self._input += data


class _Exchange:
    """One request and its answer: whatever breaks off in between ends the connection."""

    def __init__(self, cache):
        self._cache = cache

    def __enter__(self):
        cache = self._cache
        if cache._socket.fileno() < 0:
            raise Error("the connection to the cache is closed")
        cache._until = time.monotonic() + cache._timeout
        cache._socket.settimeout(cache._timeout)

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, (Refused, ValueError)):
            return
        self._cache.close()
        if isinstance(error, OSError) and not isinstance(error, Error):
            raise _as_error(error) from error


def _check(answer, *names):
    if tuple(name for name, _ in answer) != names:
        raise Error("unexpected answer: %r" % (answer,))
    return tuple(value for _, value in answer)


def _as_error(error):
    if isinstance(error, Error) or not isinstance(error, OSError):
        return error
    return Error(*error.args)
