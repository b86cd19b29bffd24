//! Storing chunks: compress in the caller's thread, append under a lock, seal in a thread of its own.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::index::{self, FLUSH_ENTRIES};
use super::lease::Lease;
use super::pack::{self, Codec, PackWriter, Record, RecordHeader, TocEntry};
use super::{Location, MAX_CHUNK, Store};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};

/// How chunks are stored.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The zstd level; 1 is the default, higher ones are several times slower for some percent.
    pub level: i32,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { level: 1 }
    }
}

/// What became of a chunk that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The store had it, or this writer had put it before.
    Known,
    /// It was added.
    New {
        /// How many bytes it takes, compressed.
        stored_len: u32,
    },
}

/// What a writer stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Chunks that were put and known.
    pub known_chunks: u64,
    /// Chunks that were added.
    pub new_chunks: u64,
    /// Plain bytes of the chunks that were added.
    pub plain_bytes: u64,
    /// Bytes that the chunks that were added take, compressed.
    pub stored_bytes: u64,
    /// Packs that were written.
    pub packs: u64,
}

/// Stores chunks; several threads may put at once.
///
/// What was put is durable, and found by lookups, when [`Writer::finish`] returned. A writer that is dropped before leaves
/// whole packs, which are valid and indexed, and no temporary file.
pub struct Writer {
    shared: Arc<Shared>,
    level: i32,
    sealing: Option<SyncSender<PackWriter>>,
    sealer: Option<JoinHandle<Result<()>>>,
    lease: Option<Lease>,
}

struct Shared {
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pack: Option<PackWriter>,
    /// Chunks of this writer that the store's index does not have yet.
    pending: HashSet<ChunkId>,
    /// Packs of the index that were seen on the disk.
    seen_packs: HashSet<PackId>,
    stats: WriteStats,
    failure: Option<(Kind, String)>,
}

/// Packs that wait for their last sync; each has some open file and its table in memory.
const SEALING_AT_ONCE: usize = 2;

impl Writer {
    pub(super) fn start(store: Store, options: WriteOptions) -> Result<Self> {
        let lease = store.lease()?;
        // Only now: a garbage collection may have removed packs until we had the lease.
        store.refresh()?;
        let shared = Arc::new(Shared { store, state: Mutex::default() });
        let (sealing, packs) = sync_channel(SEALING_AT_ONCE);
        let for_sealer = Arc::clone(&shared);
        let sealer = std::thread::Builder::new()
            .name("seal".into())
            .spawn(move || for_sealer.seal_all(&packs))
            .context(|| "cannot start a thread")?;
        Ok(Self { shared, level: options.level, sealing: Some(sealing), sealer: Some(sealer), lease: Some(lease) })
    }

    /// Stores a chunk unless it is known; `id` is the BLAKE3 of `plain`, which the caller has just computed.
    pub fn put(&self, id: ChunkId, plain: &[u8]) -> Result<Put> {
        if plain.len() > MAX_CHUNK {
            let len = plain.len();
            return Err(Error::new(Kind::Usage, format!("chunk '{id}' has {len} bytes, at most {MAX_CHUNK} can be stored")));
        }
        if self.shared.knows(&id)? {
            return Ok(Put::Known);
        }
        with_compressed(plain, self.level, |codec, stored| {
            let checksum = match codec {
                Codec::Plain => id.as_bytes()[..16].try_into().expect("BUG: 16 of 32 bytes"),
                Codec::Zstd => pack::checksum(stored),
            };
            let (plain_len, stored_len) = (plain.len() as u32, stored.len() as u32);
            self.append(&RecordHeader { id, codec, plain_len, stored_len, checksum }, stored)
        })
    }

    /// Stores a record that another store gave out, as it is.
    pub fn put_record(&self, record: &Record<'_>) -> Result<Put> {
        match self.shared.knows(&record.header.id)? {
            true => Ok(Put::Known),
            false => self.append(&record.header, record.stored),
        }
    }

