//! The rabin chunker: cuts where those of librabinpoly are (`docs/formats/chunker-rabin.md`).
//!
//! The hash of a window is the window, read as a polynomial over GF(2), modulo [`POLYNOMIAL`].

/// Irreducible, of degree 63.
const POLYNOMIAL: u64 = 0xbfe6_b8a5_bf37_8d83;

const DEGREE: u32 = 63;

/// Where the hash ends a chunk; holds the bytes before the chunk only while the window can reach them.
pub(super) struct Rabin {
    window: usize,
    min: usize,
    max: usize,
    /// All these bits of a hash are one at a cut.
    mask: u64,
    tables: Tables,
    /// The last `window` bytes before the chunk; zeros before the stream.
    before: Vec<u8>,
}

/// Products modulo the polynomial, by byte.
struct Tables {
    /// What `byte * x^63` becomes, including the bit that the shift leaves at x^63.
    push: [u64; 256],
    /// `byte * x^(8 * window)`: what a byte that leaves the window has become.
    pull: [u64; 256],
}

impl Rabin {
    pub(super) fn new(window: u32, avg: u32, min: u32, max: u32) -> Self {
        let window = window as usize;
        Self {
            window,
            min: min as usize,
            max: max as usize,
            mask: (1 << avg.ilog2()) - 1,
            tables: Tables::new(window),
            before: vec![0; window],
        }
    }

    pub(super) fn reset(&mut self) {
        self.before.fill(0);
    }

    pub(super) fn cut(&mut self, data: &[u8]) -> usize {
        let data = &data[..data.len().min(self.max)];
        let length = if data.len() <= self.min { data.len() } else { self.find(data).unwrap_or(data.len()) };
        if self.min < self.window {
            self.remember(&data[..length]);
        }
        length
    }

    /// Returns the shortest length of at least `min` whose hash matches.
    fn find(&self, data: &[u8]) -> Option<usize> {
        if self.min >= self.window {
            return self.find_after(data, self.min - self.window, self.min);
        }
        // The window reaches back before the chunk: look at both as one.
        let reach: Vec<u8> = self.before.iter().chain(&data[..data.len().min(self.window)]).copied().collect();
        let near = self.find_after(&reach, self.min, self.min + self.window).map(|end| end - self.window);
        near.or_else(|| self.find_after(data, 0, self.window))
    }

    /// Returns the first end in `first..=data.len()` whose hash matches; `start` is a window before `first`.
    fn find_after(&self, data: &[u8], start: usize, first: usize) -> Option<usize> {
        let mut hash = data.get(start..first)?.iter().fold(0, |hash, byte| self.tables.append(hash, *byte));
        if hash & self.mask == self.mask {
            return Some(first);
        }
        let entering = &data[first..];
        let leaving = &data[start..];
        for (i, (new, old)) in entering.iter().zip(leaving).enumerate() {
            hash = self.tables.append(hash, *new) ^ self.tables.pull[*old as usize];
            if hash & self.mask == self.mask {
                return Some(first + i + 1);
            }
        }
        None
    }

    /// Keeps the last bytes of the stream so far.
    fn remember(&mut self, chunk: &[u8]) {
        let chunk = &chunk[chunk.len().saturating_sub(self.window)..];
        self.before.drain(..chunk.len());
        self.before.extend_from_slice(chunk);
    }
}

impl Tables {
    fn new(window: usize) -> Self {
        let push = std::array::from_fn(|byte| multiply_by_x(byte as u64, DEGREE) | (byte as u64) << DEGREE);
        let pull = std::array::from_fn(|byte| multiply_by_x(byte as u64, 8 * window as u32));
        Self { push, pull }
    }

    /// Returns the hash of a text after which `byte` is written.
    fn append(&self, hash: u64, byte: u8) -> u64 {
        (hash << 8 | u64::from(byte)) ^ self.push[(hash >> (DEGREE - 8)) as usize]
    }
}

/// Returns `value * x^power` modulo the polynomial.
fn multiply_by_x(value: u64, power: u32) -> u64 {
    (0..power).fold(value, |value, _| {
        let doubled = value << 1;
        if doubled >> DEGREE == 1 { doubled ^ POLYNOMIAL } else { doubled }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testdata::{Vector, lengths};

    #[test]
    fn cuts_are_those_of_librabinpoly() {
        let vectors = Vector::all(include_str!("../../tests/vectors/rabin.jsonl"));
        assert!(vectors.len() >= 13);
        for vector in vectors {
            let [window, avg, min, max] = ["window", "avg", "min", "max"].map(|key| vector.number(key) as u32);
            let mut rabin = Rabin::new(window, avg, min, max);
            // The second time shows that a reset forgets the first.
            for _ in 0..2 {
                rabin.reset();
                assert_eq!(
                    lengths(&vector.data(), |rest| rabin.cut(rest)),
                    vector.lengths(),
                    "window={window} avg={avg} min={min} max={max}"
                );
            }
        }
    }
}
