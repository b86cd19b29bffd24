//! Writing new objects: straight into one pack, from many threads, and durable before a ref may point at them.
//!
//! Nothing is visible to git until [`CompletePack::publish`]; from then until the ref has moved a `.keep` file beside the
//! pack keeps `git gc --prune=now` from removing what nothing refers to yet.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};

use libdeflater::{CompressionLvl, Compressor, Crc};
use sha1dc::Hasher;

use super::object::{CommitData, ObjectKind, TreeEntry, object_id, oid_from};
use super::{Index, Objects, Oid};
use crate::durable::{self, Temp, Writeback, sync_dir};
use crate::error::{Context, Error, Kind, Result};

/// Takes objects from any number of threads and appends the new ones to a pack on the disk.
///
/// Memory: about 40 bytes per object, one buffer that is filled, and one for each thread that writes. Dropped unfinished, it leaves nothing.
pub struct PackWriter<'a> {
    objects: &'a Objects,
    /// The index whose blobs nobody removes; with the names of those, once they are needed.
    index: Option<&'a Index>,
    in_index: OnceLock<Vec<Name>>,
    git_dir: PathBuf,
    dir: PathBuf,
    level: i32,
    /// Made with the first block, so that a run without news touches nothing.
    temp: OnceLock<Temp>,
    writeback: Writeback,
    pack: Mutex<Pack>,
}

/// Guards a finished pack until a ref points at its objects.
///
/// Dropped without [`Kept::release`] the guard goes too, and a later gc may remove the objects.
#[must_use = "the pack is protected only as long as this lives"]
#[derive(Debug)]
pub struct Kept {
    pack: PathBuf,
    n_objects: u32,
    is_released: bool,
}

impl<'a> PackWriter<'a> {
    /// Starts a pack in the repository at `git_dir`.
    ///
    /// What `objects` already holds is not written again if something leads to it that will not go away meanwhile: a blob that `index` has, a tree
    /// that [`super::write_tree_after`] finds in the commit before. Anything else somebody's gc may be about to remove, and it is written once more.
    pub fn new(git_dir: &Path, objects: &'a Objects) -> Result<Self> {
        let dir = git_dir.join("objects/pack");
        durable::look(&dir).context(|| format!("cannot write packs into '{}'", dir.display()))?;
        objects.refresh();
        Ok(Self {
            objects,
            index: None,
            in_index: OnceLock::new(),
            git_dir: git_dir.to_owned(),
            dir,
            level: 1,
            temp: OnceLock::new(),
            writeback: Writeback::default(),
            pack: Mutex::new(Pack::default()),
        })
    }

    /// Sets how hard objects are compressed: from 1, as without it, to 12; what is beyond is taken for the nearer of both.
    #[must_use]
    pub fn with_level(self, level: i32) -> Self {
        Self { level: level.clamp(1, MAX_LEVEL), ..self }
    }

