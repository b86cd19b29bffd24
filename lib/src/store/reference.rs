//! Chunks that lie in files of a work tree, which so are their own store: `docs/formats/reference.md`.
//!
//! Reference packs stand where chunk packs stand, in a store of their own, so that its index, its leases and its garbage collection serve them too. The
//! files belong to whoever writes them: nothing here changes one, and every chunk is verified at each read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::index::{self, FLUSH_ENTRIES};
use super::pack::{self, MAX_CHUNK, TocEntry, check_version, corrupt, hash_at, le32, le64};
use super::{Lease, Store, WriteOptions};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};
use crate::safepath::{self, Dir};

const MAGIC: &[u8; 8] = b"gdo-refs";
const HEAD_LEN: usize = 32;
const ENTRY_LEN: usize = 40;
const MAX_ROOT: usize = 4096;
const MAX_PATH: usize = 65536;
const MAX_ENTRIES: usize = 8192;
/// The longest reference pack, in bytes.
pub(super) const MAX_LEN: usize = HEAD_LEN + MAX_ROOT + MAX_PATH + MAX_ENTRIES * ENTRY_LEN + 32;
/// So far from its base a chunk may begin.
const MAX_SPAN: u64 = u32::MAX as u64;

/// What a reference pack says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReferencePack {
    pub root: Vec<u8>,
    pub path: Vec<u8>,
    pub base: u64,
    pub entries: Vec<TocEntry>,
}