    /// Adds a record; also used for records that are copied as they are.
    pub(super) fn append(&self, header: &RecordHeader, stored: &[u8]) -> Result<Put> {
        let mut state = self.shared.state();
        state.check()?;
        if state.pending.contains(&header.id) {
            state.stats.known_chunks += 1;
            return Ok(Put::Known);
        }
        let full = state.append(&self.shared.store, header, stored).inspect_err(|error| state.fail(error))?;
        drop(state);
        if let Some(pack) = full {
            self.seal(pack)?;
        }
        Ok(Put::New { stored_len: header.stored_len })
    }

    /// Seals what is open and returns once everything put is durable and found by lookups.
    ///
    /// Gives the lease back: to keep it until a ref has moved, take another by [`Store::lease`] before.
    pub fn finish(self) -> Result<WriteStats> {
        self.finish_with_lease().map(|(stats, _)| stats)
    }

    /// Does what [`Writer::finish`] does, and hands over the lease, to be kept until a ref has moved.
    pub fn finish_with_lease(mut self) -> Result<(WriteStats, Lease)> {
        let open = self.shared.state().pack.take();
        if let Some(pack) = open {
            self.seal(pack)?;
        }
        self.join()?;
        self.shared.state().check()?;
        self.merge_index()?;
        let stats = self.shared.state().stats;
        Ok((stats, self.lease.take().expect("BUG: a writer has a lease until it is finished")))
    }

    /// Merges segments; everything is stored by then, so that a full disk only costs speed.
    fn merge_index(&self) -> Result<()> {
        let store = &self.shared.store;
        match index::merge_segments(store.layout(), store.index()?.segments.clone()) {
            Err(error) if error.kind() != Kind::NoSpace && error.kind() != Kind::NotFound => Err(error),
            _ => store.refresh(),
        }
    }

    fn seal(&self, pack: PackWriter) -> Result<()> {
        let sealing = self.sealing.as_ref().expect("BUG: a writer seals until it is finished");
        if sealing.send(pack).is_err() {
            // The sealer ended early, so it left its reason.
            self.shared.state().check()?;
        }
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        self.sealing = None;
        match self.sealer.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::new(Kind::Bug, "BUG: the thread that seals packs panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.state().pack = None;
        // Nobody is left to tell; what could not be indexed is found by the next garbage collection.
        let _ = self.join();
    }
}

impl State {
    /// Appends to the open pack, and returns it once it is full.
    fn append(&mut self, store: &Store, header: &RecordHeader, stored: &[u8]) -> Result<Option<PackWriter>> {
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => PackWriter::create(&store.layout().tmp())?,
        };
        pack.append(header, stored)?;
        self.pending.insert(header.id);
        self.stats.new_chunks += 1;
        self.stats.plain_bytes += u64::from(header.plain_len);
        self.stats.stored_bytes += u64::from(header.stored_len);
        if pack.is_full() {
            return Ok(Some(pack));
        }
        self.pack = Some(pack);
        Ok(None)
    }

    fn fail(&mut self, error: &Error) {
        self.pack = None;
        self.failure.get_or_insert_with(|| (error.kind(), format!("{error:#}")));
    }