    /// Sets the index that git knows, and which stays until a new one with all that is written takes its place.
    #[must_use]
    pub fn with_index(self, index: &'a Index) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Adds a blob.
    pub fn blob(&self, data: &[u8]) -> Result<Oid> {
        self.put(ObjectKind::Blob, data)
    }

    /// Adds a tree from its encoded bytes.
    pub fn tree(&self, data: &[u8]) -> Result<Oid> {
        self.put(ObjectKind::Tree, data)
    }

    /// Adds a commit.
    pub fn commit(&self, commit: &CommitData) -> Result<Oid> {
        self.put(ObjectKind::Commit, &commit.encode()?)
    }

    /// Adds an object and returns its name; one that is already known costs its hash only.
    ///
    /// After an error that left the pack half written (a full disk), every further call fails too.
    pub fn put(&self, kind: ObjectKind, data: &[u8]) -> Result<Oid> {
        let oid = object_id(kind, data)?;
        let name = name_of(&oid);
        if self.lock().knows(&name) {
            return Ok(oid);
        }
        // Of a tree only its parent can tell.
        if (kind == ObjectKind::Tree || self.is_in_index(&name)) && self.objects.contains_quickly(&oid) {
            self.lock().note_stored(name);
        } else {
            self.append(kind, data, name)?;
        }
        Ok(oid)
    }

    /// Adds an object also if the repository holds it: perhaps nothing leads to it there, and somebody's gc is about to remove it.
    pub fn put_anew(&self, kind: ObjectKind, data: &[u8]) -> Result<Oid> {
        let oid = object_id(kind, data)?;
        let name = name_of(&oid);
        if !self.lock().has(&name) {
            self.append(kind, data, name)?;
        }
        Ok(oid)
    }

    /// Says whether the object is in this pack, not only in the repository.
    pub(super) fn has(&self, oid: &Oid) -> bool {
        self.lock().has(&name_of(oid))
    }

    /// Returns the entries of a tree that the repository has, not of one in this pack.
    pub(super) fn stored_tree(&self, oid: &Oid) -> Result<Vec<TreeEntry>> {
        self.objects.tree(oid)
    }

    /// Writes the object `oid` once more, which the repository has, so that nobody can remove it.
    pub fn copy(&self, oid: &Oid) -> Result<()> {
        match self.objects.find(oid)? {
            Some((kind, data)) => self.append(kind, &data, name_of(oid)),
            None => Err(removed_meanwhile(oid)),
        }
    }

    fn append(&self, kind: ObjectKind, data: &[u8], name: Name) -> Result<()> {
        // Hashing, deflating and writing happen outside the lock; only where an object comes to lie is found in turn.
        let full = with_encoded(kind, data, self.level, |encoded, crc| self.lock().append(name, encoded, crc))?;
        full.map_or(Ok(()), |block| self.write(block))
    }

    fn write(&self, block: Block) -> Result<()> {
        let written = self.write_unlocked(&block);
        let mut pack = self.lock();
        match &written {
            Ok(()) => pack.written += block.bytes.len() as u64,
            Err(_) => pack.is_broken = true,
        }
        pack.keep_spare(block.bytes);
        written
    }

    fn write_unlocked(&self, block: &Block) -> Result<()> {
        let file = &self.temp()?.file;
        let written = file.write_all_at(&block.bytes, block.offset);
        written.and_then(|()| self.writeback.wrote(file, block.bytes.len() as u64)).context(|| "cannot write a pack")
    }

    /// Returns the pack's file, made now if this is the first block.
    fn temp(&self) -> Result<&Temp> {
        if let Some(temp) = self.temp.get() {
            return Ok(temp);
        }
        // Where two threads come here at once, the file of one of them is removed again.
        let new = Temp::beside(&self.dir.join("new.pack"), 0o444)?;
        Ok(self.temp.get_or_init(|| new))
    }

    fn is_in_index(&self, name: &Name) -> bool {
        let Some(index) = self.index else { return false };
        let names = self.in_index.get_or_init(|| {
            let mut names: Vec<Name> = index.iter().map(|entry| name_of(&entry.oid)).collect();
            names.sort_unstable();
            names
        });
        names.binary_search(name).is_ok()
    }

    /// Returns how many objects the pack holds so far.
    pub fn n_objects(&self) -> usize {
        self.lock().records.len()
    }

    /// Publishes the pack and its index, durably; `None` if there was nothing new.
    ///
    /// The ref may be moved next; then [`Kept::release`] lets git treat the pack as any other.
    pub fn finish(self) -> Result<Option<Kept>> {
        self.complete()?.publish()
    }

    /// Completes the pack and its index under temporary names.
    pub fn complete(self) -> Result<CompletePack> {
        let last = self.lock().last()?;
        last.map_or(Ok(()), |block| self.write(block))?;
        let Pack { records, stored, length, written, .. } =
            self.pack.into_inner().expect("BUG: a thread panicked while it held the pack");
        if written != length {
            return Err(Error::new(Kind::Bug, "BUG: a part of a pack was not written"));
        }
        let files = self.temp.into_inner().map(|temp| PackFiles::complete(temp, records, &self.dir)).transpose()?;
        Ok(CompletePack { files, stored, git_dir: self.git_dir })
    }

    fn lock(&self) -> MutexGuard<'_, Pack> {
        self.pack.lock().expect("BUG: a thread panicked while it held the pack")
    }
}