/// Says whether `bytes` begin a reference pack rather than a chunk pack.
pub(super) fn is_reference(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl ReferencePack {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [1, self.root.len(), self.path.len(), self.entries.len()] {
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend(self.base.to_le_bytes());
        bytes.extend_from_slice(&self.root);
        bytes.extend_from_slice(&self.path);
        for entry in &self.entries {
            bytes.extend_from_slice(entry.id.as_bytes());
            bytes.extend(entry.offset.to_le_bytes());
            bytes.extend(entry.plain_len.to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }

    /// Decodes a whole pack; anything unexpected is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (root, path, base, n) = decode_head(bytes)?;
        let at = HEAD_LEN + root.len() + path.len();
        let body = bytes.len().checked_sub(32).filter(|end| *end == at + n * ENTRY_LEN);
        let end = body.ok_or_else(|| corrupt("reference pack has another length than it says"))?;
        if blake3::hash(&bytes[..end]).as_bytes() != &bytes[end..] {
            return Err(corrupt("reference pack does not match its checksum"));
        }
        let (mut entries, mut after) = (Vec::with_capacity(n), 0);
        for raw in bytes[at..end].chunks_exact(ENTRY_LEN) {
            let (id, offset, len) = (ChunkId::from_bytes(hash_at(raw, 0)), le32(raw, 32), le32(raw, 36));
            if u64::from(offset) < after || len == 0 || len as usize > MAX_CHUNK {
                return Err(corrupt("reference pack names chunks that cannot be"));
            }
            after = u64::from(offset) + u64::from(len);
            entries.push(TocEntry { id, offset, stored_len: len, plain_len: len });
        }
        Ok(Self { root: root.to_vec(), path: path.to_vec(), base, entries })
    }

    /// Opens the file that it is about.
    pub fn open_file(&self) -> Result<File> {
        open_file(&self.root, &self.path)
    }

    /// Returns where the file is, for messages.
    pub fn shown(&self) -> String {
        shown(&self.root, &self.path).display().to_string()
    }
}

type Head<'a> = (&'a [u8], &'a [u8], u64, usize);

/// Decodes what stands before the chunks: root, path, base, and the number of chunks.
fn decode_head(bytes: &[u8]) -> Result<Head<'_>> {
    let bad = || corrupt("this is not a reference pack");
    if bytes.len() < HEAD_LEN || !is_reference(bytes) {
        return Err(bad());
    }
    check_version("reference pack", le32(bytes, 8))?;
    let (root, path, n) = (le32(bytes, 12) as usize, le32(bytes, 16) as usize, le32(bytes, 20) as usize);
    let is_good = |n: usize, most: usize| (1..=most).contains(&n);
    if !is_good(root, MAX_ROOT) || !is_good(path, MAX_PATH) || !is_good(n, MAX_ENTRIES) || bytes.len() < HEAD_LEN + root + path {
        return Err(bad());
    }
    let (root, path) = (&bytes[HEAD_LEN..HEAD_LEN + root], &bytes[HEAD_LEN + root..HEAD_LEN + root + path]);
    safepath::check_path(path)?;
    Ok((root, path, le64(bytes, 24), n))
}

fn shown(root: &[u8], path: &[u8]) -> PathBuf {
    as_path(root).join(as_path(path))
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn open_file(root: &[u8], path: &[u8]) -> Result<File> {
    let at = path.iter().rposition(|&b| b == b'/');
    let (parent, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
    let what = || format!("'{}', which is its own store, cannot be read", shown(root, path).display());
    Dir::open(as_path(root)).and_then(|root| root.open_path(parent)).and_then(|dir| dir.open_file(name)).context(what)
}

/// Reads a reference pack.
pub(super) fn read(path: &Path) -> Result<ReferencePack> {
    let what = || format!("cannot read reference pack '{}'", path.display());
    let len = durable::look(path).context(what)?.len();
    if len > MAX_LEN as u64 {
        return Err(corrupt(format!("it has {len} bytes, at most {MAX_LEN} are possible")).wrap(what()));
    }
    ReferencePack::decode(&durable::read(path).context(what)?).context(what)
}

/// Fills `record` with that of a chunk which lies at `at` in `file`; nothing is verified yet.
pub(super) fn read_record(file: &File, at: u64, entry: &TocEntry, record: &mut [u8]) -> Result<()> {
    let changed = || corrupt("the file that is its own store was changed; put it back as it was, or get it from another host");
    let (header, stored) = record.split_at_mut(pack::RECORD_HEADER_LEN);
    match file.read_exact_at(stored, at) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(changed()),
        other => other?,
    }
    if ChunkId::of(stored) != entry.id {
        return Err(changed());
    }
    header.copy_from_slice(&pack::plain_header(entry));
    Ok(())
}

/// All references of a chunk store.
pub struct References {
    dir: PathBuf,
    is_read_only: bool,
    store: OnceLock<Store>,
}

impl References {
    pub(super) fn of(store: &Path, is_read_only: bool) -> Self {
        Self { dir: store.join("references"), is_read_only, store: OnceLock::new() }
    }

    /// Returns them as a store; `None` if there never were any.
    pub fn store(&self) -> Result<Option<&Store>> {
        if self.store.get().is_none() {
            let opened = if self.is_read_only { Store::open_to_read(&self.dir) } else { Store::open(&self.dir) };
            match opened {
                Err(error) if error.kind() == Kind::NotFound && !durable::is_dir(&self.dir.join("packs")) => return Ok(None),
                opened => drop(self.store.set(opened?)),
            }
        }
        Ok(self.store.get())
    }

    /// Starts to note references into files below `root`; while the writer, or the lease that it leaves, lives, none is removed.
    pub fn writer(&self, root: &Path) -> Result<ReferenceWriter> {
        let store = match self.store()? {
            Some(store) => store.clone(),
            None => Store::create(&self.dir)?,
        };
        let lease = store.lease()?;
        Ok(ReferenceWriter { root: root.as_os_str().as_bytes().to_vec(), store, lease, noted: Mutex::default() })
    }

    /// Returns the files that serve as their own store, as far as they are there, by device and inode.
    pub fn files(&self) -> Result<Referenced> {
        let Some(store) = self.store()? else { return Ok(Referenced::default()) };
        let mut files: HashMap<(Vec<u8>, Vec<u8>), Vec<PackId>> = HashMap::new();
        for pack in index::list_packs(store.layout())? {
            let path = pack::path_of(&store.layout().packs(), pack.id);
            let mut head = vec![0; (HEAD_LEN + MAX_ROOT + MAX_PATH).min(pack.len as usize)];
            durable::open(&path)?.read_exact_at(&mut head, 0)?;
            // A damaged one is a matter of the check.
            let Ok((root, path, ..)) = decode_head(&head) else { continue };
            files.entry((root.to_vec(), path.to_vec())).or_default().push(pack.id);
        }
        let mut referenced = Referenced::default();
        for ((root, path), packs) in files {
            if let Ok(identity) = open_file(&root, &path).and_then(|file| identity_of(&file)) {
                referenced.by_identity.entry(identity).or_default().extend(packs);
            }
            referenced.paths.insert((root, path));
        }
        Ok(referenced)
    }
}

/// The files that serve as their own store.
#[derive(Default)]
pub struct Referenced {
    by_identity: HashMap<(u64, u64), Vec<PackId>>,
    paths: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Referenced {
    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Says whether the file at `path` below `root` is one.
    pub fn has(&self, root: &Path, path: &[u8]) -> bool {
        !self.is_empty() && self.paths.contains(&(root.as_os_str().as_bytes().to_vec(), path.to_vec()))
    }

    /// Copies what lies in `file`, which is about to be replaced or removed, into `store`, durably, and forgets that it lies there.
    ///
    /// What is damaged in it already is lost already. An error means that the file must stay.
    pub fn spare(&self, file: &File, references: &References, store: &Store, options: WriteOptions) -> Result<()> {
        let packs = self.by_identity.get(&identity_of(file)?);
        let (Some(packs), Some(refs)) = (packs, references.store()?) else { return Ok(()) };
        let writer = store.writer(options)?;
        let mut plain = Vec::new();
        for pack in packs {
            let entries = match index::read_toc(&pack::path_of(&refs.layout().packs(), *pack)) {
                // The file has another name that went before, or all of it was dead.
                Err(error) if error.kind() == Kind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                match refs.read_into(&entry.id, &mut plain, MAX_CHUNK) {
                    Ok(()) => drop(writer.put(entry.id, &plain)?),
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => (),
                    Err(error) => return Err(error),
                }
            }
        }
        writer.finish()?;
        match refs.remove_packs(packs) {
            // Then the check tells of it, and the next collection removes it.
            Err(error) if error.kind() == Kind::Locked => Ok(()),
            other => other,
        }
    }
}

fn identity_of(file: &File) -> Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Notes where chunks lie in files.
pub struct ReferenceWriter {
    root: Vec<u8>,
    store: Store,
    lease: Lease,
    noted: Mutex<Vec<(PackId, Vec<TocEntry>)>>,
}

impl ReferenceWriter {
    /// Begins with the file at `path` below the root.
    pub fn file(&self, path: &[u8]) -> FileReferences<'_> {
        FileReferences { writer: self, path: path.to_vec(), base: 0, entries: Vec::new() }
    }

    /// Makes all of it durable and findable; the lease is to be kept until a ref has moved.
    pub fn finish(self) -> Result<Lease> {
        self.publish(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner))?;
        self.store.refresh()?;
        Ok(self.lease)
    }

    fn publish(&self, noted: &mut Vec<(PackId, Vec<TocEntry>)>) -> Result<()> {
        let layout = self.store.layout();
        let segment = index::write_segment(layout, noted)?;
        match index::publish(layout, segment.as_slice()) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => index::rebuild(layout)?,
            other => other?,
        }
        index::merge_segments(layout, self.store.index()?.segments.clone())
    }

    fn put(&self, pack: &ReferencePack) -> Result<()> {
        let bytes = pack.encode();
        let id = PackId::from_bytes(*blake3::hash(&bytes).as_bytes());
        let path = pack::path_of(&self.store.layout().packs(), id);
        durable::create_dir_all(path.parent().expect("BUG: a pack lies in a directory"), 0o700)?;
        durable::publish(&path, &bytes, 0o444)?;
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push((id, pack.entries.clone()));
        match noted.iter().map(|(_, entries)| entries.len()).sum::<usize>() >= FLUSH_ENTRIES {
            true => self.publish(&mut noted),
            false => Ok(()),
        }
    }
}

