//! From a chunk index back to the file: every chunk verified before a byte of it goes anywhere.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use crossbeam_channel as channel;

use super::index::{ChunkIndex, Entry, MAX_CHUNK_LEN, MAX_DEPTH, MAX_LIST_LEN, decode_list};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::store::Store;

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

/// Hands all extents of a file to `take`, in order, reading lists from `store` as they come.
pub fn for_each_extent(store: &Store, index: &ChunkIndex, take: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    walk(store, &index.entries, &mut 0, 0, &mut |_| Ok(()), take)
}

/// Hands every id that the file needs to `take`: lists and chunks, in no promised order.
pub fn for_each_id(store: &Store, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    let taken = std::cell::RefCell::new(take);
    walk(store, &index.entries, &mut 0, 0, &mut |id| (taken.borrow_mut())(id), &mut |extent| match extent.chunk {
        Some(id) => (taken.borrow_mut())(id),
        None => Ok(()),
    })
}

/// Hands every chunk of the file's content to `take`, in the order of the file, lists left out.
pub fn for_each_chunk(store: &Store, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    walk(store, &index.entries, &mut 0, 0, &mut |_| Ok(()), &mut |extent| extent.chunk.map_or(Ok(()), &mut *take))
}

/// Hands every chunk that lists chunks of the file to `take`.
pub fn for_each_list(store: &Store, index: &ChunkIndex, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
    walk(store, &index.entries, &mut 0, 0, take, &mut |_| Ok(()))
}

fn walk(
    store: &Store,
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
                let text = store.read(&id, MAX_LIST_LEN)?;
                let inner = decode_list(&text, len, lines)
                    .map_err(|error| error.or_refused(Reason::Index))
                    .context(|| format!("cannot read chunk list '{id}'"))?;
                walk(store, &inner, offset, depth + 1, list, take)?;
                continue;
            }
        };
        take(Extent { offset: *offset, len: entry.len(), chunk })?;
        *offset += entry.len();
    }
    Ok(())
}

/// Writes the whole file to `out`, holes as zeros; memory does not grow with the file.
pub fn stream(store: &Store, index: &ChunkIndex, out: &mut dyn Write) -> Result<()> {
    let mut buffer = Vec::new();
    for_each_extent(store, index, &mut |extent| {
        match extent.chunk {
            Some(id) => {
                read_chunk(store, id, extent.len, &mut buffer)?;
                out.write_all(&buffer)?;
            }
            None => {
                let mut left = extent.len;
                while left > 0 {
                    let n = left.min(ZEROS as u64);
                    out.write_all(&[0; ZEROS][..n as usize])?;
                    left -= n;
                }
            }
        }
        Ok(())
    })
}

/// Writes the content into the empty file `out`, holes left as holes.
///
/// `old` may be an earlier version of the file: what stands there at the same place is taken from it, after its hash was checked,
/// so that chunks which are not in the store are not missed. The caller syncs.
pub fn write_to_file(
    store: &Store,
    index: &ChunkIndex,
    out: &File,
    old: Option<&File>,
    n_threads: usize,
    progress: &Progress,
) -> Result<()> {
    let write = |extent: Extent, buffer: &mut Vec<u8>| -> Result<()> {
        if let Some(id) = extent.chunk {
            if !old.is_some_and(|old| read_old(old, extent, id, buffer)) {
                read_chunk(store, id, extent.len, buffer)?;
            }
            out.write_all_at(buffer, extent.offset)?;
            progress.add(0, extent.len);
        }
        Ok(())
    };
    if index.size < PARALLEL_FROM || n_threads < 2 {
        let mut buffer = Vec::new();
        for_each_extent(store, index, &mut |extent| write(extent, &mut buffer))?;
    } else {
        in_parallel(store, index, n_threads, &write)?;
    }
    Ok(out.set_len(index.size)?)
}

fn in_parallel(
    store: &Store,
    index: &ChunkIndex,
    n_threads: usize,
    write: &(impl Fn(Extent, &mut Vec<u8>) -> Result<()> + Sync),
) -> Result<()> {
    let (jobs, queue) = channel::bounded::<Extent>(16 * n_threads);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let walked = std::thread::scope(|scope| {
        for _ in 0..n_threads {
            let (queue, failure) = (queue.clone(), &failure);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                for extent in queue {
                    if let Err(error) = write(extent, &mut buffer) {
                        failure.lock().expect("BUG: a thread panicked while it held the failure").get_or_insert(error);
                        break;
                    }
                }
            });
        }
        drop(queue);
        let walked = for_each_extent(store, index, &mut |extent| {
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

fn read_chunk(store: &Store, id: ChunkId, len: u64, buffer: &mut Vec<u8>) -> Result<()> {
    store.read_into(&id, buffer, len.min(MAX_CHUNK_LEN) as usize)?;
    if buffer.len() as u64 != len {
        let what = format!("chunk '{id}' has {} bytes where its index says {len}", buffer.len());
        return Err(Error::refused(Reason::Index, what));
    }
    Ok(())
}

fn read_old(old: &File, extent: Extent, id: ChunkId, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(extent.len as usize, 0);
    old.read_exact_at(buffer, extent.offset).is_ok() && ChunkId::of(buffer) == id
}