/// A complete pack that nobody sees yet. Dropped, it leaves nothing.
#[must_use = "it is not there before it is published"]
pub struct CompletePack {
    files: Option<PackFiles>,
    /// Objects that were already in the repository, to be looked for again.
    stored: Vec<Name>,
    git_dir: PathBuf,
}

impl CompletePack {
    /// Publishes the pack and its index as [`PackWriter::finish`] does.
    pub fn publish(self) -> Result<Option<Kept>> {
        let kept = self.files.map(PackFiles::publish).transpose()?;
        // A gc may have run since we chose not to write what the repository held, unreachable.
        let objects = Objects::open(&self.git_dir)?;
        match self.stored.iter().map(|name| oid_from(*name)).find(|oid| !objects.contains(oid)) {
            Some(oid) => Err(removed_meanwhile(&oid)),
            None => Ok(kept),
        }
    }
}

fn name_of(oid: &Oid) -> Name {
    oid.as_slice().try_into().expect("BUG: an object id is a SHA-1")
}

fn removed_meanwhile(oid: &Oid) -> Error {
    Error::new(Kind::Conflict, format!("object '{oid}' was removed by a gc while it was being referred to; run this again"))
}

impl Kept {
    /// Returns the path of the pack.
    pub fn path(&self) -> &Path {
        &self.pack
    }

    /// Returns how many objects the pack holds.
    pub fn n_objects(&self) -> u32 {
        self.n_objects
    }

    /// Takes the guard away: a ref points at the objects now, durably.
    pub fn release(mut self) -> Result<()> {
        self.is_released = true;
        durable::remove(&self.pack.with_extension("keep"))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.is_released {
            // Best effort: healing removes what stays.
            let _ = durable::remove(&self.pack.with_extension("keep"));
        }
    }
}

/// What our guards say, so that they are told from other people's.
pub(super) const KEEP_NOTE: &[u8] = b"git-devops: not referenced yet\n";

/// Bytes collected before they are written to the disk.
const BUFFER: usize = 256 * 1024;

/// The pack being written: everything that is behind the lock.
#[derive(Default)]
struct Pack {
    /// The end of the pack, which is not handed out to be written yet.
    buffer: Vec<u8>,
    /// Buffers that were written.
    spare: Vec<Vec<u8>>,
    /// Length of the pack so far, with what is still in the buffer.
    length: u64,
    /// How many bytes of it are in the file.
    written: u64,
    records: Vec<Record>,
    /// Objects that were already in the repository, to be looked for again at the end.
    stored: Vec<Name>,
    /// A hash table of all names met, open addressing: 0 is free, `n` is record `n - 1`, and counted down from
    /// the top they are positions in `stored`. Four bytes each instead of the twenty of a name.
    slots: Vec<u32>,
    is_broken: bool,
}

/// A part of the pack to be written, in whatever order.
struct Block {
    offset: u64,
    bytes: Vec<u8>,
}

type Name = [u8; 20];

/// What the pack index tells about an object.
struct Record {
    name: Name,
    crc: u32,
    offset: u64,
}

impl Pack {
    fn knows(&self, name: &Name) -> bool {
        !self.slots.is_empty() && self.slots[self.find_slot(name)] != 0
    }

    /// Says whether the object is in the pack itself.
    fn has(&self, name: &Name) -> bool {
        self.knows(name) && self.slots[self.find_slot(name)] as usize <= self.records.len()
    }

