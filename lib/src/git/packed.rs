//! Packs: many objects in one file, some of them as deltas from others.
//!
//! Nothing is mapped: what is in memory at any time is an index or a part of it, some blocks, the objects being
//! made, and the bases of deltas lately used, all of it bounded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::delta;
use super::inflate::{OpenFiles, Reader, Source, SourceId};
use super::packindex::PackIndex;
use super::{ObjectKind, Oid};
use crate::error::{Context, Error, Kind, Result};

/// A pack and its index; the pack itself is opened when it is read.
#[derive(Debug)]
pub(super) struct Pack {
    id: SourceId,
    path: PathBuf,
    index: PackIndex,
    /// Whether head and trailer may be damaged: then only the objects themselves count.
    is_lenient: bool,
}

/// Is told how many bytes are about to be in memory.
pub(super) type Claim<'a> = &'a mut dyn FnMut(u64);

/// What the packs of a repository share: files and memory.
#[derive(Default)]
pub(super) struct Shared {
    pub files: OpenFiles,
    bases: Bases,
}

impl Pack {
    /// Opens the pack with the index at `path`, all of it in memory if it is not longer than `budget`.
    pub fn open(path: &Path, budget: u64) -> Result<Self> {
        Ok(Self {
            id: SourceId::new(),
            path: path.with_extension("pack"),
            index: PackIndex::open(path, budget)?,
            is_lenient: false,
        })
    }

    /// Does so to read what is sound in it, whatever its head and its trailer say.
    pub fn open_damaged(path: &Path, budget: u64) -> Result<Self> {
        Ok(Self { is_lenient: true, ..Self::open(path, budget)? })
    }

    /// Does so with the pack at `path`, whose index is missing or of no use.
    pub fn without_index(path: &Path) -> Self {
        Self { id: SourceId::new(), path: path.to_owned(), index: PackIndex::empty(), is_lenient: true }
    }

    /// Returns where objects start: each begins where the one before ends, and after one that is damaged nobody knows.
    pub fn walk(&self, shared: &Shared, reader: &mut Reader) -> Result<Vec<u64>> {
        let source = self.source(shared, reader)?;
        let (mut starts, mut at) = (Vec::new(), HEAD);
        while let Ok(entry) = read_entry(&source, at, reader)
            && let Ok(length) = reader.deflated_length(&source, entry.content, entry.size)
        {
            starts.push(at);
            at = entry.content + length;
        }
        Ok(starts)
    }

    /// Returns the index.
    pub fn index(&self) -> &PackIndex {
        &self.index
    }

    /// Returns how many bytes the index takes in memory.
    pub fn size_in_memory(&self) -> u64 {
        self.index.size_in_memory()
    }

    /// Returns where the object `oid` starts, or `None` if it is not in here.
    pub fn find(&self, oid: &Oid, shared: &Shared) -> Result<Option<u64>> {
        let name = oid.as_slice().try_into().expect("BUG: an object id is a SHA-1");
        self.index.find(name, &shared.files)
    }

    /// Returns the kind and the content of the object at `offset`.
    ///
    /// An error of the kind `NotFound` means that the pack is gone, as happens in every gc.
    pub fn read(&self, offset: u64, shared: &Shared, reader: &mut Reader) -> Result<(ObjectKind, Vec<u8>)> {
        self.read_claiming(offset, shared, reader, &mut |_| ())
    }

    /// Does so, and tells `claim` the size of each object and delta before that is in memory.
    pub fn read_claiming(
        &self,
        offset: u64,
        shared: &Shared,
        reader: &mut Reader,
        claim: Claim<'_>,
    ) -> Result<(ObjectKind, Vec<u8>)> {
        let source = self.source(shared, reader)?;
        self.read_chain(offset, &source, shared, reader, claim).context(|| self.damage(offset))
    }

    /// Returns the kind and the size of the object at `offset`; errors are as for [`Self::read`].
    pub fn header(&self, offset: u64, shared: &Shared, reader: &mut Reader) -> Result<(ObjectKind, u64)> {
        let source = self.source(shared, reader)?;
        self.read_header(offset, &source, shared, reader).context(|| self.damage(offset))
    }

