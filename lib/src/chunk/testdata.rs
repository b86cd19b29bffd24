//! The data that golden vectors name (`docs/formats/chunker-gear.md`, "Golden vectors"), and their lines.

use serde_json::Value;

/// The generator that all test data comes from.
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// Returns the next output.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}

/// Returns `len` bytes of SplitMix64 from `seed`.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut generator = SplitMix64(seed);
    let mut data: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| generator.next().to_le_bytes()).collect();
    data.truncate(len);
    data
}

/// Returns `len` bytes of lower-case lines, 63 letters each.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut generator = SplitMix64(seed);
    let mut letter = |i| if i % 64 == 63 { b'\n' } else { b'a' + (generator.next() % 26) as u8 };
    (0..len).map(&mut letter).collect()
}

/// Returns the data that `kind`, `seed` and `len` name.
pub fn data(kind: &str, seed: u64, len: usize) -> Vec<u8> {
    match kind {
        "splitmix64" => random(seed, len),
        "text" => text(seed, len),
        "zeros" => vec![0; len],
        "ones" => vec![0xFF; len],
        _ => panic!("BUG: unknown data '{kind}'"),
    }
}

/// One line of a golden file.
pub struct Vector(Value);

impl Vector {
    /// Reads all lines of a golden file.
    pub fn all(file: &str) -> Vec<Self> {
        file.lines().map(|line| Self(serde_json::from_str(line).unwrap())).collect()
    }

    /// Returns the number named `key`.
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no '{key}' in {}", self.0))
    }

    /// Returns the data that was cut.
    pub fn data(&self) -> Vec<u8> {
        data(self.0["data"].as_str().unwrap(), self.number("seed"), self.number("len") as usize)
    }

    /// Returns the lengths of all chunks, in order.
    pub fn lengths(&self) -> Vec<usize> {
        self.0["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
    }
}

/// Returns the lengths of all chunks that `cut` makes of `data`, in order.
pub fn lengths(data: &[u8], mut cut: impl FnMut(&[u8]) -> usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        lengths.push(cut(rest));
        rest = &rest[lengths[lengths.len() - 1]..];
    }
    lengths
}