    /// Returns the slot that holds `name`, or the free one where it belongs.
    fn find_slot(&self, name: &Name) -> usize {
        let mask = self.slots.len() - 1;
        let start = u64::from_le_bytes(name[..8].try_into().expect("BUG: 8 bytes are 8 bytes"));
        let mut at = start as usize & mask;
        while self.slots[at] != 0 && self.name_in(self.slots[at]) != name {
            at = (at + 1) & mask;
        }
        at
    }

    fn name_in(&self, slot: u32) -> &Name {
        match self.records.get(slot as usize - 1) {
            Some(record) => &record.name,
            None => &self.stored[(u32::MAX - slot) as usize],
        }
    }

    /// Enters a name that [`Self::knows`] not yet and that was just pushed.
    fn remember(&mut self, name: &Name, slot: u32) {
        let n_names = self.records.len() + self.stored.len();
        if n_names * 4 > self.slots.len() * 3 {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![0; (old.len() * 2).max(1024)];
            for slot in old.into_iter().filter(|slot| *slot != 0) {
                let at = self.find_slot(self.name_in(slot));
                self.slots[at] = slot;
            }
        }
        let at = self.find_slot(name);
        self.slots[at] = slot;
    }

    fn note_stored(&mut self, name: Name) {
        if !self.knows(&name) {
            self.stored.push(name);
            self.remember(&name, u32::MAX - (self.stored.len() - 1) as u32);
        }
    }

    /// Appends an object; returns what is to be written, once there is enough of it.
    fn append(&mut self, name: Name, encoded: &[u8], crc: u32) -> Result<Option<Block>> {
        if self.is_broken {
            return Err(Error::new(Kind::Io, "cannot go on with a pack after a failed write"));
        }
        // Another thread may have added the same object while we deflated it.
        if self.has(&name) {
            return Ok(None);
        }
        if self.records.len() + self.stored.len() >= MAX_OBJECTS {
            return Err(Error::new(Kind::Unsupported, "more than 2000000000 objects at once; commit in parts"));
        }
        if self.length == 0 {
            self.buffer.extend_from_slice(&header(0));
            self.length = HEADER_LEN;
        }
        self.records.push(Record { name, crc, offset: self.length });
        self.remember(&name, self.records.len() as u32);
        self.buffer.extend_from_slice(encoded);
        self.length += encoded.len() as u64;
        Ok((self.buffer.len() >= BUFFER).then(|| self.take_buffer()))
    }

    fn take_buffer(&mut self) -> Block {
        let next = self.spare.pop().unwrap_or_default();
        let bytes = std::mem::replace(&mut self.buffer, next);
        Block { offset: self.length - bytes.len() as u64, bytes }
    }

    /// Takes back the memory of a block that was written.
    fn keep_spare(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        // What a large object made of it is given back.
        bytes.shrink_to(2 * BUFFER);
        self.spare.push(bytes);
    }

    /// Returns what is still to be written; nothing is appended after it.
    fn last(&mut self) -> Result<Option<Block>> {
        if self.is_broken {
            return Err(Error::new(Kind::Io, "cannot finish a pack after a failed write"));
        }
        Ok((!self.buffer.is_empty()).then(|| self.take_buffer()))
    }
}

/// A pack and its index, complete under temporary names.
struct PackFiles {
    pack: Temp,
    index: Temp,
    path: PathBuf,
    n_objects: u32,
}

impl PackFiles {
    /// Completes the pack in `pack`, which is all written, and writes the index of its `records`.
    fn complete(mut pack: Temp, mut records: Vec<Record>, dir: &Path) -> Result<Self> {
        let n_objects = records.len() as u32;
        records.sort_unstable_by_key(|record| record.name);
        let trailer = seal(&mut pack.file, n_objects).context(|| "cannot finish a pack")?;
        let path = dir.join(format!("pack-{}.pack", oid_from(trailer)));
        let mut index = Temp::beside(&path, 0o444)?;
        write_index(&mut index.file, &records, trailer).context(|| "cannot write a pack index")?;
        Ok(Self { pack, index, path, n_objects })
    }

