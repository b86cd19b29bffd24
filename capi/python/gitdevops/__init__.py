"""Chunks as git-devops cuts and names them, on top of the C library.

The library is looked for where GITDEVOPS_LIBRARY says, else by its name, `libgitdevops.so`, where the system keeps libraries.
"""

import ctypes
import os

__all__ = ["Chunker", "Error", "chunk_id", "version"]

_BUFFER_LEN = 1 << 20


class Error(Exception):
    """A call that failed; `code` is one of the GDO_E... numbers of gitdevops.h."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Chunker:
    """Cuts streams of bytes into chunks.

    `spec` is its text as in a chunk index: "gear", "rabin", "fixed", or "gear:min=16384,avg=65536,max=262144". One chunker serves
    one thread at a time.
    """

    def __init__(self, spec="gear"):
        self._chunker = ctypes.c_void_p()
        _check(_library.gdo_chunker_new(spec.encode() + b"\0", ctypes.byref(self._chunker)))
        self.max_len = _library.gdo_chunker_max_len(self._chunker)

    def __del__(self):
        # At the end of the program the library may be gone before the chunker is.
        if _library is not None and getattr(self, "_chunker", None):
            _library.gdo_chunker_free(self._chunker)
            self._chunker = None

    def chunks(self, stream):
        """Yields the chunks of a binary stream, from where it stands to its end, each as bytes.

        Starts over with each call: only one call's chunks can be asked for at a time.
        """
        _check(_library.gdo_chunker_reset(self._chunker))
        buffer = b""
        is_at_end = False
        while True:
            start = 0
            while is_at_end or len(buffer) - start >= self.max_len:
                length = self._cut(buffer, start)
                if length == 0:
                    return
                yield buffer[start : start + length]
                start += length
            piece = stream.read(max(_BUFFER_LEN, 4 * self.max_len))
            is_at_end = not piece
            buffer = buffer[start:] + piece

    def _cut(self, buffer, start):
        """Returns the length of the chunk that begins at `start`."""
        address = ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value + start
        length = ctypes.c_size_t()
        _check(_library.gdo_chunker_cut(self._chunker, address, len(buffer) - start, ctypes.byref(length)))
        return length.value


def chunk_id(data):
    """Returns the id of a chunk, its BLAKE3 hash, as 32 bytes."""
    data = bytes(data)
    out = ctypes.create_string_buffer(32)
    _check(_library.gdo_chunk_id(data, len(data), out))
    return out.raw


def version():
    """Returns the version of the library."""
    return _library.gdo_version().decode()


def _check(code):
    """Raises what the library says about a failed call."""
    if code != 0:
        raise Error(code, _library.gdo_last_error().decode())


def _load():
    """Loads the library and tells ctypes what its functions take."""
    library = ctypes.CDLL(os.environ.get("GITDEVOPS_LIBRARY", "libgitdevops.so"))
    pointer, size, integer, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in [
        ("gdo_version", text, []),
        ("gdo_last_error", text, []),
        ("gdo_chunk_id", integer, [text, size, text]),
        ("gdo_chunker_new", integer, [text, pointer]),
        ("gdo_chunker_cut", integer, [pointer, pointer, size, pointer]),
        ("gdo_chunker_max_len", size, [pointer]),
        ("gdo_chunker_reset", integer, [pointer]),
        ("gdo_chunker_free", None, [pointer]),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_library = _load()
