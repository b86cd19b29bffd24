//! From a file to its chunk index: read once, cut, hash, hand new chunks to the store.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel as channel;

use super::index::{ChunkIndex, Entry, EntryBuilder};
use crate::chunk::{Chunker, ChunkerSpec};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, FileHash};
use crate::progress::Progress;
use crate::store::Writer;
use crate::threads;

/// Files of this many bytes or more are compressed and hashed by several threads.
const PARALLEL_FROM: u64 = 4 << 20;

/// How many bytes are read at once, at least.
const BLOCK: usize = 1 << 20;

/// Where chunks go.
#[derive(Clone, Copy)]
pub enum ChunkSink<'a> {
    /// Into the chunk store.
    Store {
        /// Takes the chunks.
        writer: &'a Writer,
        /// Raised when the store fails, so that the caller can tell its errors from those of the source.
        has_failed: &'a AtomicBool,
    },
    /// Into the chunk store, if they are among those that are wanted.
    Wanted {
        /// The chunks to store.
        wanted: &'a HashSet<ChunkId>,
        /// Takes them.
        writer: &'a Writer,
        /// Raised when the store fails.
        has_failed: &'a AtomicBool,
    },
    /// They stay in the file, and it is noted where; only lists go into the chunk store.
    Stay {
        /// Takes the lists.
        writer: &'a Writer,
        /// Notes a chunk, its offset and its length.
        note: &'a Note<'a>,
        /// Raised when the store fails.
        has_failed: &'a AtomicBool,
    },
    /// To somebody who passes them on; only lists go into the chunk store.
    Passed {
        /// Takes the lists.
        writer: &'a Writer,
        /// Takes a chunk, from several threads at once, and may take its time.
        take: &'a Take<'a>,
        /// Raised when either fails.
        has_failed: &'a AtomicBool,
    },
    /// Nowhere: only the index is wanted, to compare.
    Discard,
}

/// Takes a chunk and its plain bytes.
pub type Take<'a> = dyn Fn(ChunkId, &[u8]) -> Result<()> + Sync + 'a;

/// Notes that a chunk lies at an offset, and its length; called in the order of the file.
pub type Note<'a> = dyn Fn(ChunkId, u64, u64) -> Result<()> + Sync + 'a;

impl ChunkSink<'_> {
    fn put(&self, id: ChunkId, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Wanted { wanted, .. } if !wanted.contains(&id) => Ok(()),
            Self::Store { writer, has_failed } | Self::Wanted { writer, has_failed, .. } => {
                writer.put(id, bytes).map(drop).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))
            }
            Self::Passed { take, has_failed, .. } => take(id, bytes).inspect_err(|_| has_failed.store(true, Ordering::Relaxed)),
            Self::Stay { .. } | Self::Discard => Ok(()),
        }
    }

    fn put_list(&self, id: ChunkId, list: &[u8]) -> Result<()> {
        match self {
            Self::Stay { writer, has_failed, .. } | Self::Passed { writer, has_failed, .. } => {
                writer.put(id, list).map(drop).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))
            }
            _ => self.put(id, list),
        }
    }

    /// Notes what lies at `offset`; called in the order of the file.
    fn note(&self, entry: &Entry, offset: u64) -> Result<()> {
        match (self, *entry) {
            (Self::Stay { note, has_failed, .. }, Entry::Chunk { id, len }) => {
                note(id, offset, len).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))
            }
            _ => Ok(()),
        }
    }
}

/// Cuts `file`, which has `size` bytes and the given `holes` (offset and length, ascending), into chunks.
///
/// Uses up to `n_threads` threads and a few megabytes, whatever the size, and for each thread one of the longest chunks. A file that turns out shorter is an error of kind
/// `Conflict`; one that grew is cut at `size`: the caller compares the times before and after.
pub fn cut_file(
    file: &File,
    size: u64,
    holes: &[(u64, u64)],
    spec: &ChunkerSpec,
    sink: ChunkSink<'_>,
    n_threads: usize,
    progress: &Progress,
) -> Result<ChunkIndex> {
    cut(Source::File(file), size, holes, spec, sink, n_threads, progress)
}

/// Cuts what `input` gives until it ends, as [`cut_file`] cuts a file.
pub fn cut_stream(
    input: &mut dyn Read,
    spec: &ChunkerSpec,
    sink: ChunkSink<'_>,
    n_threads: usize,
    progress: &Progress,
) -> Result<ChunkIndex> {
    cut(Source::Stream(input), u64::MAX, &[], spec, sink, n_threads, progress)
}

fn cut(
    source: Source<'_>,
    size: u64,
    holes: &[(u64, u64)],
    spec: &ChunkerSpec,
    sink: ChunkSink<'_>,
    n_threads: usize,
    progress: &Progress,
) -> Result<ChunkIndex> {
    let mut hasher = blake3::Hasher::new();
    let mut builder = EntryBuilder::new(|id, list: &[u8]| sink.put_list(id, list));
    let mut offset = 0;
    let mut push = |entry: Entry| {
        sink.note(&entry, offset)?;
        offset += entry.len();
        builder.push(entry)
    };
    let mut source = Pieces { source, spec, hasher: &mut hasher, progress };
    let n_threads = if size < PARALLEL_FROM || n_threads < 2 { 0 } else { n_threads };
    store_all(&mut source, size, holes, sink, n_threads, &mut push)?;
    let hash = FileHash::from_bytes(*hasher.finalize().as_bytes());
    Ok(ChunkIndex { size: offset, hash, has_holes: !holes.is_empty(), chunker: *spec, entries: builder.finish()? })
}