    fn publish(self) -> Result<Kept> {
        let Self { pack, index, path, n_objects } = self;
        let kept = Kept { pack: path.clone(), n_objects, is_released: false };
        write_guard(&path.with_extension("keep"))?;
        // git looks for indexes: this one comes last.
        let idx = path.with_extension("idx");
        let dir = path.parent().expect("BUG: a pack lies in a directory");
        let published = pack.publish_unsynced(&path).and_then(|()| index.publish_unsynced(&idx)).and_then(|()| sync_dir(dir));
        if let Err(error) = published {
            // Best effort: half a pair is garbage, and the whole pair is referred to by nobody.
            let _ = (durable::remove(&idx), durable::remove(&path));
            return Err(error);
        }
        Ok(kept)
    }
}

/// Writes a guard whose note would survive a power cut: one that is empty could be anybody's, and would stay for ever.
fn write_guard(keep: &Path) -> Result<()> {
    let mut temp = Temp::beside(keep, 0o600)?;
    temp.file.write_all(KEEP_NOTE).context(|| format!("cannot write '{}'", keep.display()))?;
    temp.publish_unsynced(keep)
}

/// Keeps positions in records and in stored names apart within 32 bits.
const MAX_OBJECTS: usize = 2_000_000_000;

const HEADER_LEN: u64 = 12;

fn header(n_objects: u32) -> [u8; HEADER_LEN as usize] {
    let mut header = *b"PACK\0\0\0\x02\0\0\0\0";
    header[8..].copy_from_slice(&n_objects.to_be_bytes());
    header
}

/// Sets the number of objects and appends the checksum, which covers that number: hence the second reading.
fn seal(file: &mut File, n_objects: u32) -> Result<[u8; 20]> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header(n_objects))?;
    durable::begin_writeback(file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let trailer = digest(hasher)?;
    file.write_all(&trailer)?;
    Ok(trailer)
}

fn digest(hasher: Hasher) -> Result<[u8; 20]> {
    hasher
        .finalize()
        .map(|digest| digest.to_bytes())
        .map_err(|_| Error::new(Kind::Refused, "a pack happens to look like a SHA-1 collision"))
}

/// Writes a pack index, version 2, of records sorted by their names.
fn write_index(file: &mut File, records: &[Record], pack_trailer: [u8; 20]) -> Result<()> {
    let mut out = Hashing { inner: BufWriter::with_capacity(BUFFER, file), hasher: Hasher::new() };
    out.put(b"\xfftOc\0\0\0\x02")?;
    let mut count = 0;
    for first in 0..=255 {
        count += records[count..].iter().take_while(|record| record.name[0] == first).count();
        out.put(&(count as u32).to_be_bytes())?;
    }
    for record in records {
        out.put(&record.name)?;
    }
    for record in records {
        out.put(&record.crc.to_be_bytes())?;
    }
    let mut n_far = 0;
    for record in records {
        let near = u32::try_from(record.offset).ok().filter(|offset| offset & FAR == 0);
        out.put(&near.unwrap_or(FAR | n_far).to_be_bytes())?;
        n_far += u32::from(near.is_none());
    }
    for record in records.iter().filter(|record| record.offset >= u64::from(FAR)) {
        out.put(&record.offset.to_be_bytes())?;
    }
    out.put(&pack_trailer)?;
    let Hashing { mut inner, hasher } = out;
    inner.write_all(&digest(hasher)?)?;
    Ok(inner.flush()?)
}

/// Marks an offset that stands in the table of 64-bit offsets.
const FAR: u32 = 1 << 31;

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Hashing<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.inner.write_all(bytes)?)
    }
}

