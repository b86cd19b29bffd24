//! From a chunk index back to the file: every chunk verified before a byte of it goes anywhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel as channel;
use rustix::fs::{FallocateFlags, SeekFrom};

use super::index::{ChunkIndex, Entry, MAX_CHUNK_LEN, MAX_DEPTH, MAX_LIST_LEN, decode_list};
use super::source::ChunkSource;
use crate::durable::Writeback;
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::threads;

/// Files of this many bytes or more are put together by several threads.
const PARALLEL_FROM: u64 = 4 << 20;

/// How many zeros are written at once where a hole is streamed.
const ZEROS: usize = 64 * 1024;

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The chunk that it is; `None` for a hole.
    pub chunk: Option<ChunkId>,
}

/// Hands all extents of a file to `take`, in order, reading lists from `source` as they come.
pub fn for_each_extent(source: &ChunkSource, index: &ChunkIndex, take: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    walk(&from(source), &index.entries, &mut 0, 0, &mut |_| Ok(()), take)
}

/// Reads a list of chunks.
type ReadList<'a> = dyn Fn(&ChunkId) -> Result<Vec<u8>> + 'a;

/// Reads lists from `source`, to which another host may have to send them first.
fn from(source: &ChunkSource) -> impl Fn(&ChunkId) -> Result<Vec<u8>> + '_ {
    |id| source.read(id, MAX_LIST_LEN)
}

/// Hands every id that the file needs to `take`: lists and chunks, in no promised order.
pub fn for_each_id(source: &ChunkSource, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    let taken = std::cell::RefCell::new(take);
    walk(&from(source), &index.entries, &mut 0, 0, &mut |id| (taken.borrow_mut())(id), &mut |extent| match extent.chunk {
        Some(id) => (taken.borrow_mut())(id),
        None => Ok(()),
    })
}

/// Hands every chunk of the file's content to `take`, in the order of the file, lists left out.
pub fn for_each_chunk(source: &ChunkSource, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    walk(&from(source), &index.entries, &mut 0, 0, &mut |_| Ok(()), &mut |extent| extent.chunk.map_or(Ok(()), &mut *take))
}

/// Hands every chunk that lists chunks of the file to `take`.
pub fn for_each_list(source: &ChunkSource, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    walk(&from(source), &index.entries, &mut 0, 0, take, &mut |_| Ok(()))
}

fn walk(
    read_list: &ReadList<'_>,
    entries: &[Entry],
    offset: &mut u64,
    depth: usize,
    list: &mut dyn FnMut(ChunkId) -> Result<()>,
    take: &mut dyn FnMut(Extent) -> Result<()>,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::refused(Reason::Index, "chunk lists are nested too deep"));
    }
    for entry in entries {
        let chunk = match *entry {
            Entry::Chunk { id, .. } => Some(id),
            Entry::Hole { .. } => None,
            Entry::List { id, len, lines } => {
                list(id)?;
                let text = read_list(&id)?;
                let inner = decode_list(&text, len, lines)
                    .map_err(|error| error.or_refused(Reason::Index))
                    .context(|| format!("cannot read chunk list '{id}'"))?;
                walk(read_list, &inner, offset, depth + 1, list, take)?;
                continue;
            }
        };
        take(Extent { offset: *offset, len: entry.len(), chunk })?;
        *offset += entry.len();
    }
    Ok(())
}

/// So many bytes that come from other hosts are waited for at once where a file is streamed, and so many pieces of the file.
const WINDOW: u64 = 32 << 20;
const MOST_PIECES: usize = 4096;

/// Writes the whole file to `out`, holes as zeros; memory does not grow with the file.
pub fn stream(source: &ChunkSource, index: &ChunkIndex, out: &mut dyn Write) -> Result<()> {
    let mut ahead = Ahead { source, out, pieces: VecDeque::new(), n_far: 0, buffer: Vec::new() };
    for_each_extent(source, index, &mut |extent| ahead.push(extent))?;
    ahead.drain(0)
}

/// A file on its way out: what has to come from other hosts is asked for early, and goes out in the order of the file.
struct Ahead<'a> {
    source: &'a ChunkSource,
    out: &'a mut dyn Write,
    pieces: VecDeque<(Extent, Option<Arc<Slot>>)>,
    /// Bytes that are asked for, or have come, and are not yet out.
    n_far: u64,
    buffer: Vec<u8>,
}

