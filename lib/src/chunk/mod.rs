//! Chunkers: where a large file is cut into chunks, so that an edit changes only the chunks near it.
//!
//! Cut points are a storage format: two hosts share chunks only while they cut alike. `docs/formats/chunker-gear.md` and
//! `docs/formats/chunker-rabin.md` are the descriptions, the golden vectors in `tests/vectors/` pin them.

mod chunks;
mod gear;
mod rabin;
mod simd;
mod spec;
#[cfg(test)]
mod testdata;

pub use chunks::Chunks;
pub use spec::ChunkerSpec;

use gear::Gear;
use rabin::Rabin;

/// Cuts one stream of bytes into chunks, from the front.
pub struct Chunker {
    algorithm: Algorithm,
}

enum Algorithm {
    Gear(Gear),
    Rabin(Box<Rabin>),
    Fixed(usize),
}

impl Chunker {
    /// Returns a chunker at the start of a stream.
    ///
    /// # Panics
    ///
    /// If `spec` was made by hand and does not pass [`ChunkerSpec::check`].
    pub fn new(spec: &ChunkerSpec) -> Self {
        let algorithm = match spec.check().expect("BUG: a chunker was made of parameters that nobody checked") {
            ChunkerSpec::Gear { min, avg, max } => Algorithm::Gear(Gear::new(min, avg, max)),
            ChunkerSpec::Rabin { window, avg, min, max } => Algorithm::Rabin(Box::new(Rabin::new(window, avg, min, max))),
            ChunkerSpec::Fixed { size } => Algorithm::Fixed(size as usize),
        };
        Self { algorithm }
    }

    /// Returns a gear chunker for each scan that this processor can run, by its name: for benchmarks, as all of them cut alike.
    #[doc(hidden)]
    pub fn of_each_scan(min: u32, avg: u32, max: u32) -> Vec<(&'static str, Self)> {
        let with_scan = |(name, scan)| (name, Self { algorithm: Algorithm::Gear(Gear::with_scan(min, avg, max, scan)) });
        simd::all().into_iter().map(with_scan).collect()
    }

    /// Returns the length of the next chunk of the stream, which starts where `data` starts.
    ///
    /// The caller hands in at least [`ChunkerSpec::max_len`] bytes, or all that is left of the stream: with fewer, the cut is
    /// not the one that others make. The length is 0 only where `data` is empty.
    pub fn cut(&mut self, data: &[u8]) -> usize {
        match &mut self.algorithm {
            Algorithm::Gear(gear) => gear.cut(data),
            Algorithm::Rabin(rabin) => rabin.cut(data),
            Algorithm::Fixed(size) => data.len().min(*size),
        }
    }

    /// Goes to the start of another stream.
    pub fn reset(&mut self) {
        if let Algorithm::Rabin(rabin) = &mut self.algorithm {
            rabin.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_chunks_are_all_alike_but_for_the_last() {
        let mut chunker = Chunker::new(&"fixed:size=1000".parse().unwrap());
        let data = vec![7; 2500];
        assert_eq!([0, 1000, 2000, 2500].map(|at| chunker.cut(&data[at..])), [1000, 1000, 500, 0]);
    }

    #[test]
    fn nothing_is_cut_from_no_data() {
        for spec in ["gear", "rabin", "fixed"] {
            assert_eq!(Chunker::new(&spec.parse().unwrap()).cut(b""), 0, "{spec}");
        }
    }
}