/// The highest level of libdeflate.
const MAX_LEVEL: i32 = 12;

/// What deflates at a level, and where it writes: kept by each thread, as its tables take some 200 KB.
struct Deflate {
    level: i32,
    compressor: Compressor,
    out: Vec<u8>,
}

impl Deflate {
    fn new(level: i32) -> Self {
        let wanted = CompressionLvl::new(level).expect("BUG: the level is one");
        Self { level, compressor: Compressor::new(wanted), out: Vec::new() }
    }
}

/// Hands `take` an object as it stands in a pack (header, deflated content) and its CRC.
pub(super) fn with_encoded<T>(kind: ObjectKind, data: &[u8], level: i32, take: impl FnOnce(&[u8], u32) -> T) -> T {
    thread_local! {
        static DEFLATE: RefCell<Option<Deflate>> = const { RefCell::new(None) };
    }
    DEFLATE.with_borrow_mut(|slot| {
        let Deflate { compressor, out, .. } = match slot {
            Some(deflate) if deflate.level == level => deflate,
            _ => slot.insert(Deflate::new(level)),
        };
        out.clear();
        encode_header(kind, data.len() as u64, out);
        let header = out.len();
        out.resize(header + compressor.zlib_compress_bound(data.len()), 0);
        let length = compressor.zlib_compress(data, &mut out[header..]).expect("BUG: there is room for the longest output");
        out.truncate(header + length);
        let mut crc = Crc::new();
        crc.update(out);
        let result = take(out, crc.sum());
        // One large file must not keep its size in memory for every thread.
        out.shrink_to(BUFFER);
        result
    })
}