    /// Returns the sentence that tells where damage is.
    pub fn damage(&self, offset: u64) -> String {
        format!("pack '{}' cannot be read at byte {offset}", self.path.display())
    }

    /// Returns the file, open.
    pub fn source(&self, shared: &Shared, reader: &mut Reader) -> Result<Arc<Source>> {
        reader.source(&shared.files, self.id, &self.path, |source| {
            self.check(source, shared).context(|| format!("cannot use pack '{}'", self.path.display()))
        })
    }

    /// Refuses a file that is not the pack which the index is of.
    fn check(&self, source: &Source, shared: &Shared) -> Result<()> {
        let corrupt = |why: &str| Error::new(Kind::Corrupt, why);
        if source.length() < HEAD + TRAILER {
            return Err(corrupt("it is cut short"));
        }
        if self.is_lenient {
            return Ok(());
        }
        let (mut head, mut trailer) = ([0; HEAD as usize], [0; TRAILER as usize]);
        source.read(0, &mut head)?;
        source.read(source.length() - TRAILER, &mut trailer)?;
        if !matches!(&head[..8], b"PACK\0\0\0\x02" | b"PACK\0\0\0\x03") {
            return Err(corrupt("it does not start as a pack does"));
        }
        let n_objects = u32::from_be_bytes(head[8..].try_into().expect("BUG: 4 bytes are 4 bytes"));
        if u64::from(n_objects) != self.index.n_objects() || trailer != self.index.pack_trailer(&shared.files)? {
            return Err(corrupt("its index is not of this pack; make it again with 'git index-pack'"));
        }
        Ok(())
    }

    fn read_chain(
        &self,
        offset: u64,
        source: &Source,
        shared: &Shared,
        reader: &mut Reader,
        claim: Claim<'_>,
    ) -> Result<(ObjectKind, Vec<u8>)> {
        let mut deltas: Vec<Entry> = Vec::new();
        let mut at = offset;
        let (kind, mut content) = loop {
            if let Some(base) = shared.bases.get(self.id, at) {
                break base;
            }
            let entry = read_entry(source, at, reader)?;
            match self.base_of(&entry, shared)? {
                Base::None(kind) => {
                    claim(entry.size);
                    let content = reader.inflate(source, entry.content, entry.size)?;
                    if deltas.is_empty() {
                        return Ok((kind, content));
                    }
                    break (kind, Arc::new(content));
                }
                Base::At(base) => at = base,
            }
            deltas.push(entry);
            check_depth(deltas.len())?;
        };
        for entry in deltas.iter().rev() {
            claim(entry.size);
            let delta = reader.inflate(source, entry.content, entry.size)?;
            // It may be much larger than what it is made of.
            claim(delta::decode_sizes(&delta).map_or(0, |sizes| sizes.result));
            let result = delta::apply(&content, &delta)?;
            shared.bases.put(self.id, at, kind, content);
            (at, content) = (entry.start, Arc::new(result));
        }
        Ok((kind, Arc::try_unwrap(content).unwrap_or_else(|shared| (*shared).clone())))
    }

    fn read_header(&self, offset: u64, source: &Source, shared: &Shared, reader: &mut Reader) -> Result<(ObjectKind, u64)> {
        let mut at = offset;
        let mut size = None;
        for depth in 0.. {
            check_depth(depth)?;
            let entry = read_entry(source, at, reader)?;
            match self.base_of(&entry, shared)? {
                Base::None(kind) => return Ok((kind, size.unwrap_or(entry.size))),
                Base::At(base) if size.is_none() => {
                    let start = reader.inflate_start(source, entry.content, delta::MAX_SIZES)?;
                    let sizes = delta::decode_sizes(&start).ok_or_else(|| Error::new(Kind::Corrupt, "a delta has no sizes"))?;
                    (size, at) = (Some(sizes.result), base);
                }
                Base::At(base) => at = base,
            }
        }
        unreachable!("BUG: the depth of a chain is checked")
    }

