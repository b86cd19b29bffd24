"""Run by `cargo test -p git-devops-capi`, or by hand: GITDEVOPS_LIBRARY=… PYTHONPATH=capi/python python3 -m unittest discover capi/python/tests"""

import io
import json
import os
import unittest

import gitdevops

VECTORS = os.path.join(os.path.dirname(__file__), "../../../lib/tests/vectors")


def splitmix64(seed, length):
    """Returns `length` bytes of SplitMix64 (docs/formats/chunker-gear.md, "Golden vectors")."""
    mask = (1 << 64) - 1
    out = bytearray()
    while len(out) < length:
        seed = seed + 0x9E3779B97F4A7C15 & mask
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out += (z ^ z >> 31).to_bytes(8, "little")
    return bytes(out[:length])


class Dribble(io.RawIOBase):
    """A stream that hands out few bytes at a time, as a pipe may."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def read(self, size=-1):
        return self.data.read(min(size, 4099))


class Chunks(unittest.TestCase):
    def test_chunks_are_those_of_the_golden_vectors(self):
        for name, keys in [("gear", ["min", "avg", "max"]), ("rabin", ["window", "avg", "min", "max"])]:
            with open(os.path.join(VECTORS, name + ".jsonl"), encoding="ascii") as file:
                vectors = [json.loads(line) for line in file]
            vectors = [v for v in vectors if v["data"] == "splitmix64" and v["len"] <= 600_000]
            self.assertGreaterEqual(len(vectors), 5)
            for vector in vectors:
                spec = name + ":" + ",".join(f"{key}={vector[key]}" for key in keys)
                data = splitmix64(vector["seed"], vector["len"])
                chunker = gitdevops.Chunker(spec)
                for stream in io.BytesIO(data), Dribble(data):
                    chunks = list(chunker.chunks(stream))
                    self.assertEqual([len(chunk) for chunk in chunks], vector["lengths"], spec)
                    self.assertEqual(b"".join(chunks), data)

    def test_a_chunk_id_is_a_blake3_hash(self):
        for data in b"", bytearray(), memoryview(b""):
            self.assertEqual(
                gitdevops.chunk_id(data).hex(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
            )
        self.assertNotEqual(gitdevops.chunk_id(b"\0"), gitdevops.chunk_id(b"\0\0"))

    def test_an_error_has_a_number_and_a_sentence(self):
        with self.assertRaises(gitdevops.Error) as caught:
            gitdevops.Chunker("buzhash")
        self.assertEqual(caught.exception.code, -1)
        self.assertEqual(
            str(caught.exception), "cannot read chunker 'buzhash': 'buzhash' is not one of gear, rabin, fixed"
        )

    def test_the_version_has_three_numbers(self):
        self.assertEqual(len([int(part) for part in gitdevops.version().split(".")]), 3)


if __name__ == "__main__":
    unittest.main()
