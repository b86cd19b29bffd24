//! Chunks that another host has and that were wanted here lately, within a quota: a store of its own in the directory `cache` of the chunk store.
//!
//! Whatever is in it came from another host, and only what is in it is ever evicted. A writer of the chunk store does not look here, so that what is
//! made on this host is never taken for stored because a copy lies in the cache. Packs are evicted whole; the time of their last change is that of
//! their last use.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{InFlight, Record, References, Store, WriteOptions, Writer};
use crate::durable::{self, Lock};
use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;

/// The smallest quota that makes sense, in bytes.
pub const MIN_QUOTA: u64 = 1 << 20;
/// A pack of the cache has this part of the quota, or less; and no more bytes than [`MOST_BATCH`].
const BATCHES: u64 = 16;
const MOST_BATCH: u64 = 32 << 20;
/// What a pack, a segment and the list take besides the chunks, at most.
const SLACK: u64 = 16 << 10;

/// The cache of a chunk store.
pub struct Cache {
    dir: PathBuf,
    lock: PathBuf,
    is_read_only: bool,
    store: OnceLock<Store>,
}

impl Cache {
    /// Returns the cache of the chunk store in `store`, which need not be there yet.
    pub fn of(store: &Path, is_read_only: bool) -> Self {
        Self { dir: store.join("cache"), lock: store.join("cache-lock"), is_read_only, store: OnceLock::new() }
    }

    /// Returns its chunks; `None` if there never were any, or the cache is damaged: nothing is lost with it.
    pub fn store(&self) -> Option<&Store> {
        if self.store.get().is_none() {
            let opened = match self.is_read_only {
                true => Store::open_to_read(&self.dir),
                false => Store::open_noting_use(&self.dir),
            };
            let _ = self.store.set(opened.ok()?);
        }
        self.store.get()
    }

    /// Starts to keep chunks within `quota` bytes; `None` if another run is doing so.
    pub fn writer(&self, quota: u64, options: WriteOptions) -> Result<Option<CacheWriter>> {
        let lock = match Lock::exclusive(&self.lock) {
            Err(error) if error.kind() == Kind::Locked => return Ok(None),
            other => other?,
        };
        if self.store().is_none() {
            durable::remove_dir_all(&self.dir)?;
            Store::create(&self.dir)?;
        }
        let Some(store) = self.store().cloned() else { return Ok(None) };
        let batch = (quota / BATCHES).min(MOST_BATCH);
        Ok(Some(CacheWriter { store, quota, batch, options, open: Mutex::default(), _lock: lock }))
    }

    /// Evicts what was not used for longest until at most `quota` bytes are left, or nothing; returns how many bytes are free now that were not.
    pub fn shrink(&self, quota: u64) -> Result<u64> {
        let _lock = Lock::exclusive(&self.lock)?;
        let Some(store) = self.store() else { return Ok(0) };
        let before = store.disk_bytes()?;
        if quota == 0 {
            let _alone = store.alone()?;
            durable::remove_dir_all(&self.dir)?;
            return Ok(before);
        }
        Ok(before - store.evict(quota)?.min(before))
    }
}

/// Keeps chunks in a cache; several threads may put at once.
pub struct CacheWriter {
    store: Store,
    quota: u64,
    batch: u64,
    options: WriteOptions,
    open: Mutex<Batch>,
    _lock: Lock,
}

/// What is being written, and how many more bytes it may take.
#[derive(Default)]
struct Batch {
    writer: Option<Writer>,
    room: u64,
}

impl CacheWriter {
    /// Keeps a chunk, and evicts others for it if need be; one for which there is no room is not kept.
    pub fn put_record(&self, record: &Record<'_>) -> Result<()> {
        let mut batch = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if record.cost() > batch.room {
            self.begin(&mut batch, record.cost())?;
        }
        let Some(writer) = &batch.writer else { return Ok(()) };
        writer.put_record(record)?;
        batch.room -= record.cost();
        Ok(())
    }

    /// Ends the batch and begins another one with room for `least` bytes, if that can be had.
    fn begin(&self, batch: &mut MutexGuard<'_, Batch>, least: u64) -> Result<()> {
        self.end(batch)?;
        let room = self.batch.max(least);
        // A merge of the index needs room for the new one beside the old.
        let wanted = room + SLACK + self.store.index_bytes()?;
        if wanted > self.quota {
            return Ok(());
        }
        if self.store.disk_bytes()? + wanted > self.quota {
            let evicted = self.store.evict((self.quota - wanted).min(self.quota / 8 * 7));
            match evicted {
                // Somebody reads or writes there and holds a lease: then it stays as it is.
                Err(error) if error.kind() == Kind::Locked => return Ok(()),
                other => drop(other?),
            }
            if self.store.disk_bytes()? + wanted > self.quota {
                return Ok(());
            }
        }
        (batch.writer, batch.room) = (Some(self.store.writer(self.options)?), room);
        Ok(())
    }

    fn end(&self, batch: &mut MutexGuard<'_, Batch>) -> Result<()> {
        batch.room = 0;
        batch.writer.take().map_or(Ok(()), |writer| writer.finish().map(drop))
    }