/// Where a chunk is put that comes from another host.
#[derive(Default)]
struct Slot {
    came: Mutex<Option<Result<Vec<u8>>>>,
    wake: Condvar,
}

impl Slot {
    fn put(&self, plain: Result<&[u8]>) {
        *self.came.lock().unwrap_or_else(PoisonError::into_inner) = Some(plain.map(<[u8]>::to_vec));
        self.wake.notify_all();
    }

    fn take(&self) -> Result<Vec<u8>> {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match came.take() {
                Some(came) => return came,
                None => came = self.wake.wait(came).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Ahead<'_> {
    fn push(&mut self, extent: Extent) -> Result<()> {
        let far = match extent.chunk {
            Some(id) if self.source.is_far(&id)? => Some(id),
            _ => None,
        };
        let slot = far.map(|id| {
            let slot = Arc::new(Slot::default());
            let fills = Arc::clone(&slot);
            self.source.want(&id, not_present(&id), move |plain| fills.put(plain));
            self.n_far += extent.len;
            slot
        });
        self.pieces.push_back((extent, slot));
        self.drain(WINDOW)
    }

    /// Writes out the first pieces until at most `left` bytes are waited for.
    fn drain(&mut self, left: u64) -> Result<()> {
        let is_next_here = |pieces: &VecDeque<(Extent, Option<_>)>| pieces.front().is_some_and(|(_, slot)| slot.is_none());
        while left == 0 || self.n_far > left || self.pieces.len() > MOST_PIECES || is_next_here(&self.pieces) {
            let Some((extent, slot)) = self.pieces.pop_front() else { return Ok(()) };
            match (slot, extent.chunk) {
                (Some(slot), Some(id)) => {
                    self.n_far -= extent.len;
                    self.buffer = slot.take()?;
                    check_len(&id, extent.len, self.buffer.len())?;
                    self.out.write_all(&self.buffer)?;
                }
                (_, Some(id)) => {
                    read_chunk(self.source, id, extent.len, &mut self.buffer)?;
                    self.out.write_all(&self.buffer)?;
                }
                (_, None) => self.zeros(extent.len)?,
            }
        }
        Ok(())
    }

    fn zeros(&mut self, mut left: u64) -> Result<()> {
        while left > 0 {
            let n = left.min(ZEROS as u64);
            self.out.write_all(&[0; ZEROS][..n as usize])?;
            left -= n;
        }
        Ok(())
    }
}

fn not_present(id: &ChunkId) -> Error {
    Error::new(Kind::NotFound, format!("chunk '{id}' is not present"))
}

/// Writes the content into the empty file `out`, holes left as holes.
///
/// `old` may be an earlier version of the file: what stands there at the same place is taken from it, after its hash was checked,
/// so that chunks which are not in the store are not missed. Where the filesystem can, the two files share the blocks of that, and `out` must be open to
/// read, too. What is not on this host comes from others, and is written as it comes. The caller syncs.
pub fn write_to_file(
    source: &ChunkSource,
    index: &ChunkIndex,
    out: &File,
    old: Option<&File>,
    n_threads: usize,
    progress: &Progress,
) -> Result<()> {
    let writeback = Arc::new(Writeback::default());
    let from_afar = FromAfar::new(source, out, &writeback, progress);
    // All of it at once: blocks that are overwritten later are parted then.
    let is_shared = old.is_some_and(|old| rustix::fs::ioctl_ficlone(out, old).is_ok());
    let old = if is_shared { Some(out) } else { old };
    let write = |extent: Extent, buffer: &mut Vec<u8>| -> Result<()> {
        let Some(id) = extent.chunk else { return if is_shared { make_hole(out, extent) } else { Ok(()) } };
        let is_right = old.is_some_and(|old| read_old(old, extent, id, buffer));
        if is_right && is_shared && !has_hole(out, extent)? {
            progress.add(0, extent.len);
            return Ok(());
        }
        if !is_right {
            match source.read_here(&id, buffer, extent.len.min(MAX_CHUNK_LEN) as usize) {
                Err(error) if source.may_come(&error) => return from_afar.want(extent, id, error),
                other => other?,
            }
            check_len(&id, extent.len, buffer.len())?;
        }
        out.write_all_at(buffer, extent.offset)?;
        writeback.wrote(out, extent.len)?;
        progress.add(0, extent.len);
        Ok(())
    };
    each(&from(source), index, n_threads, &write)?;
    from_afar.wait(0)?;
    Ok(out.set_len(index.size)?)
}

/// Says whether `file`, which has the size of the content, is just that, with these `holes` (offset and length, ascending).
///
/// Fails if a list of its chunks is not on this host: no other one is asked.
pub fn is_in_file(source: &ChunkSource, index: &ChunkIndex, file: &File, holes: &[(u64, u64)], n_threads: usize) -> Result<bool> {
    let (is_other, n_holes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let read_here = |id: &ChunkId| {
        let mut text = Vec::new();
        source.read_here(id, &mut text, MAX_LIST_LEN).map(|()| text)
    };
    each(&read_here, index, n_threads, &|extent, buffer| {
        let is_right = match extent.chunk {
            Some(id) => is_other.load(Ordering::Relaxed) || read_old(file, extent, id, buffer),
            None => {
                n_holes.fetch_add(1, Ordering::Relaxed);
                holes.binary_search(&(extent.offset, extent.len)).is_ok()
            }
        };
        is_other.fetch_or(!is_right, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(!is_other.into_inner() && n_holes.into_inner() == holes.len())
}

fn make_hole(file: &File, extent: Extent) -> Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, how, extent.offset, extent.len).context(|| "cannot make a hole")
}

/// Says whether some of the extent takes no blocks; what is stored as data is to be data.
fn has_hole(file: &File, extent: Extent) -> Result<bool> {
    let hole = rustix::fs::seek(file, SeekFrom::Hole(extent.offset)).context(|| "cannot look for holes")?;
    Ok(hole < extent.offset + extent.len)
}

/// So many chunks of one file are waited for at once; they take no memory until they come.
const MOST_AWAITED: usize = 4096;

/// Chunks of a file that other hosts were asked for: each is written where it belongs when it comes.
struct FromAfar<'a> {
    source: &'a ChunkSource,
    out: &'a File,
    writeback: &'a Arc<Writeback>,
    progress: &'a Progress,
    awaited: Arc<Awaited>,
}

#[derive(Default)]
struct Awaited {
    state: Mutex<AwaitedState>,
    wake: Condvar,
}

#[derive(Default)]
struct AwaitedState {
    /// The file once more, for the threads that write it.
    file: Option<Arc<File>>,
    n_open: usize,
    /// Bytes that were written and not yet counted.
    n_done: u64,
    failure: Option<Error>,
}

impl Awaited {
    fn state(&self) -> MutexGuard<'_, AwaitedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, n_bytes: u64, result: Result<()>) {
        let mut state = self.state();
        state.n_open -= 1;
        match result {
            Ok(()) => state.n_done += n_bytes,
            Err(error) => drop(state.failure.get_or_insert(error)),
        }
        drop(state);
        self.wake.notify_all();
    }
}

impl<'a> FromAfar<'a> {
    fn new(source: &'a ChunkSource, out: &'a File, writeback: &'a Arc<Writeback>, progress: &'a Progress) -> Self {
        Self { source, out, writeback, progress, awaited: Arc::default() }
    }

    /// Asks for the chunk of `extent`, which is not here because of `why`.
    fn want(&self, extent: Extent, id: ChunkId, why: Error) -> Result<()> {
        self.wait(MOST_AWAITED - 1)?;
        let mut state = self.awaited.state();
        let file = match &state.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(state.file.insert(Arc::new(self.out.try_clone()?))),
        };
        state.n_open += 1;
        drop(state);
        let (awaited, writeback) = (Arc::clone(&self.awaited), Arc::clone(self.writeback));
        self.source.want(&id, why, move |plain| {
            let written = plain.and_then(|plain| {
                check_len(&id, extent.len, plain.len())?;
                file.write_all_at(plain, extent.offset)?;
                Ok(writeback.wrote(&file, extent.len)?)
            });
            awaited.done(extent.len, written);
        });
        Ok(())
    }

    /// Waits until at most `n_left` chunks are to come; fails if one does not.
    fn wait(&self, n_left: usize) -> Result<()> {
        let mut state = self.awaited.state();
        loop {
            self.progress.add(0, std::mem::take(&mut state.n_done));
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            if state.n_open <= n_left {
                return Ok(());
            }
            state = self.awaited.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Hands all extents of a file to `take`, with a buffer of the thread that does; those of a larger file in any order, by several threads.
fn each(
    read_list: &ReadList<'_>,
    index: &ChunkIndex,
    n_threads: usize,
    take: &(impl Fn(Extent, &mut Vec<u8>) -> Result<()> + Sync),
) -> Result<()> {
    let n_threads = if index.size < PARALLEL_FROM || n_threads < 2 { 0 } else { n_threads };
    let (jobs, queue) = channel::bounded::<Extent>(16 * n_threads);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let walked = std::thread::scope(|scope| {
        let start = |_| {
            let (queue, failure) = (queue.clone(), &failure);
            let write = move || {
                let mut buffer = Vec::new();
                for extent in queue {
                    if failure.lock().expect("BUG: a thread panicked while it held the failure").is_some() {
                        break;
                    }
                    if let Err(error) = take(extent, &mut buffer) {
                        failure.lock().expect("BUG: a thread panicked while it held the failure").get_or_insert(error);
                        break;
                    }
                }
            };
            threads::start(scope, write).ok()
        };
        // Or none can be started.
        let is_alone = (0..n_threads).map_while(start).count() == 0;
        drop(queue);
        let mut buffer = Vec::new();
        let walked = walk(read_list, &index.entries, &mut 0, 0, &mut |_| Ok(()), &mut |extent| {
            if is_alone {
                return take(extent, &mut buffer);
            }
            jobs.send(extent).map_err(|_| Error::new(Kind::Bug, "BUG: all writers stopped without saying why"))
        });
        drop(jobs); // the writers come to their end
        walked
    });
    match failure.into_inner().expect("BUG: a thread panicked while it held the failure") {
        Some(error) => Err(error),
        None => walked,
    }
}

fn read_chunk(source: &ChunkSource, id: ChunkId, len: u64, buffer: &mut Vec<u8>) -> Result<()> {
    source.read_into(&id, buffer, len.min(MAX_CHUNK_LEN) as usize)?;
    check_len(&id, len, buffer.len())
}

fn check_len(id: &ChunkId, expected: u64, found: usize) -> Result<()> {
    if found as u64 == expected {
        return Ok(());
    }
    Err(Error::refused(Reason::Index, format!("chunk '{id}' has {found} bytes where its index says {expected}")))
}

fn read_old(old: &File, extent: Extent, id: ChunkId, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(extent.len as usize, 0);
    old.read_exact_at(buffer, extent.offset).is_ok() && ChunkId::of(buffer) == id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkerSpec;
    use crate::file::write::{ChunkSink, cut_file};
    use crate::store::{Local, Store, WriteOptions};
    use crate::threads::tests::HAS_NONE;

    #[test]
    fn a_long_file_is_cut_and_written_by_many_threads_and_by_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut content = vec![0; PARALLEL_FROM as usize + 1];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        let file =
            |name: &str| File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap();
        let mut original = file("original");
        original.write_all(&content).unwrap();
        let spec: ChunkerSpec = "fixed:size=65536".parse().unwrap();
        let (size, progress) = (content.len() as u64, Progress::default());
        let mut indexes = Vec::new();
        for has_none in [false, true] {
            let store = Store::create(&dir.path().join(format!("store-{has_none}"))).unwrap();
            let writer = store.writer(WriteOptions::default()).unwrap();
            HAS_NONE.set(has_none);
            let has_failed = AtomicBool::new(false);
            let sink = ChunkSink::Store { writer: &writer, has_failed: &has_failed };
            let index = cut_file(&original, size, &[], &spec, sink, 3, &progress).unwrap();
            HAS_NONE.set(false);
            writer.finish().unwrap();
            let source = ChunkSource::of(Local::of(store));
            let restored = file("restored");
            HAS_NONE.set(has_none);
            write_to_file(&source, &index, &restored, None, 3, &progress).unwrap();
            assert!(is_in_file(&source, &index, &restored, &[], 3).unwrap());
            HAS_NONE.set(false);
            assert!(std::fs::read(dir.path().join("restored")).unwrap() == content, "{has_none}");
            indexes.push(index.encode());
        }
        assert_eq!(indexes[0], indexes[1]);
    }
}