    fn check(&self) -> Result<()> {
        match &self.failure {
            Some((kind, cause)) => Err(Error::new(*kind, format!("cannot store more chunks: {cause}"))),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the chunk is stored, in a pack that is really there.
    fn knows(&self, id: &ChunkId) -> Result<bool> {
        let mut is_known = self.state().pending.contains(id);
        if !is_known {
            let found = self.store.with_index(|index| index.find(id))?;
            is_known = match found {
                Some(found) => self.is_there(&found.location)? || self.is_elsewhere(id)?,
                None => false,
            };
        }
        let mut state = self.state();
        state.check()?;
        state.stats.known_chunks += u64::from(is_known);
        Ok(is_known)
    }

    /// Says whether the pack is on the disk and long enough; each pack is looked at once.
    fn is_there(&self, place: &Location) -> Result<bool> {
        if self.state().seen_packs.contains(&place.pack) {
            return Ok(true);
        }
        let path = pack::path_of(&self.store.layout().packs(), place.pack);
        match index::read_trailer(&path) {
            Ok(_) => Ok(self.state().seen_packs.insert(place.pack)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks for another copy of a chunk whose pack is missing or damaged.
    fn is_elsewhere(&self, id: &ChunkId) -> Result<bool> {
        let places = self.store.with_index(|index| index.find_all(id))?;
        for place in places {
            if self.is_there(&place)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Seals the packs that come until the writer hangs up, and indexes them.
    fn seal_all(&self, packs: &Receiver<PackWriter>) -> Result<()> {
        let mut sealed = Sealed::default();
        let mut result = Ok(());
        while let Ok(pack) = packs.recv() {
            result = self.seal_one(pack, &mut sealed);
            if result.is_err() {
                break;
            }
        }
        // Also after a failure: what was sealed before is worth finding.
        let result = result.and(sealed.publish(self));
        result.inspect_err(|error| self.state().fail(error))
    }

    fn seal_one(&self, pack: PackWriter, sealed: &mut Sealed) -> Result<()> {
        let pack = pack.seal(&self.store.layout().packs())?;
        self.state().stats.packs += 1;
        sealed.n_entries += pack.toc.len();
        sealed.dirs.insert(pack.dir);
        sealed.packs.push((pack.id, pack.toc));
        match sealed.n_entries >= FLUSH_ENTRIES {
            true => sealed.publish(self),
            false => Ok(()),
        }
    }
}

/// Packs that have their names but are not indexed yet.
#[derive(Default)]
struct Sealed {
    packs: Vec<(PackId, Vec<TocEntry>)>,
    n_entries: usize,
    dirs: BTreeSet<PathBuf>,
}

impl Sealed {
    /// Makes the names of the packs durable, then tells the index.
    fn publish(&mut self, shared: &Shared) -> Result<()> {
        if self.packs.is_empty() {
            return Ok(());
        }
        for dir in std::mem::take(&mut self.dirs) {
            durable::sync_dir(&dir)?;
        }
        let ids: Vec<ChunkId> = self.packs.iter().flat_map(|(_, toc)| toc.iter().map(|entry| entry.id)).collect();
        self.n_entries = 0;
        let layout = shared.store.layout();
        let segment = index::write_segment(layout, &mut self.packs)?;
        match index::publish(layout, segment.as_slice()) {
            // Somebody damaged the list since we started; a new index has our packs too.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => index::rebuild(layout)?,
            other => other?,
        }
        shared.store.refresh()?;
        let mut state = shared.state();
        for id in &ids {
            state.pending.remove(id);
        }
        Ok(())
    }
}

/// Per thread: the zstd context, its buffer, and how well the last chunks did.
struct Compression {
    context: zstd::bulk::Compressor<'static>,
    level: i32,
    buffer: Vec<u8>,
    /// Chunks in a row that did not pay.
    misses: u32,
}

/// After this many chunks in a row that do not pay, only every eighth is tried, until one pays.
const MISSES: u32 = 8;

/// Calls `then` with the smaller of `plain` and its compressed form.
pub(super) fn with_compressed<T>(plain: &[u8], level: i32, then: impl FnOnce(Codec, &[u8]) -> Result<T>) -> Result<T> {
    thread_local! {
        static COMPRESSION: RefCell<Option<Compression>> = const { RefCell::new(None) };
    }
    COMPRESSION.with_borrow_mut(|slot| {
        let compression = match slot {
            Some(compression) if compression.level == level => compression,
            _ => slot.insert(Compression::new(level)?),
        };
        match compression.compress(plain)? {
            true => then(Codec::Zstd, &compression.buffer),
            false => then(Codec::Plain, plain),
        }
    })
}

impl Compression {
    fn new(level: i32) -> Result<Self> {
        let context = zstd::bulk::Compressor::new(level).context(|| format!("cannot compress at level {level}"))?;
        Ok(Self { context, level, buffer: Vec::new(), misses: 0 })
    }

    /// Compresses into the buffer and says whether that pays: saves at least 1/32.
    fn compress(&mut self, plain: &[u8]) -> Result<bool> {
        if self.misses >= MISSES && !self.misses.is_multiple_of(8) {
            self.misses += 1;
            return Ok(false);
        }
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let n = self.context.compress_to_buffer(plain, &mut self.buffer).context(|| "cannot compress a chunk")?;
        let pays = n < plain.len() - plain.len() / 32;
        self.misses = if pays { 0 } else { self.misses.saturating_add(1) };
        Ok(pays)
    }
}