    /// Makes durable what was put.
    pub fn finish(self) -> Result<()> {
        let mut batch = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.end(&mut batch)
    }
}

/// All chunks that are on this host: those that it holds, those that lie in files of the work tree, those on their way to others, and those in its cache.
pub struct Local {
    /// Those that it holds.
    pub store: Store,
    references: References,
    in_flight: InFlight,
    cache: Cache,
    /// Whether something may be found elsewhere than in the store, so that it pays to look before reading.
    has_more: AtomicBool,
}

impl Local {
    /// Opens the chunk store in `dir` and what belongs to it.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self::of(Store::open(dir)?))
    }

    /// Returns `store` and what belongs to it.
    pub fn of(store: Store) -> Self {
        let (dir, is_read_only) = (store.layout().root.clone(), store.inner.is_read_only);
        let (references, cache) = (References::of(&dir, is_read_only), Cache::of(&dir, is_read_only));
        let in_flight = InFlight::of(&dir, is_read_only);
        let is_elsewhere = cache.store().is_some() || in_flight.store().is_some() || !matches!(references.store(), Ok(None));
        Self { store, references, in_flight, cache, has_more: AtomicBool::new(is_elsewhere) }
    }

    /// Opens the chunk store in `dir` and what belongs to it for lookups that write nothing.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        Ok(Self::of(Store::open_to_read(dir)?))
    }

    /// Returns what lies in files that are their own store.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// Returns what came from other hosts and may go at any time.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns what is on its way to other hosts.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Says whether the chunk is here, without reading it.
    pub fn contains(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.store.contains(id)? || self.referenced(id)?.is_some() || self.flying(id).is_some() || self.cached(id).is_some())
    }

    /// Returns those of the `ids` that are not here, sorted, each once.
    pub fn lacking(&self, mut ids: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
        ids.sort_unstable();
        ids.dedup();
        let mut lacking = Vec::new();
        for id in self.store.lacking(&ids)? {
            if self.referenced(&id)?.is_none() && self.flying(&id).is_none() && self.cached(&id).is_none() {
                lacking.push(id);
            }
        }
        Ok(lacking)
    }

    /// Says whether the chunk lies in a file that is its own store.
    pub fn is_in_a_file(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.referenced(id)?.is_some())
    }

    /// Returns the references if the chunk is among them.
    fn referenced(&self, id: &ChunkId) -> Result<Option<&Store>> {
        let Some(references) = self.references.store()? else { return Ok(None) };
        Ok(references.contains(id)?.then_some(references))
    }

    /// Returns what is on its way if the chunk is among it. All of that may go at any time.
    fn flying(&self, id: &ChunkId) -> Option<&Store> {
        let flying = self.in_flight.store().filter(|flying| flying.contains(id).unwrap_or(false));
        self.has_more.fetch_or(flying.is_some(), Ordering::Relaxed);
        flying
    }

    /// Returns the cache if it has the chunk; what is wrong with it is no matter, since nothing is lost with it.
    fn cached(&self, id: &ChunkId) -> Option<&Store> {
        let cache = self.cache.store().filter(|cache| cache.contains(id).unwrap_or(false));
        self.has_more.fetch_or(cache.is_some(), Ordering::Relaxed);
        cache
    }

    /// Replaces `out` by the plain bytes of a chunk, which is refused if it is longer than `max_len`.
    pub fn read_into(&self, id: &ChunkId, out: &mut Vec<u8>, max_len: usize) -> Result<()> {
        let read = self.held(id, |store| store.read_into(id, out, max_len));
        self.or_elsewhere(id, read, |other| other.read_into(id, out, max_len))
    }

    /// Returns the plain bytes of a chunk, which is refused if it is longer than `max_len`.
    pub fn read(&self, id: &ChunkId, max_len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_into(id, &mut out, max_len).map(|()| out)
    }

    /// Returns the record of a chunk, as [`Store::read_record`] does.
    pub fn read_record(&self, id: &ChunkId) -> Result<Vec<u8>> {
        self.or_elsewhere(id, self.held(id, |store| store.read_record(id)), |other| other.read_record(id))
    }

    /// Reads from the store. To find out for certain that it does not have a chunk takes it long, so it is asked first where that is to be expected.
    fn held<T>(&self, id: &ChunkId, read: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        match self.has_more.load(Ordering::Relaxed) && !self.store.contains(id)? {
            true => Err(Error::new(Kind::NotFound, format!("chunk '{id}' is not present"))),
            false => read(&self.store),
        }
    }

    /// Looks into the files of the work tree, what is on its way, and the cache where the store has no good copy.
    fn or_elsewhere<T>(&self, id: &ChunkId, read: Result<T>, mut from: impl FnMut(&Store) -> Result<T>) -> Result<T> {
        let mut error = match read {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => error,
            other => return other,
        };
        if let Some(references) = self.referenced(id)? {
            match from(references) {
                Err(worse) => error = worse,
                read => return read,
            }
        }
        let elsewhere = [self.flying(id), self.cached(id)];
        elsewhere.into_iter().flatten().find_map(|other| from(other).ok()).ok_or(error)
    }
}
