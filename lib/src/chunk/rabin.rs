//! The rabin chunker: cuts where those of librabinpoly are (`docs/formats/chunker-rabin.md`).
//!
//! The hash of a window is the window, read as a polynomial over GF(2), modulo [`POLYNOMIAL`].

/// Irreducible, of degree 63.
const POLYNOMIAL: u64 = 0xbfe6_b8a5_bf37_8d83;

const DEGREE: u32 = 63;

/// Places from which a block is searched at once.
const LANES: usize = 4;

/// Bytes that each lane searches: long against a window, short against a chunk.
const STRIPE: usize = 1024;

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
            return self.find_after(data, self.min);
        }
        // The window reaches back before the chunk: look at both as one.
        let reach: Vec<u8> = self.before.iter().chain(&data[..data.len().min(self.window)]).copied().collect();
        let near = self.find_after(&reach, self.min + self.window).map(|end| end - self.window);
        near.or_else(|| self.find_after(data, self.window))
    }

    /// Returns the first end in `first..=data.len()` whose hash matches; `data` begins a window before it, or earlier.
    fn find_after(&self, data: &[u8], mut first: usize) -> Option<usize> {
        while let Some(block) = data.get(first - self.window..first + LANES * STRIPE) {
            if let Some(lane) = self.first_lane_with_match(block) {
                let first = first + lane * STRIPE;
                return self.find_one_by_one(&data[..first + STRIPE], first);
            }
            first += LANES * STRIPE;
        }
        self.find_one_by_one(data, first)
    }

    /// Does the work of [`find_after`](Self::find_after), without haste.
    fn find_one_by_one(&self, data: &[u8], first: usize) -> Option<usize> {
        let mut hash = self.hash(data.get(first - self.window..first)?);
        if self.is_match(hash) {
            return Some(first);
        }
        let leaving = &data[first - self.window..];
        for (i, (new, old)) in data[first..].iter().zip(leaving).enumerate() {
            hash = self.tables.slide(hash, *new, *old);
            if self.is_match(hash) {
                return Some(first + i + 1);
            }
        }
        None
    }

    /// Returns the first stripe in which an end has a match; `block` is a window, then the stripes. The end of the last
    /// stripe is not looked at: it is where the next block begins.
    ///
    /// Each byte waits for the hash before it, so that one stripe alone would leave the processor idle.
    fn first_lane_with_match(&self, block: &[u8]) -> Option<usize> {
        let stripe = |at| block[at..].first_chunk::<STRIPE>().expect("BUG: a block is cut to its length");
        let entering: [_; LANES] = std::array::from_fn(|lane| stripe(self.window + lane * STRIPE));
        let leaving: [_; LANES] = std::array::from_fn(|lane| stripe(lane * STRIPE));
        let mut hashes: [u64; LANES] = std::array::from_fn(|lane| self.hash(&block[lane * STRIPE..][..self.window]));
        // The least number that the masked bits, inverted, spelled; 0 at a match.
        let mut least = [u64::MAX; LANES];
        for i in 0..STRIPE {
            for lane in 0..LANES {
                least[lane] = least[lane].min(!hashes[lane] & self.mask);
                hashes[lane] = self.tables.slide(hashes[lane], entering[lane][i], leaving[lane][i]);
            }
        }
        least.iter().position(|least| *least == 0)
    }

    fn hash(&self, window: &[u8]) -> u64 {
        window.iter().fold(0, |hash, byte| self.tables.append(hash, *byte))
    }

    fn is_match(&self, hash: u64) -> bool {
        hash & self.mask == self.mask
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

    /// Returns the hash of a window that `new` enters and `old` leaves.
    fn slide(&self, hash: u64, new: u8, old: u8) -> u64 {
        self.append(hash, new) ^ self.pull[old as usize]
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
    use crate::chunk::testdata::{Vector, lengths, random, text};
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]
        #[test]
        fn searching_by_stripes_finds_what_searching_one_by_one_does(
            seed: u64, len in 0usize..20_000, window in 16u32..=256, bits in 6u32..16, more in 0usize..5000, is_text: bool,
        ) {
            let rabin = Rabin::new(window, 1 << bits, 1, 1 << 20);
            let data = if is_text { text(seed, len) } else { random(seed, len) };
            let first = window as usize + more;
            prop_assert_eq!(rabin.find_after(&data, first), rabin.find_one_by_one(&data, first));
        }
    }
}