    fn base_of(&self, entry: &Entry, shared: &Shared) -> Result<Base> {
        match entry.form {
            Form::Whole(kind) => Ok(Base::None(kind)),
            Form::Offset(distance) => match entry.start.checked_sub(distance) {
                Some(base) if distance > 0 => Ok(Base::At(base)),
                _ => Err(Error::new(Kind::Corrupt, "a delta has a base outside of the pack")),
            },
            Form::Name(name) => match self.index.find(&name, &shared.files)? {
                Some(base) => Ok(Base::At(base)),
                None => Err(Error::new(Kind::Corrupt, "a delta has a base that is not in the pack")),
            },
        }
    }
}

/// An object in a pack, before its content.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    /// Where the deflated content starts.
    content: u64,
    /// Bytes of the inflated content, which is a delta where there is a base.
    size: u64,
    form: Form,
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    Whole(ObjectKind),
    /// A delta from the object that starts so many bytes earlier.
    Offset(u64),
    /// A delta from the object of this name in the same pack.
    Name([u8; 20]),
}

enum Base {
    None(ObjectKind),
    At(u64),
}

fn read_entry(source: &Source, start: u64, reader: &mut Reader) -> Result<Entry> {
    let end = source.length() - TRAILER;
    if start < HEAD || start >= end {
        return Err(Error::new(Kind::Corrupt, "an object starts outside of the pack"));
    }
    let bytes = reader.peek(source, start, MAX_ENTRY_HEAD)?;
    decode_entry(bytes, start).ok_or_else(|| Error::new(Kind::Corrupt, "an object has no header that git writes"))
}

/// Decodes the header of the object that starts at `start` with `bytes`.
fn decode_entry(bytes: &[u8], start: u64) -> Option<Entry> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut size = u64::from(first & 15);
    let mut byte = first;
    let mut shift = 4;
    while byte & 0x80 != 0 {
        (byte, rest) = rest.split_first().map(|(byte, rest)| (*byte, rest))?;
        // 60 bits and more are no size, but a way to overflow.
        if shift > 53 {
            return None;
        }
        size |= u64::from(byte & 0x7f) << shift;
        shift += 7;
    }
    let form = match first >> 4 & 7 {
        1 => Form::Whole(ObjectKind::Commit),
        2 => Form::Whole(ObjectKind::Tree),
        3 => Form::Whole(ObjectKind::Blob),
        4 => Form::Whole(ObjectKind::Tag),
        6 => {
            let (distance, length) = decode_distance(rest)?;
            rest = &rest[length..];
            Form::Offset(distance)
        }
        7 => {
            let (name, after) = rest.split_first_chunk()?;
            rest = after;
            Form::Name(*name)
        }
        _ => return None,
    };
    Some(Entry { start, content: start + (bytes.len() - rest.len()) as u64, size, form })
}

/// Decodes a distance: seven bits in each byte, highest first, and one is added at each step.
fn decode_distance(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut distance = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(8) {
        distance = distance << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((distance, at + 1));
        }
        distance += 1;
    }
    None
}

fn check_depth(depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::new(Kind::Corrupt, "a chain of deltas never ends; run 'git repack -adF'"));
    }
    Ok(())
}

/// Twice and more what git writes.
const MAX_DEPTH: usize = 10_000;

const HEAD: u64 = 12;
const TRAILER: u64 = 20;

/// Ten bytes of kind and size, and the name of a base.
const MAX_ENTRY_HEAD: usize = 30;

/// Objects that others were made from lately, so that a chain of deltas is not walked again for each object in it.
///
/// There are two generations: what is used moves to the new one, and when that is full the old one is dropped.
#[derive(Default)]
struct Bases(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    new: HashMap<Place, (ObjectKind, Arc<Vec<u8>>)>,
    old: HashMap<Place, (ObjectKind, Arc<Vec<u8>>)>,
    n_new_bytes: usize,
}

type Place = (SourceId, u64);

