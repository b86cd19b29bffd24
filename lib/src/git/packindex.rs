//! The index of a pack, version 2: where in the pack each object starts.
//!
//! A small index is kept in memory, of a large one only its first kibibyte: a lookup then reads a block or two.

use std::path::{Path, PathBuf};

use super::inflate::{OpenFiles, Source, SourceId};
use crate::error::{Error, Kind, Result};

/// The index of one pack.
#[derive(Debug)]
pub(super) struct PackIndex {
    path: PathBuf,
    id: SourceId,
    layout: Layout,
    /// The whole file, or nothing where it is read when it is needed.
    bytes: Option<Vec<u8>>,
}

/// What stands where in an index.
#[derive(Debug)]
struct Layout {
    /// For each first byte of a name: how many objects have names up to there.
    fanout: Vec<u32>,
    n_objects: u64,
    n_far: u64,
}

impl PackIndex {
    /// Opens the index at `path`, all of it in memory if it is not longer than `budget`.
    pub fn open(path: &Path, budget: u64) -> Result<Self> {
        let id = SourceId::new();
        let source = Source::open(path, id)?;
        let length = source.length();
        let is_small = length <= budget.min(MAX_IN_MEMORY);
        let mut bytes = vec![0; if is_small { length } else { HEAD as u64 } as usize];
        source.read(0, &mut bytes)?;
        let layout = decode_layout(&bytes, length).map_err(|error| error.wrap(format!("cannot use '{}'", path.display())))?;
        Ok(Self { path: path.to_owned(), id, layout, bytes: is_small.then_some(bytes) })
    }

    /// Returns an index that knows of nothing.
    pub fn empty() -> Self {
        let layout = Layout { fanout: vec![0; 256], n_objects: 0, n_far: 0 };
        Self { path: PathBuf::new(), id: SourceId::new(), layout, bytes: None }
    }

