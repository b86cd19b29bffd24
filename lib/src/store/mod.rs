//! The chunk store: every chunk this host has, in immutable packs.
//!
//! Layout on disk: `docs/formats/store-layout.md`, `chunk-pack.md` and `index-segment.md`. Nothing here talks to other hosts,
//! and nothing knows what the chunks are for: what is live is what the caller of [`Store::gc`] says.
//!
//! The packs are the truth. The index is derived from them, and a wrong one costs time, never correctness: each read checks
//! the record in the pack, and each removal the pack's own table.

mod cache;
mod check;
#[doc(hidden)]
pub mod codec;
pub mod decode;
mod gc;
mod in_flight;
mod index;
mod lease;
mod maintain;
mod pack;
mod reference;
mod rescue;
#[cfg(test)]
mod scale;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};

pub use cache::{Cache, CacheWriter, Local, MIN_QUOTA};
pub use check::{Checked, Finding};
pub use gc::{GcOptions, GcReport, Live, removal_lock};
pub use in_flight::InFlight;
pub use lease::Lease;
pub use maintain::{CutShort, Recompress, Recompressed};
pub use pack::{MAX_CHUNK, Record};
pub use reference::{FileReferences, ReferenceWriter, Referenced, References};
pub use writer::{Put, WriteOptions, WriteStats, Writer};

use index::Index;
use pack::TocEntry;

const FORMAT: &str = "git-devops chunk store 1\n";
const FORMAT_NAME: &str = "git-devops chunk store ";
/// Packs that are kept open for reading.
const OPEN_PACKS: usize = 16;

/// An open chunk store; cheap to clone, and to share between threads.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    index: RwLock<Option<Arc<Index>>>,
    rebuilding: Mutex<()>,
    /// Most recently used last.
    open_packs: Mutex<Vec<(PackId, Arc<OpenPack>)>>,
    /// Whether nothing is made anew, however wrong it is.
    is_read_only: bool,
    /// Packs whose use was noted, where it is.
    used: Option<Mutex<HashSet<PackId>>>,
}

/// A pack that is being read.
struct OpenPack {
    /// The pack, or, of a reference pack, the file that it is about.
    file: File,
    /// Of a reference pack, where in the file its offsets count from.
    base: Option<u64>,
}

impl OpenPack {
    fn open(path: &Path) -> Result<Self> {
        let file = durable::open(path)?;
        let mut magic = [0; 8];
        let n = file.read_at(&mut magic, 0)?;
        if !reference::is_reference(&magic[..n]) {
            return Ok(Self { file, base: None });
        }
        let pack = reference::read(path)?;
        Ok(Self { file: pack.open_file()?, base: Some(pack.base) })
    }

    /// Reads the record of `entry`; that of a chunk which lies elsewhere is put together and verified.
    fn read(&self, entry: &TocEntry, record: &mut [u8]) -> Result<()> {
        if let Some(base) = self.base {
            return reference::read_record(&self.file, base + u64::from(entry.offset), entry, record);
        }
        match self.file.read_exact_at(record, entry.offset.into()) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(pack::corrupt("the pack ends before")),
            other => Ok(other?),
        }
    }
}

/// What is done with a record and what the index says of it.
type Take<'a> = &'a mut dyn FnMut(&[u8], &TocEntry) -> Result<()>;

/// Where a chunk lies; a restore that reads in this order reads each pack from front to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where in the pack its record starts.
    pub offset: u32,
    /// How many bytes it takes there, without the record's header.
    pub stored_len: u32,
    /// How many bytes the chunk has.
    pub plain_len: u32,
}

/// How much there is in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunk packs.
    pub packs: u64,
    /// Chunks, counted once for each pack they lie in, up to the next merge of the index.
    pub chunks: u64,
    /// Bytes that the chunks take, compressed.
    pub stored_bytes: u64,
    /// Bytes that the chunks have.
    pub plain_bytes: u64,
}