fn encode_header(kind: ObjectKind, mut size: u64, out: &mut Vec<u8>) {
    let code = match kind {
        ObjectKind::Commit => 1,
        ObjectKind::Tree => 2,
        ObjectKind::Blob => 3,
        ObjectKind::Tag => 4,
    };
    let mut byte = code << 4 | (size & 15) as u8;
    size >>= 4;
    while size > 0 {
        out.push(byte | 0x80);
        byte = (size & 0x7f) as u8;
        size >>= 7;
    }
    out.push(byte);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::git::{Git, Signature};
    use crate::git::{IndexBuilder, IndexEntry};

    fn repo() -> (tempfile::TempDir, Git, Objects) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        (dir, git, objects)
    }

    fn pack_files(git: &Git) -> Vec<String> {
        let entries = fs::read_dir(git.git_dir().join("objects/pack")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.iter().map(|name| name.rsplit('.').next().unwrap().to_owned()).collect()
    }

    /// Returns bytes that deflate cannot shorten.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn commit_of(tree: Oid) -> CommitData {
        let signature = Signature { name: "A".into(), email: "a@b".into(), seconds: 1_700_000_000, offset_minutes: 0 };
        CommitData { tree, parents: vec![], author: signature.clone(), committer: signature, message: b"m\n".to_vec() }
    }

    fn tree_of(blobs: &[Oid]) -> Vec<u8> {
        let mut tree = Vec::new();
        for (at, oid) in blobs.iter().enumerate() {
            crate::git::object::encode_tree_entry(0o100644, format!("{at:08}").as_bytes(), oid, &mut tree);
        }
        tree
    }

    #[test]
    fn a_pack_from_many_threads_satisfies_git() {
        let (_dir, git, objects) = repo();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        // Every thread writes the same names, so that they race for each; sizes go from nothing to past the buffer, and the buffer is full many times.
        let noise = noise(700_000);
        let content = |at: usize| &noise[at * 1000..][..at * at % 30_000];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..500 {
                        writer.blob(content(at)).unwrap();
                    }
                    writer.blob(&noise).unwrap();
                });
            }
        });
        let mut blobs: Vec<_> = (0..500).map(|at| writer.blob(content(at)).unwrap()).collect();
        blobs.push(writer.blob(&noise).unwrap());
        let tree = writer.tree(&tree_of(&blobs)).unwrap();
        let commit = writer.commit(&commit_of(tree)).unwrap();
        assert!(!objects.contains(&commit), "nothing is visible before the end");
        let kept = writer.finish().unwrap().unwrap();
        assert_eq!(pack_files(&git), ["idx", "keep", "pack"]);
        git.run(&["verify-pack".as_ref(), kept.path().as_os_str()]).unwrap();
        git.update_ref("refs/heads/main", commit, None, "m").unwrap();
        kept.release().unwrap();
        assert_eq!(pack_files(&git), ["idx", "pack"]);
        assert_eq!(git.run(&["fsck", "--strict", "--full"]).unwrap(), b"");
        assert_eq!(objects.blob(&blobs[500]).unwrap(), noise);
        let own = fs::read(kept_index(&git)).unwrap();
        let path = git.git_dir().join("objects/pack").join("again.idx");
        git.run(&["index-pack".as_ref(), "-o".as_ref(), path.as_os_str(), kept_index(&git).with_extension("pack").as_os_str()])
            .unwrap();
        assert!(fs::read(path).unwrap() == own, "git writes the same index");
    }

    #[test]
    fn a_higher_level_makes_less_of_the_same_objects() {
        let text: String = (0..20_000).map(|n| format!("line {} of {}\n", n * n % 977, n % 53)).collect();
        let pack_of = |level: i32| {
            let (_dir, git, objects) = repo();
            let writer = PackWriter::new(git.git_dir(), &objects).unwrap().with_level(level);
            let oid = writer.blob(text.as_bytes()).unwrap();
            let kept = writer.finish().unwrap().unwrap();
            assert_eq!(objects.blob(&oid).unwrap(), text.as_bytes());
            fs::metadata(kept.path()).unwrap().len()
        };
        // By one thread, which keeps what deflates.
        let [low, high, beyond, low_again] = [1, 9, 99, 1].map(pack_of);
        assert!(low_again == low && high < low && beyond < high, "{low}, {high}, {beyond}");
    }

    fn kept_index(git: &Git) -> PathBuf {
        let entries = fs::read_dir(git.git_dir().join("objects/pack")).unwrap();
        entries.map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some_and(|e| e == "idx")).unwrap()
    }

    #[test]
    fn a_pack_whose_index_cannot_be_published_is_taken_back() {
        let (_dir, git, objects) = repo();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        writer.blob(b"one").unwrap();
        let kept = writer.finish().unwrap().unwrap();
        let (pack, idx) = (kept.path().to_owned(), kept.path().with_extension("idx"));
        drop(kept);
        fs::remove_file(&pack).unwrap();
        fs::remove_file(&idx).unwrap();
        // The same object gives the same pack again; a directory in its index's place makes the rename fail.
        fs::create_dir(&idx).unwrap();
        let objects = Objects::open(git.git_dir()).unwrap();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        writer.blob(b"one").unwrap();
        writer.finish().unwrap_err();
        assert_eq!(pack_files(&git), ["idx"], "only the directory is left");
    }

    #[test]
    fn nothing_new_writes_nothing_and_an_unfinished_pack_leaves_nothing() {
        let (_dir, git, objects) = repo();
        let index = index_with(b"one");
        let put = |data: &[u8]| {
            let writer = PackWriter::new(git.git_dir(), &objects).unwrap().with_index(&index);
            writer.blob(data).unwrap();
            writer.finish().unwrap().map(|kept| kept.release().unwrap())
        };
        assert!(PackWriter::new(git.git_dir(), &objects).unwrap().finish().unwrap().is_none());
        assert!(put(b"one").is_some());
        assert!(put(b"one").is_none(), "it is in the repository already");
        assert_eq!(pack_files(&git), ["idx", "pack"]);

        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        writer.blob(&noise(2 * BUFFER)).unwrap();
        assert_eq!(pack_files(&git).len(), 3);
        drop(writer);
        assert_eq!(pack_files(&git), ["idx", "pack"]);
    }

    #[test]
    fn a_gc_that_prunes_now_spares_a_pack_until_its_ref_has_moved() {
        let (_dir, git, objects) = repo();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        let tree = writer.tree(b"").unwrap();
        let commit = writer.commit(&commit_of(tree)).unwrap();
        let gc = || git.run(&["gc", "--prune=now", "--quiet"]).unwrap();
        gc();
        let kept = writer.finish().unwrap().unwrap();
        gc();
        git.update_ref("refs/heads/main", commit, None, "m").unwrap();
        kept.release().unwrap();
        gc();
        assert_eq!(git.run(&["fsck", "--strict"]).unwrap(), b"");
        assert_eq!(objects.commit(&commit).unwrap(), commit_of(tree));
    }

    #[test]
    fn an_object_pruned_while_it_was_referred_to_is_a_conflict() {
        let (_dir, git, objects) = repo();
        git.run_with_input(&["hash-object", "-w", "--stdin"], b"old").unwrap();
        let index = index_with(b"old");
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap().with_index(&index);
        writer.blob(b"old").unwrap();
        git.run(&["prune", "--expire=now"]).unwrap();
        assert_eq!(writer.finish().unwrap_err().kind(), Kind::Conflict);
    }

    #[test]
    fn a_blob_that_nothing_leads_to_is_written_again_so_that_no_gc_can_take_it_away() {
        let (_dir, git, objects) = repo();
        git.run_with_input(&["hash-object", "-w", "--stdin"], b"old").unwrap();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        let oid = writer.blob(b"old").unwrap();
        let kept = writer.finish().unwrap().unwrap();
        git.run(&["gc", "--quiet", "--prune=now"]).unwrap();
        assert_eq!(git.run(&["cat-file", "blob", &oid.to_string()]).unwrap(), b"old");
        kept.release().unwrap();
    }

    /// An index in which one file has this content.
    fn index_with(content: &[u8]) -> Index {
        let oid = object_id(ObjectKind::Blob, content).unwrap();
        let (stat, mode) = (Default::default(), 0o100644);
        let mut index = IndexBuilder::default();
        index.push(&IndexEntry { path: b"a", oid, mode, stat, skip_worktree: false, intent_to_add: false }).unwrap();
        index.build()
    }

    #[test]
    fn offsets_past_two_gigabytes_stand_in_their_own_table() {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<_> = [0x7fff_ffff, 12, 0x8000_0000, 0x2_0000_0000]
            .iter()
            .enumerate()
            .map(|(at, offset)| Record { name: [at as u8 * 80; 20], crc: 7, offset: *offset })
            .collect();
        let path = dir.path().join("x.idx");
        write_index(&mut fs::File::create(&path).unwrap(), &records, [5; 20]).unwrap();
        let git = Git::init(&dir.path().join("repo"), "main").unwrap();
        let shown = git.run_with_input(&["show-index", "--object-format=sha1"], &fs::read(path).unwrap()).unwrap();
        let offsets: Vec<_> =
            std::str::from_utf8(&shown).unwrap().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(offsets, ["2147483647", "12", "2147483648", "8589934592"]);
    }

    #[test]
    fn a_full_disk_is_told_as_such_and_leaves_nothing() {
        let (_dir, git, objects) = repo();
        let mut writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        writer.blob(b"small").unwrap();
        writer.temp().unwrap();
        writer.temp.get_mut().unwrap().file = fs::File::options().write(true).open("/dev/full").unwrap();
        let error = writer.blob(&noise(2 * BUFFER)).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{error:#}");
        writer.blob(b"another").unwrap_err();
        writer.finish().unwrap_err();
        assert_eq!(pack_files(&git), Vec::<String>::new());
    }
}