fn store_chunk(sink: ChunkSink<'_>, bytes: &[u8]) -> Result<Entry> {
    let id = ChunkId::of(bytes);
    sink.put(id, bytes)?;
    Ok(Entry::Chunk { id, len: bytes.len() as u64 })
}

/// So many bytes that are cut wait for a thread, or the last chunk that was cut.
const WAITING: usize = 8 << 20;

/// Cuts in this thread, hashes and stores in `n_threads` others, or here if there are none, and pushes the entries in the order of the file.
fn store_all(
    source: &mut Pieces<'_, '_>,
    size: u64,
    holes: &[(u64, u64)],
    sink: ChunkSink<'_>,
    n_threads: usize,
    mut push: impl FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let (jobs, queue) = channel::bounded::<(u64, Vec<u8>)>((WAITING / source.spec.max_len()).min(4 * n_threads).max(1));
    let (done, results) = channel::unbounded::<(u64, Result<Entry>)>();
    std::thread::scope(|scope| {
        let start = |_| {
            let (queue, done) = (queue.clone(), done.clone());
            let store = move || {
                for (number, bytes) in queue {
                    if done.send((number, store_chunk(sink, &bytes))).is_err() {
                        break;
                    }
                }
            };
            threads::start(scope, store).ok()
        };
        // Or none can be started.
        let is_alone = (0..n_threads).map_while(start).count() == 0;
        drop((queue, done));
        let mut ordered = InOrder::default();
        let mut n_pieces = 0;
        source.each(size, holes, |piece| {
            match piece {
                Piece::Hole(len) => ordered.put(n_pieces, Ok(Entry::Hole { len })),
                Piece::Chunk(bytes) if is_alone => ordered.put(n_pieces, store_chunk(sink, bytes)),
                Piece::Chunk(bytes) => {
                    jobs.send((n_pieces, bytes.to_vec())).map_err(|_| Error::new(Kind::Bug, "BUG: no worker is left"))?
                }
            }
            n_pieces += 1;
            results.try_iter().for_each(|(number, entry)| ordered.put(number, entry));
            ordered.drain(&mut push)
        })?;
        drop(jobs);
        results.iter().for_each(|(number, entry)| ordered.put(number, entry));
        ordered.drain(&mut push)
    })
}

/// Results that come in any order and leave in theirs.
#[derive(Default)]
struct InOrder {
    next: u64,
    waiting: BTreeMap<u64, Result<Entry>>,
}

impl InOrder {
    fn put(&mut self, number: u64, entry: Result<Entry>) {
        self.waiting.insert(number, entry);
    }

    fn drain(&mut self, push: &mut impl FnMut(Entry) -> Result<()>) -> Result<()> {
        while let Some(entry) = self.waiting.remove(&self.next) {
            push(entry?)?;
            self.next += 1;
        }
        Ok(())
    }
}

/// What a file consists of, before anything is hashed.
enum Piece<'a> {
    Chunk(&'a [u8]),
    Hole(u64),
}

/// What is cut.
enum Source<'a> {
    /// As many bytes as were asked for are in it.
    File(&'a File),
    /// It ends when it ends.
    Stream(&'a mut dyn Read),
}

impl Source<'_> {
    /// Fills `buffer` with what is at `at`, and returns how much there was.
    fn fill(&mut self, buffer: &mut [u8], at: u64) -> Result<usize> {
        let input = match self {
            Self::File(file) => return read_exact(file, buffer, at).map(|()| buffer.len()),
            Self::Stream(input) => input,
        };
        let mut filled = 0;
        while filled < buffer.len() {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }
}

/// Reads a file from front to back and cuts it.
struct Pieces<'a, 's> {
    source: Source<'s>,
    spec: &'a ChunkerSpec,
    hasher: &'a mut blake3::Hasher,
    progress: &'a Progress,
}

impl Pieces<'_, '_> {
    /// Hands all pieces to `take`, in order; cutting starts anew after each hole.
    fn each(&mut self, size: u64, holes: &[(u64, u64)], mut take: impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        let capacity = BLOCK.max(2 * self.spec.max_len());
        let mut buffer = vec![0; capacity.min(usize::try_from(size).unwrap_or(capacity).max(1))];
        let mut at = 0;
        for &(hole, len) in holes {
            self.data(&mut buffer, at, hole, &mut take)?;
            take(Piece::Hole(len))?;
            at = hole + len;
        }
        self.data(&mut buffer, at, size, &mut take)
    }

    /// Cuts the bytes from `start` to `end`, which have no hole.
    fn data(
        &mut self,
        buffer: &mut [u8],
        start: u64,
        mut end: u64,
        take: &mut impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut chunker = Chunker::new(self.spec);
        let mut at = start;
        let mut filled = 0;
        while at < end || filled > 0 {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len() - filled);
            let fresh = &mut buffer[filled..filled + want];
            let n = self.source.fill(fresh, at)?;
            self.hasher.update(&fresh[..n]);
            self.progress.add(0, n as u64);
            at += n as u64;
            filled += n;
            if n < want {
                end = at;
            }
            let mut used = 0;
            while used < filled && (at == end || filled - used >= self.spec.max_len()) {
                let len = chunker.cut(&buffer[used..filled]);
                take(Piece::Chunk(&buffer[used..used + len]))?;
                used += len;
            }
            buffer.copy_within(used..filled, 0);
            filled -= used;
        }
        Ok(())
    }
}

fn read_exact(file: &File, buffer: &mut [u8], at: u64) -> Result<()> {
    file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::new(Kind::Conflict, "changed while it was read"),
        _ => error.into(),
    })
}