impl Store {
    /// Creates a store in `dir`, with its missing parents, or opens the one that is there.
    ///
    /// A directory with anything else in it is refused.
    pub fn create(dir: &Path) -> Result<Self> {
        let layout = Layout { root: dir.to_owned() };
        if !durable::is_there(&layout.format()) {
            create_layout(&layout).context(|| format!("cannot create a chunk store in '{}'", dir.display()))?;
        }
        Self::open(dir)
    }

    /// Opens the store in `dir`. Reads one small file; the index is loaded by the first lookup.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_as(dir, false, false)
    }

    /// Opens the store in `dir` so that the first read from each pack makes its time of change that of the read.
    fn open_noting_use(dir: &Path) -> Result<Self> {
        Self::open_as(dir, false, true)
    }

    /// Opens the store in `dir` for lookups that write nothing: a damaged index is an error, and a chunk that it lacks is not there.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        Self::open_as(dir, true, false)
    }

    fn open_as(dir: &Path, is_read_only: bool, notes_use: bool) -> Result<Self> {
        let layout = Layout { root: dir.to_owned() };
        let what = || format!("cannot open chunk store '{}'", dir.display());
        let mut format = Vec::new();
        let no_format = || {
            format!("cannot open '{}'; if its packs are there, 'gdo check --repair' writes it anew", layout.format().display())
        };
        let file = durable::open(&layout.format()).context(no_format).context(what)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, 256), &mut format).context(what)?;
        decode_format(&format).context(what)?;
        let used = notes_use.then(Mutex::default);
        let inner = Inner {
            layout,
            index: RwLock::default(),
            rebuilding: Mutex::default(),
            open_packs: Mutex::default(),
            is_read_only,
            used,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes the format file of the store in `dir` anew if it is damaged or missing, though there are packs; never that of a newer store.
    pub fn mend_format(dir: &Path) -> Result<()> {
        let layout = Layout { root: dir.to_owned() };
        let is_store = durable::is_dir(&layout.packs()) && durable::is_dir(&layout.index());
        match Self::open(dir) {
            Err(error) if is_store && matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                durable::publish(&layout.format(), FORMAT.as_bytes(), 0o444)
            }
            _ => Ok(()),
        }
    }

    /// Returns the store's directory.
    pub fn dir(&self) -> &Path {
        &self.inner.layout.root
    }

    /// Says whether the store has the chunk, without reading it.
    pub fn contains(&self, id: &ChunkId) -> Result<bool> {
        Ok(!self.find_all(id)?.is_empty())
    }

    /// Returns those of the `ids` that are not here. If they are sorted, each costs a fraction of [`Store::contains`].
    pub fn lacking(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
        self.refresh_if_old()?;
        self.with_index(|index| index.lacking(ids))
    }

    /// Returns the plain bytes of a chunk, which is refused if it is longer than `max_len`.
    pub fn read(&self, id: &ChunkId, max_len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_into(id, &mut out, max_len)?;
        Ok(out)
    }

    /// Replaces `out` by the plain bytes of a chunk, which is refused if it is longer than `max_len`.
    ///
    /// The bytes were verified against the id. On failure `out` is empty or holds nothing of use.
    pub fn read_into(&self, id: &ChunkId, out: &mut Vec<u8>, max_len: usize) -> Result<()> {
        self.read_with(id, max_len, &mut |record, entry| pack::unpack(record, entry, out))
    }

    /// Returns the record of a chunk as it lies in a pack, for another host's [`Record::verify`]; the stored bytes match their checksum.
    pub fn read_record(&self, id: &ChunkId) -> Result<Vec<u8>> {
        let mut found = Vec::new();
        self.read_with(id, MAX_CHUNK, &mut |record, entry| {
            pack::open_record(record, entry)?;
            found = record.to_vec();
            Ok(())
        })?;
        Ok(found)
    }

    /// Hands the record of a chunk to `take`, from each pack that has it until `take` succeeds.
    fn read_with(&self, id: &ChunkId, max_len: usize, take: Take<'_>) -> Result<()> {
        let places = self.find_all(id)?;
        let error = match self.read_any(id, &places, max_len, take) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => error,
            other => return other,
        };
        // Stale or wrong index, or really gone? A failing read may take its time.
        if self.index_agrees(id, &places)? {
            return Err(error);
        }
        let places = self.find_all(id)?;
        self.read_any(id, &places, max_len, take)
    }

    /// Takes a lease: until it is dropped, no garbage collection removes a chunk.
    ///
    /// Whoever relies on chunks that no ref reaches yet holds one. A [`Writer`] has its own.
    pub fn lease(&self) -> Result<Lease> {
        Lease::take(&self.inner.layout)
    }

    /// Starts storing chunks. The writer is a lease too: keep it, or another lease taken before [`Writer::finish`], until a ref
    /// reaches the chunks.
    pub fn writer(&self, options: WriteOptions) -> Result<Writer> {
        Writer::start(self.clone(), options)
    }

    /// Counts packs, chunks and bytes, from the index.
    pub fn stats(&self) -> Result<Stats> {
        self.refresh()?;
        let index = self.index()?;
        let mut stats = Stats { packs: index.packs().len() as u64, ..Stats::default() };
        for segment in &index.segments {
            stats.chunks += segment.trailer.n_entries;
            stats.stored_bytes += segment.trailer.stored_bytes;
            stats.plain_bytes += segment.trailer.plain_bytes;
        }
        Ok(stats)
    }

    /// Returns what is another one when chunks came or went.
    pub fn version(&self) -> Result<Vec<u8>> {
        let path = self.layout().list();
        Ok(durable::read_if_there(&path).context(|| format!("cannot read '{}'", path.display()))?.unwrap_or_default())
    }

    /// Hands every chunk to `take`, once, ascending, from the index of this moment.
    pub fn for_each_chunk(&self, take: &mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> {
        self.refresh()?;
        let index = self.index()?;
        let mut cursors: Vec<_> = index.segments.iter().map(|segment| segment.entries()).collect();
        let mut heads = BinaryHeap::new();
        for (at, cursor) in cursors.iter_mut().enumerate() {
            heads.extend(cursor.next_entry()?.map(|entry| Reverse((entry.id, at))));
        }
        let mut last = None;
        while let Some(Reverse((id, at))) = heads.pop() {
            if last.replace(id) != Some(id) {
                take(id)?;
            }
            heads.extend(cursors[at].next_entry()?.map(|entry| Reverse((entry.id, at))));
        }
        Ok(())
    }

    /// Makes the index anew from the packs. Lookups do so by themselves when they find it damaged.
    pub fn rebuild_index(&self) -> Result<()> {
        let _lease = self.lease()?;
        index::rebuild(&self.inner.layout)?;
        self.refresh()
    }

    fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// Looks for all copies of a chunk in the newest index.
    fn find_all(&self, id: &ChunkId) -> Result<Vec<Location>> {
        self.refresh_if_old()?;
        self.with_index(|index| index.find_all(id))
    }

    /// Loads the newest index if this is not it: another process may have stored or removed chunks meanwhile.
    fn refresh_if_old(&self) -> Result<()> {
        if self.index()?.is_current(self.layout()) { Ok(()) } else { self.refresh() }
    }

    /// Returns the index, loaded now if it was not, rebuilt if it cannot be loaded.
    fn index(&self) -> Result<Arc<Index>> {
        if let Some(index) = &*self.inner.index.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(index));
        }
        self.refresh()?;
        let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(index.as_ref().expect("BUG: refresh leaves an index")))
    }

    /// Looks something up, and once more in a rebuilt index if this one is damaged.
    fn with_index<T>(&self, look: impl Fn(&Index) -> Result<T>) -> Result<T> {
        let index = self.index()?;
        match look(&index) {
            Err(error) if is_index_damage(&error) => {
                self.replace_index(&index)?;
                look(&*self.index()?)
            }
            other => other,
        }
    }

    /// Loads the newest index, and rebuilds it if it cannot be loaded.
    fn refresh(&self) -> Result<()> {
        let _one = self.rebuilding();
        self.refresh_alone()
    }

    fn refresh_alone(&self) -> Result<()> {
        let old = self.inner.index.read().unwrap_or_else(PoisonError::into_inner).clone();
        let loaded = old.as_ref().map_or(&[][..], |index| &index.segments);
        let index = match Index::load_again(self.layout(), loaded) {
            Err(error) if is_index_damage(&error) => self.rebuilt()?,
            other => other?,
        };
        *self.inner.index.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(index));
        Ok(())
    }

    /// Rebuilds the index, unless another thread replaced `damaged` already.
    fn replace_index(&self, damaged: &Arc<Index>) -> Result<()> {
        let _one = self.rebuilding();
        if !Arc::ptr_eq(damaged, &self.index()?) {
            return Ok(());
        }
        let index = self.rebuilt()?;
        *self.inner.index.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(index));
        Ok(())
    }

    fn rebuilt(&self) -> Result<Index> {
        if self.inner.is_read_only {
            return Err(Error::new(Kind::Io, "the index of the chunk store is damaged; 'gdo check' makes it anew"));
        }
        let _lease = self.lease()?;
        index::rebuild(self.layout())
            .and_then(|()| Index::load(self.layout()))
            .context(|| format!("cannot rebuild the index of chunk store '{}'", self.layout().root.display()))
    }

    fn rebuilding(&self) -> MutexGuard<'_, ()> {
        self.inner.rebuilding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the chunk from the first of `places` where it is sound.
    fn read_any(&self, id: &ChunkId, places: &[Location], max_len: usize, take: Take<'_>) -> Result<()> {
        let mut error = Error::new(Kind::NotFound, format!("chunk '{id}' is not present"));
        for place in places {
            match self.read_at(id, place, max_len, take) {
                Ok(()) => return Ok(()),
                Err(worse) => error = worse,
            }
        }
        Err(error)
    }

    fn read_at(&self, id: &ChunkId, place: &Location, max_len: usize, take: Take<'_>) -> Result<()> {
        let path = pack::path_of(&self.layout().packs(), place.pack);
        let what = || {
            let (path, offset) = (path.display(), place.offset);
            format!(
                "cannot read chunk '{id}' at byte {offset} of '{path}' (get it again from another host, then run 'check --data')"
            )
        };
        if place.plain_len as usize > max_len.min(MAX_CHUNK) || place.stored_len > place.plain_len {
            return Err(pack::corrupt(format!("it has {} bytes, at most {max_len} are expected", place.plain_len)).wrap(what()));
        }
        let entry = TocEntry { id: *id, offset: place.offset, stored_len: place.stored_len, plain_len: place.plain_len };
        let file = self.open_pack(place.pack, &path).context(what)?;
        with_scratch(entry.record_len(), |record| {
            file.read(&entry, record)?;
            take(record, &entry)
        })
        .context(what)?;
        self.note_use(place.pack, &path);
        Ok(())
    }

    /// Notes that a pack was of use, where that is noted; that it cannot be noted only makes it look older.
    fn note_use(&self, pack: PackId, path: &Path) {
        if let Some(used) = &self.inner.used
            && used.lock().unwrap_or_else(PoisonError::into_inner).insert(pack)
        {
            let _ = durable::touch_unsynced(path);
        }
    }

    /// Says whether the index was right about where the chunk lies; if not, a better one is loaded.
    fn index_agrees(&self, id: &ChunkId, places: &[Location]) -> Result<bool> {
        let index = self.index()?;
        if !index.is_current(self.layout()) {
            self.refresh()?;
            return Ok(false);
        }
        if self.inner.is_read_only {
            return Ok(true);
        }
        let is_right = |place: &Location| match index::read_toc(&pack::path_of(&self.layout().packs(), place.pack)) {
            // A pack without a readable table can only be searched, and was, if the index knows it.
            Err(error) => error.kind() != Kind::NotFound,
            Ok(toc) => toc.iter().any(|entry| {
                (entry.id, entry.offset, entry.stored_len, entry.plain_len)
                    == (*id, place.offset, place.stored_len, place.plain_len)
            }),
        };
        if places.is_empty() && self.index_all_packs()? {
            self.refresh()?;
            return Ok(false);
        }
        if places.iter().all(is_right) {
            return Ok(true);
        }
        self.replace_index(&index)?;
        Ok(false)
    }

    /// Opens a pack, or takes it from the few that are open.
    fn open_pack(&self, id: PackId, path: &Path) -> Result<Arc<OpenPack>> {
        let mut open = self.inner.open_packs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = open.iter().rposition(|(pack, _)| *pack == id) {
            let used = open.remove(i);
            open.push(used);
        } else {
            let file = Arc::new(OpenPack::open(path)?);
            if open.len() == OPEN_PACKS {
                open.remove(0);
            }
            open.push((id, file));
        }
        Ok(Arc::clone(&open.last().expect("BUG: it was pushed").1))
    }

    /// Forgets open packs, so that the next read sees what is on the disk.
    fn close_packs(&self) {
        self.inner.open_packs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Says whether an error of the index is one that a rebuild repairs.
fn is_index_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Corrupt)
}