/// The chunks of one file, in its order.
pub struct FileReferences<'a> {
    writer: &'a ReferenceWriter,
    path: Vec<u8>,
    base: u64,
    entries: Vec<TocEntry>,
}

impl FileReferences<'_> {
    /// Notes that a chunk lies at `offset`.
    pub fn push(&mut self, id: ChunkId, offset: u64, len: u64) -> Result<()> {
        if self.entries.len() == MAX_ENTRIES || offset - self.base > MAX_SPAN {
            self.flush()?;
        }
        if self.entries.is_empty() {
            self.base = offset;
        }
        let (offset, len) = ((offset - self.base) as u32, len as u32);
        self.entries.push(TocEntry { id, offset, stored_len: len, plain_len: len });
        Ok(())
    }

    /// Notes what is left, and returns once what is in `file` would survive a power cut.
    pub fn finish(mut self, file: &File) -> Result<()> {
        self.flush()?;
        durable::sync_file(file)
    }

    fn flush(&mut self) -> Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let (root, path, entries) = (self.writer.root.clone(), self.path.clone(), std::mem::take(&mut self.entries));
        if root.len() > MAX_ROOT || path.len() > MAX_PATH {
            return Err(Error::new(Kind::Usage, "its path is too long for a file that is its own store"));
        }
        self.writer.put(&ReferencePack { root, path, base: self.base, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ReferencePack {
        let id = ChunkId::of(b"hello world\n");
        let entries = vec![TocEntry { id, offset: 0, stored_len: 12, plain_len: 12 }];
        ReferencePack { root: b"/w".to_vec(), path: b"f".to_vec(), base: 5, entries }
    }

    #[test]
    fn the_page_shows_these_bytes() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats/reference.md");
        let page = std::fs::read_to_string(page).unwrap();
        let dump = page.rsplit("```\n").nth(1).unwrap();
        let mut bytes = Vec::new();
        for line in dump.lines().filter(|line| line.len() > 10) {
            let hex = &line[10..line.find('|').unwrap_or(line.len())];
            bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
        assert_eq!(bytes, example().encode());
        assert_eq!(ReferencePack::decode(&bytes).unwrap(), example());
    }

    #[test]
    fn a_reference_pack_that_is_cut_short_or_changed_is_refused_at_every_byte() {
        let bytes = example().encode();
        for at in 0..bytes.len() {
            assert!(ReferencePack::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(ReferencePack::decode(&changed).is_err(), "changed at {at}");
        }
        assert!(ReferencePack::decode(&[&bytes[..], b"x"].concat()).is_err());
        for path in [&b"../f"[..], b"/f", b"a//b", b".", b"a/../b"] {
            let hostile = ReferencePack { path: path.to_vec(), ..example() };
            assert!(ReferencePack::decode(&hostile.encode()).is_err(), "{}", path.escape_ascii());
        }
    }
}
