//! The chunks of a stream that is read piece by piece.

use std::io::{ErrorKind, Read};

use super::{Chunker, ChunkerSpec};
use crate::error::Result;

/// The chunks of what a reader yields, one after the other, in one buffer of a few times the longest chunk.
pub struct Chunks<R> {
    reader: R,
    chunker: Chunker,
    max_len: usize,
    buffer: Vec<u8>,
    /// What of `buffer` was read and not handed out yet.
    pending: std::ops::Range<usize>,
    is_at_end: bool,
}

impl<R: Read> Chunks<R> {
    /// Returns the chunks of what `reader` yields from here to its end; nothing is read yet.
    pub fn new(reader: R, spec: &ChunkerSpec) -> Self {
        let max_len = spec.max_len();
        // Room for several chunks, so that what is left over is rarely moved.
        let buffer = vec![0; (4 * max_len).max(1 << 20)];
        Self { reader, chunker: Chunker::new(spec), max_len, buffer, pending: 0..0, is_at_end: false }
    }

    /// Returns the next chunk, or None at the end of the stream.
    ///
    /// After an error the stream must not be read further: bytes may be missing.
    // An `Iterator` could not lend its buffer.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.pending.len() < self.max_len && !self.is_at_end {
            self.fill()?;
        }
        let start = self.pending.start;
        let length = self.chunker.cut(&self.buffer[self.pending.clone()]);
        self.pending.start += length;
        Ok((length > 0).then(|| &self.buffer[start..start + length]))
    }

    /// Reads until the buffer is full or the stream is at its end.
    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.pending.clone(), 0);
        self.pending = 0..self.pending.len();
        while self.pending.end < self.buffer.len() && !self.is_at_end {
            match self.reader.read(&mut self.buffer[self.pending.end..]) {
                Ok(0) => self.is_at_end = true,
                Ok(n) => self.pending.end += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testdata::random;
    use proptest::prelude::*;

    /// Yields at most `step` bytes at a time, interrupted before each.
    struct Dribble<'a> {
        data: &'a [u8],
        step: usize,
        is_interrupted: bool,
    }

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.is_interrupted = !self.is_interrupted;
            if self.is_interrupted {
                return Err(ErrorKind::Interrupted.into());
            }
            let n = self.step.min(out.len());
            self.data.read(&mut out[..n])
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]
        #[test]
        fn a_reader_is_cut_like_the_whole_data(
            seed: u64,
            len in 0usize..5_000_000,
            step in 1000usize..2_000_000,
            spec in prop::sample::select(vec!["gear", "rabin", "fixed", "gear:avg=256", "rabin:min=20,avg=300,window=64"]),
        ) {
            let spec = spec.parse().unwrap();
            let data = random(seed, len);
            let mut chunker = Chunker::new(&spec);
            let mut chunks = Chunks::new(Dribble { data: &data, step, is_interrupted: false }, &spec);
            let mut rest = &data[..];
            while let Some(chunk) = chunks.next().unwrap() {
                let length = chunker.cut(rest);
                prop_assert!(chunk == &rest[..length]);
                rest = &rest[length..];
            }
            prop_assert!(rest.is_empty());
            prop_assert!(chunks.next().unwrap().is_none());
        }
    }

    #[test]
    fn a_read_error_is_passed_on() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::from_raw_os_error(5))
            }
        }
        let error = Chunks::new(Broken, &ChunkerSpec::default()).next().unwrap_err();
        assert_eq!(error.to_string(), "input/output error");
    }
}