    /// Returns how many bytes the index takes in memory.
    pub fn size_in_memory(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    /// Returns how many objects the pack has.
    pub fn n_objects(&self) -> u64 {
        self.layout.n_objects
    }

    /// Returns the checksum at the end of the pack that this is the index of.
    pub fn pack_trailer(&self, files: &OpenFiles) -> Result<[u8; 20]> {
        let mut trailer = [0; 20];
        self.read(self.layout.end(), &mut trailer, files)?;
        Ok(trailer)
    }

    /// Returns the position in the pack of the object `name`, or `None` if it is not in there.
    pub fn find(&self, name: &[u8; 20], files: &OpenFiles) -> Result<Option<u64>> {
        match self.rank(name, files)? {
            Some(rank) => self.offset(rank, files).map(Some),
            None => Ok(None),
        }
    }

    /// Returns where each object starts and its rank among the names, in the order of the pack.
    pub fn by_offset(&self, files: &OpenFiles) -> Result<Vec<(u64, u32)>> {
        let mut all = Vec::new();
        let mut buffer = [0; OFFSETS_PER_READ as usize * 4];
        for start in (0..self.layout.n_objects).step_by(OFFSETS_PER_READ as usize) {
            let n = OFFSETS_PER_READ.min(self.layout.n_objects - start);
            let near = &mut buffer[..n as usize * 4];
            self.read(self.layout.near_at(start), near, files)?;
            for (rank, near) in (start..).zip(near.as_chunks().0) {
                all.push((self.decode_offset(u32::from_be_bytes(*near), files)?, rank as u32));
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Says whether a search finds each object: the names ascend, none is there twice, and the counts by first byte are theirs.
    pub fn is_in_order(&self, files: &OpenFiles) -> Result<bool> {
        let mut last = None;
        let mut buffer = [0; NAMES_PER_READ as usize * 20];
        for start in (0..self.layout.n_objects).step_by(NAMES_PER_READ as usize) {
            let n = NAMES_PER_READ.min(self.layout.n_objects - start);
            let names = &mut buffer[..n as usize * 20];
            self.read(Layout::name_at(start) as u64, names, files)?;
            for (rank, name) in (start..).zip(names.as_chunks::<20>().0) {
                let (low, high) = self.layout.bucket(name[0]);
                if last.replace(*name).is_some_and(|last| last >= *name) || !(low..high).contains(&rank) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Returns the name of the object that has `rank` names before it.
    pub fn name(&self, rank: u32, files: &OpenFiles) -> Result<[u8; 20]> {
        let mut name = [0; 20];
        self.read(Layout::name_at(rank.into()) as u64, &mut name, files)?;
        Ok(name)
    }

    /// Returns the checksum of that object as it is in the pack, header and all.
    pub fn crc(&self, rank: u32, files: &OpenFiles) -> Result<u32> {
        let mut crc = [0; 4];
        self.read(self.layout.crc_at(rank.into()), &mut crc, files)?;
        Ok(u32::from_be_bytes(crc))
    }

    /// Returns how many names come before `name`, if it is there.
    pub fn rank(&self, name: &[u8; 20], files: &OpenFiles) -> Result<Option<u64>> {
        let (mut low, mut high) = self.layout.bucket(name[0]);
        if let Some(bytes) = &self.bytes {
            return Ok(search(&bytes[Layout::name_at(low)..Layout::name_at(high)], name).ok().map(|at| low + at));
        }
        // Names are evenly spread hashes, so that the first guess nearly always meets the right block.
        let key = u32::from_be_bytes(name[1..5].try_into().expect("BUG: 4 bytes are 4 bytes"));
        let mut guess = low + ((u64::from(key) * (high - low)) >> 32);
        let mut buffer = [0; NAMES_PER_READ as usize * 20];
        while low < high {
            let start = guess.saturating_sub(NAMES_PER_READ / 2).clamp(low, high.saturating_sub(NAMES_PER_READ).max(low));
            let end = (start + NAMES_PER_READ).min(high);
            let names = &mut buffer[..(end - start) as usize * 20];
            self.read(Layout::name_at(start) as u64, names, files)?;
            match search(names, name) {
                Ok(at) => return Ok(Some(start + at)),
                Err(0) => high = start,
                Err(at) if at == end - start => low = end,
                Err(_) => return Ok(None),
            }
            guess = low + (high - low) / 2;
        }
        Ok(None)
    }

    fn offset(&self, rank: u64, files: &OpenFiles) -> Result<u64> {
        let mut near = [0; 4];
        self.read(self.layout.near_at(rank), &mut near, files)?;
        self.decode_offset(u32::from_be_bytes(near), files)
    }

    /// Returns the offset that an entry of the first table stands for.
    fn decode_offset(&self, near: u32, files: &OpenFiles) -> Result<u64> {
        if near & FAR == 0 {
            return Ok(near.into());
        }
        let far_rank = u64::from(near & !FAR);
        if far_rank >= self.layout.n_far {
            return Err(Error::new(Kind::Corrupt, format!("'{}' has an entry that leads nowhere", self.path.display())));
        }
        let mut far = [0; 8];
        self.read(self.layout.far_at(far_rank), &mut far, files)?;
        Ok(u64::from_be_bytes(far))
    }

    fn read(&self, at: u64, buffer: &mut [u8], files: &OpenFiles) -> Result<()> {
        match &self.bytes {
            Some(bytes) => buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]),
            None => files.get(self.id, &self.path, |_| Ok(()))?.read(at, buffer)?,
        }
        Ok(())
    }
}

impl Layout {
    /// Returns the ranks of the names that start with `first`.
    fn bucket(&self, first: u8) -> (u64, u64) {
        let low = if first == 0 { 0 } else { self.fanout[usize::from(first) - 1] };
        (low.into(), self.fanout[usize::from(first)].into())
    }

    fn name_at(rank: u64) -> usize {
        HEAD + rank as usize * 20
    }

    fn crc_at(&self, rank: u64) -> u64 {
        HEAD as u64 + self.n_objects * 20 + rank * 4
    }

    /// After the names and four bytes of checksum for each object.
    fn near_at(&self, rank: u64) -> u64 {
        HEAD as u64 + self.n_objects * 24 + rank * 4
    }

    fn far_at(&self, rank: u64) -> u64 {
        HEAD as u64 + self.n_objects * 28 + rank * 8
    }

    fn end(&self) -> u64 {
        self.far_at(self.n_far)
    }
}

/// Decodes the head of an index whose whole length is `length`.
fn decode_layout(bytes: &[u8], length: u64) -> Result<Layout> {
    let corrupt = |why: &str| Error::new(Kind::Corrupt, format!("the pack index {why}; make it again with 'git index-pack'"));
    match bytes.get(..8) {
        Some(b"\xfftOc\0\0\0\x02") => (),
        Some(head) if &head[..4] == MAGIC => return Err(unsupported()),
        // The first version has no head: it starts with the fanout, which never is that large.
        Some(_) if length >= 256 * 4 + 40 && is_version_1(bytes, length) => return Err(unsupported()),
        _ => return Err(corrupt("has no head that git writes")),
    }
    let fanout: Vec<u32> = bytes
        .get(8..HEAD)
        .ok_or_else(|| corrupt("is cut short"))?
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(u32::from_be_bytes)
        .collect();
    if !fanout.is_sorted() {
        return Err(corrupt("has counts that go backwards"));
    }
    let n_objects = u64::from(fanout[255]);
    let far = length.checked_sub(HEAD as u64 + n_objects * 28 + TAIL).ok_or_else(|| corrupt("is cut short"))?;
    if far % 8 != 0 || far / 8 > n_objects {
        return Err(corrupt("has another length than its counts say"));
    }
    Ok(Layout { fanout, n_objects, n_far: far / 8 })
}

fn is_version_1(bytes: &[u8], length: u64) -> bool {
    let last = bytes.get(255 * 4..256 * 4).map(|last| u32::from_be_bytes(last.try_into().expect("BUG: 4 bytes are 4 bytes")));
    last.is_some_and(|n| 256 * 4 + u64::from(n) * 24 + TAIL == length)
}

fn unsupported() -> Error {
    Error::new(Kind::Unsupported, "the pack index is of a version that git-devops does not read; run 'git repack -adf'")
}

/// Looks for `name` among sorted names, as [`slice::binary_search`] does.
fn search(names: &[u8], name: &[u8; 20]) -> std::result::Result<u64, u64> {
    let (names, _) = names.as_chunks::<20>();
    names.binary_search(name).map(|at| at as u64).map_err(|at| at as u64)
}

const MAGIC: &[u8] = b"\xfftOc";

/// Magic, version and fanout.
const HEAD: usize = 8 + 256 * 4;

/// The checksums of the pack and of the index.
const TAIL: u64 = 40;

/// Marks an offset that stands in the table of 64-bit offsets.
const FAR: u32 = 1 << 31;

/// An index of 560,000 objects; a larger one is read when it is needed.
const MAX_IN_MEMORY: u64 = 16 << 20;

/// Names read at once: 4 KiB.
const NAMES_PER_READ: u64 = 204;

/// Offsets read at once: 4 KiB.
const OFFSETS_PER_READ: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds an index of `names`, which are sorted; the offset of each is its rank, the last ones far.
    fn build(names: &[[u8; 20]], n_far: usize) -> Vec<u8> {
        let mut bytes = b"\xfftOc\0\0\0\x02".to_vec();
        for first in 0..=255 {
            bytes.extend((names.partition_point(|name| name[0] <= first) as u32).to_be_bytes());
        }
        bytes.extend(names.iter().flatten());
        bytes.extend(names.iter().flat_map(|_| [0; 4]));
        let n_near = names.len() - n_far;
        bytes.extend(
            (0..names.len()).flat_map(|at| if at < n_near { at as u32 } else { FAR | (at - n_near) as u32 }.to_be_bytes()),
        );
        bytes.extend((n_near..names.len()).flat_map(|at| (at as u64 + (1 << 32)).to_be_bytes()));
        bytes.extend([7; 40]);
        bytes
    }

    fn open(bytes: &[u8], budget: u64) -> Result<(tempfile::TempDir, PackIndex)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack-x.idx");
        std::fs::write(&path, bytes).unwrap();
        PackIndex::open(&path, budget).map(|index| (dir, index))
    }

    fn name(n: u64) -> [u8; 20] {
        *blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk().unwrap()
    }

    #[test]
    fn every_name_is_found_in_memory_and_on_the_disk() {
        let hashes = |n: u64| (0..n).map(name).collect::<Vec<_>>();
        // All in one bucket and close together: guessing does not help there.
        let crowded: Vec<_> = (0..3000u32)
            .map(|n| {
                let mut name = [9; 20];
                name[16..].copy_from_slice(&n.to_be_bytes());
                name
            })
            .collect();
        for mut names in [hashes(0), hashes(1), hashes(1000), hashes(200_000), crowded] {
            names.sort();
            let n_far = names.len() / 3;
            for budget in [u64::MAX, 0] {
                let (_dir, index) = open(&build(&names, n_far), budget).unwrap();
                assert_eq!(index.size_in_memory() > 0, budget > 0);
                let files = OpenFiles::default();
                for (at, name) in names.iter().enumerate().step_by(names.len() / 1000 + 1) {
                    let offset = at as u64 + if at < names.len() - n_far { 0 } else { 1 << 32 };
                    assert_eq!(index.find(name, &files).unwrap(), Some(offset));
                }
                for n in 0..100 {
                    assert_eq!(index.find(&name(1 << 40 | n), &files).unwrap(), None);
                }
                assert_eq!(index.find(&[0; 20], &files).unwrap(), None);
                assert_eq!(index.find(&[9; 20], &files).unwrap(), None);
                assert_eq!(index.find(&[255; 20], &files).unwrap(), None);
                assert_eq!(index.pack_trailer(&files).unwrap(), [7; 20]);
                let listed = index.by_offset(&files).unwrap();
                assert!(listed.len() == names.len() && listed.iter().enumerate().all(|(at, (_, rank))| at == *rank as usize));
                for (offset, rank) in listed.into_iter().step_by(names.len() / 100 + 1) {
                    let name = index.name(rank, &files).unwrap();
                    assert_eq!((index.find(&name, &files).unwrap(), index.crc(rank, &files).unwrap()), (Some(offset), 0));
                }
            }
        }
    }

    #[test]
    fn names_that_a_search_does_not_find_are_noticed() {
        let names: Vec<_> = (0..500u32).map(|n| name(n.into())).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let check = |change: &dyn Fn(&mut [u8]), is_in_order: bool| {
            let mut bytes = build(&names, 0);
            change(&mut bytes);
            for budget in [u64::MAX, 0] {
                let (_dir, index) = open(&bytes, budget).unwrap();
                assert_eq!(index.is_in_order(&OpenFiles::default()).unwrap(), is_in_order);
            }
        };
        check(&|_| (), true);
        // Twice, and in the wrong order, also where one read ends and the next begins.
        for at in [0, 1, 203, 204, 498] {
            let [this, next] = [0, 1].map(|more| Layout::name_at(at + more));
            check(&|bytes| bytes.copy_within(this..this + 20, next), false);
            check(&|bytes| (0..20).for_each(|byte| bytes.swap(this + byte, next + byte)), false);
        }
        // A count that has one of the next first byte.
        check(&|bytes| bytes[8 + 100 * 4 + 3] += 1, false);
    }

    #[test]
    fn an_index_that_does_not_hold_is_refused() {
        let names: Vec<_> = (0..9).map(|n| [n; 20]).collect();
        let good = build(&names, 2);
        // Shorter by one far offset is a good length too; then the trailer is found not to be the pack's.
        for length in (0..good.len()).filter(|length| ![8, 16].contains(&(good.len() - length))) {
            let error = open(&good[..length], u64::MAX).err();
            assert_eq!(error.map(|error| error.kind()), Some(Kind::Corrupt), "{length} bytes");
        }
        let check = |bytes: &[u8], kind: Kind, words: &str| {
            let error = open(bytes, u64::MAX).expect_err("refused");
            assert_eq!(error.kind(), kind);
            assert!(format!("{error:#}").contains(words), "{error:#}");
        };
        check(&[&good[..7], b"\x03", &good[8..]].concat(), Kind::Unsupported, "git repack");
        check(&[&good[8..HEAD], &[0; 9 * 24 + 40]].concat(), Kind::Unsupported, "git repack");
        check(&[&good[..8], b"\xff", &good[9..]].concat(), Kind::Corrupt, "backwards");
        check(&[&good[..], b"x"].concat(), Kind::Corrupt, "another length");
        let mut wild = good.clone();
        wild[good.len() - 40 - 16 - 4..][..4].copy_from_slice(&(FAR | 2).to_be_bytes());
        let (_dir, index) = open(&wild, 0).unwrap();
        assert_eq!(index.find(&[8; 20], &OpenFiles::default()).unwrap_err().kind(), Kind::Corrupt);
    }
}