/// Lends a buffer of `len` bytes that the thread keeps, unless it is unusually large.
fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    const KEPT: usize = 1 << 20;
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    if len > KEPT {
        return work(&mut vec![0; len]);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        work(&mut scratch[..len])
    })
}

/// Says whether `bytes` are the format file of a store that we know.
fn decode_format(bytes: &[u8]) -> Result<()> {
    if bytes == FORMAT.as_bytes() {
        return Ok(());
    }
    let version = bytes.strip_prefix(FORMAT_NAME.as_bytes()).and_then(|rest| rest.strip_suffix(b"\n"));
    match version.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok()) {
        Some(newer) if newer > 1 => {
            let message = format!(
                "its format has version {newer}, this program knows 1; use a newer one, or, if none ever wrote here, remove its file 'format', and 'gdo check --repair' writes it anew"
            );
            Err(Error::new(Kind::Unsupported, message))
        }
        _ => {
            Err(pack::corrupt("its file 'format' is damaged, or this is not a chunk store; 'gdo check --repair' writes it anew"))
        }
    }
}

/// Where the parts of a store lie.
#[derive(Clone, Debug)]
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    fn list(&self) -> PathBuf {
        self.root.join("index/list")
    }

    fn list_lock(&self) -> PathBuf {
        self.root.join("index/lock")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn gc_lock(&self) -> PathBuf {
        self.root.join("gc-lock")
    }

    fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    fn maintained(&self) -> PathBuf {
        self.root.join("index/maintained")
    }
}

/// Makes the directories of a store; the format file comes last, so that without it nothing counts.
fn create_layout(layout: &Layout) -> Result<()> {
    const OURS: [&str; 6] = ["packs", "index", "tmp", "lock", "gc-lock", "leases"];
    durable::create_dir_all(&layout.root, 0o700)?;
    for path in list_dir(&layout.root)? {
        let name = path.file_name().unwrap_or_default();
        if !OURS.iter().any(|ours| name == *ours) && !name.as_encoded_bytes().starts_with(crate::safepath::TEMP_PREFIX) {
            return Err(Error::new(Kind::Refused, format!("the directory is not empty: it has '{}'", name.display())));
        }
    }
    for dir in [layout.packs(), layout.index(), layout.tmp()] {
        durable::create_dir_all(&dir, 0o700)?;
    }
    durable::publish(&layout.format(), FORMAT.as_bytes(), 0o444)
}

/// Returns the paths of what lies in the directory `path`.
fn list_dir(path: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("cannot list '{}'", path.display());
    Ok(durable::list(path).context(what)?.into_iter().map(|listed| listed.path).collect())
}