impl Bases {
    fn get(&self, id: SourceId, at: u64) -> Option<(ObjectKind, Arc<Vec<u8>>)> {
        let mut generations = self.0.lock().expect("BUG: a thread panicked while it held the bases");
        if let Some((kind, content)) = generations.new.get(&(id, at)) {
            return Some((*kind, Arc::clone(content)));
        }
        let (kind, content) = generations.old.remove(&(id, at))?;
        generations.put((id, at), kind, Arc::clone(&content));
        Some((kind, content))
    }

    fn put(&self, id: SourceId, at: u64, kind: ObjectKind, content: Arc<Vec<u8>>) {
        if content.len() <= GENERATION / 2 {
            self.0.lock().expect("BUG: a thread panicked while it held the bases").put((id, at), kind, content);
        }
    }
}

impl Generations {
    fn put(&mut self, place: Place, kind: ObjectKind, content: Arc<Vec<u8>>) {
        let size = content.len() + ENTRY_OVERHEAD;
        if self.n_new_bytes + size > GENERATION {
            self.old = std::mem::take(&mut self.new);
            self.n_new_bytes = 0;
        }
        if self.new.insert(place, (kind, content)).is_none() {
            self.n_new_bytes += size;
        }
    }
}

/// Bytes of a generation, of which there are two.
const GENERATION: usize = 8 << 20;

/// What an entry takes beside its content, roughly.
const ENTRY_OVERHEAD: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_kind_a_size_and_perhaps_a_base() {
        let decode = |bytes: &[u8]| decode_entry(bytes, 100).map(|entry| (entry.form, entry.size, entry.content));
        assert_eq!(decode(&[0x35, 9]), Some((Form::Whole(ObjectKind::Blob), 5, 101)));
        assert_eq!(decode(&[0x95, 0x01]), Some((Form::Whole(ObjectKind::Commit), 0x15, 102)));
        assert_eq!(decode(&[0xa0, 0x80, 0x01]), Some((Form::Whole(ObjectKind::Tree), 1 << 11, 103)));
        assert_eq!(decode(&[0x60, 0x05]), Some((Form::Offset(5), 0, 102)));
        assert_eq!(decode(&[0x60, 0x80, 0x00]), Some((Form::Offset(128), 0, 103)));
        let named = [&[0x71][..], &[7; 20]].concat();
        assert_eq!(decode(&named), Some((Form::Name([7; 20]), 1, 121)));
        for bad in [&b""[..], &[0x05], &[0x55], &[0xb5], &[0x60], &[0x60, 0x80], &named[..20], &[0xff; 30]] {
            assert_eq!(decode(bad), None, "{bad:x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_header_or_refused(bytes: Vec<u8>) {
            if let Some(entry) = decode_entry(&bytes, 12) {
                proptest::prop_assert!(entry.content <= 12 + bytes.len() as u64 && entry.size < 1 << 60);
            }
        }
    }

    #[test]
    fn bases_are_kept_while_they_are_used_and_within_a_budget() {
        let bases = Bases::default();
        let id = SourceId::new();
        let put = |at: u64| bases.put(id, at, ObjectKind::Tree, Arc::new(vec![at as u8; 100_000]));
        put(0);
        for at in 1..1000 {
            put(at);
            assert_eq!(bases.get(id, 0).expect("used all the time").1[0], 0);
        }
        assert!(bases.get(id, 999).is_some() && bases.get(id, 1).is_none() && bases.get(SourceId::new(), 999).is_none());
        let generations = bases.0.lock().unwrap();
        let n_bytes: usize = generations.new.values().chain(generations.old.values()).map(|(_, content)| content.len()).sum();
        assert!(n_bytes <= 2 * GENERATION, "{n_bytes}");
    }

    /// Writes a pack of `entries` (name, bytes) with its index, and opens it.
    fn pack_of(dir: &Path, entries: &[([u8; 20], Vec<u8>)]) -> Pack {
        let mut pack = [&b"PACK\0\0\0\x02"[..], &(entries.len() as u32).to_be_bytes()].concat();
        let mut idx = b"\xfftOc\0\0\0\x02".to_vec();
        for first in 0..=255 {
            idx.extend((entries.iter().filter(|(name, _)| name[0] <= first).count() as u32).to_be_bytes());
        }
        idx.extend(entries.iter().flat_map(|(name, _)| *name));
        idx.extend(entries.iter().flat_map(|_| [0; 4]));
        for (_, bytes) in entries {
            idx.extend((pack.len() as u32).to_be_bytes());
            pack.extend(bytes);
        }
        pack.extend([1; 20]);
        idx.extend([1; 40]);
        let path = dir.join("pack-x.idx");
        std::fs::write(&path, idx).unwrap();
        std::fs::write(path.with_extension("pack"), pack).unwrap();
        Pack::open(&path, u64::MAX).unwrap()
    }

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn what_its_writer_made_longer_than_it_was_is_read_too() {
        use std::io::Write;
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        for byte in b"a block for each byte".repeat(10) {
            out.write_all(&[byte]).unwrap();
            out.flush().unwrap();
        }
        let entry = [&[0xb2, 0x0d][..], &out.finish().unwrap()].concat();
        assert!(entry.len() > 1000);
        let dir = tempfile::tempdir().unwrap();
        let pack = pack_of(dir.path(), &[([1; 20], entry)]);
        let (shared, mut reader) = (Shared::default(), Reader::new());
        let offset = pack.find(&Oid::Sha1([1; 20]), &shared).unwrap().unwrap();
        let (kind, content) = pack.read(offset, &shared, &mut reader).unwrap();
        assert_eq!((kind, content), (ObjectKind::Blob, b"a block for each byte".repeat(10)));
    }

    #[test]
    fn what_comes_out_is_claimed_before_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let base = [&[0xb0, 0x06][..], &deflated(&[7; 96])].concat();
        // From 96 bytes makes 2 MiB: copies all of it again and again.
        let steps = [&[0x90, 96][..]; (2 << 20) / 96].concat();
        let made = steps.len() / 2 * 96;
        let number = |mut n: usize| {
            let mut bytes = Vec::new();
            while n > 0x7f {
                bytes.push(n as u8 | 0x80);
                n >>= 7;
            }
            bytes.push(n as u8);
            bytes
        };
        let delta = [&[96][..], &number(made), &steps].concat();
        let n = delta.len();
        let head = [0xf0 | (n & 15) as u8, 0x80 | (n >> 4 & 0x7f) as u8, (n >> 11) as u8];
        let entry = [&head[..], &[1; 20], &deflated(&delta)].concat();
        let pack = pack_of(dir.path(), &[([1; 20], base), ([2; 20], entry)]);
        let (shared, mut reader, mut claimed) = (Shared::default(), Reader::new(), Vec::new());
        let offset = pack.find(&Oid::Sha1([2; 20]), &shared).unwrap().unwrap();
        let (_, content) = pack.read_claiming(offset, &shared, &mut reader, &mut |n| claimed.push(n)).unwrap();
        assert_eq!((content.len(), claimed), (made, vec![96, n as u64, made as u64]));
    }

    #[test]
    fn a_circle_of_deltas_and_a_size_that_is_a_lie_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let delta_from = |name: u8| [&[0x73][..], &[name; 20], &deflated(&[1, 1, 0x90])].concat();
        let lie = [&[0xbf, 0xff, 0xff, 0xff, 0x3f][..], &deflated(b"short")].concat();
        let bomb = [&[0x35][..], &deflated(&[0; 1_000_000])].concat();
        let entries =
            [([1; 20], delta_from(2)), ([2; 20], delta_from(1)), ([3; 20], lie), ([4; 20], bomb), ([5; 20], delta_from(9))];
        let pack = pack_of(dir.path(), &entries);
        let (shared, mut reader) = (Shared::default(), Reader::new());
        for (n, words) in [(1, "never ends"), (2, "never ends"), (3, "another size"), (4, "another size"), (5, "not in the pack")]
        {
            let offset = pack.find(&Oid::Sha1([n; 20]), &shared).unwrap().unwrap();
            let error = pack.read(offset, &shared, &mut reader).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error:#}");
            assert!(format!("{error:#}").contains(words), "{error:#}");
        }
    }
}
