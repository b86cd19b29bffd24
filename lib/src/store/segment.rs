//! Index segments: which chunk lies where, sorted, immutable, derived from the packs: `docs/formats/index-segment.md`.
//!
//! In memory a segment is its pack table, one anchor per block and a filter: 1.4 bytes per chunk. A lookup reads one block.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pack::{check_version, corrupt, hash_at, le32, le64};
use crate::durable::{self, Temp};
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};

pub(super) const BLOCK_LEN: usize = 4096;
pub(super) const ENTRY_LEN: usize = 48;
/// Entries in a full block; the 16 bytes behind them are the block's checksum.
pub(super) const BLOCK_ENTRIES: usize = 85;
pub(super) const TRAILER_LEN: usize = 128;
const CHECKED_LEN: usize = BLOCK_LEN - 16;
const ANCHOR_LEN: usize = 8;
const PACK_ID_LEN: usize = 32;
/// A filter group is one cache line, in which all bits of a chunk lie.
const GROUP_LEN: usize = 64;
const FILTER_BITS_PER_ENTRY: u64 = 10;
const FILTER_PROBES: u32 = 7;
const MAGIC: &[u8; 8] = b"gdo-seg\n";

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub id: ChunkId,
    /// Which pack of the segment's pack table.
    pub pack: u32,
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
}

/// Names a segment: BLAKE3 of its trailer, which holds the hashes of everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SegmentId(pub [u8; 32]);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// The end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub n_entries: u64,
    pub n_packs: u32,
    n_groups: u32,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    blocks_hash: [u8; 32],
    tables_hash: [u8; 32],
}

impl Trailer {
    fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(&self.n_entries.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.n_packs.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.n_groups.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.blocks_hash);
        bytes[64..96].copy_from_slice(&self.tables_hash);
        bytes[116..120].copy_from_slice(&1u32.to_le_bytes());
        bytes[120..].copy_from_slice(MAGIC);
        bytes
    }

    /// Decodes the last bytes of a segment that is `len` bytes long and has the name `id`.
    pub fn decode(bytes: &[u8], len: u64, id: SegmentId) -> Result<Self> {
        if bytes.len() != TRAILER_LEN || &bytes[120..] != MAGIC {
            return Err(corrupt("index segment does not end in a trailer"));
        }
        // Its name comes from the trailer in every version, so that a version that rotted is told from a newer one.
        if blake3::hash(bytes) != blake3::Hash::from_bytes(id.0) {
            return Err(corrupt("index segment does not match its name"));
        }
        check_version("index segment", le32(bytes, 116))?;
        let trailer = Self {
            n_entries: le64(bytes, 0),
            n_packs: le32(bytes, 8),
            n_groups: le32(bytes, 12),
            plain_bytes: le64(bytes, 16),
            stored_bytes: le64(bytes, 24),
            blocks_hash: hash_at(bytes, 32),
            tables_hash: hash_at(bytes, 64),
        };
        let is_whole = trailer.n_entries != 0 && trailer.n_entries <= u64::from(u32::MAX) && trailer.file_len() == len;
        if !is_whole || trailer.n_packs == 0 || trailer.n_groups == 0 || bytes[96..116] != [0; 20] {
            return Err(corrupt(format!("index segment trailer does not fit a segment of {len} bytes")));
        }
        Ok(trailer)
    }

    fn n_blocks(&self) -> u64 {
        self.n_entries.div_ceil(BLOCK_ENTRIES as u64)
    }

    fn anchors_at(&self) -> usize {
        self.n_packs as usize * PACK_ID_LEN
    }

    fn filter_at(&self) -> usize {
        self.anchors_at() + self.n_blocks() as usize * ANCHOR_LEN
    }

    /// Returns the length of pack table, anchors and filter.
    fn tables_len(&self) -> usize {
        self.filter_at() + self.n_groups as usize * GROUP_LEN
    }

    fn file_len(&self) -> u64 {
        self.n_blocks() * BLOCK_LEN as u64 + self.tables_len() as u64 + TRAILER_LEN as u64
    }

    fn entries_in(&self, block: u64) -> usize {
        (self.n_entries - block * BLOCK_ENTRIES as u64).min(BLOCK_ENTRIES as u64) as usize
    }
}

/// Decodes trailer and entries of a segment in memory, under whatever name fits it; returns the number of entries.
pub(super) fn decode_all(bytes: &[u8]) -> Result<u64> {
    let at = bytes.len().checked_sub(TRAILER_LEN).ok_or_else(|| corrupt("index segment is cut short"))?;
    let id = SegmentId(*blake3::hash(&bytes[at..]).as_bytes());
    let trailer = Trailer::decode(&bytes[at..], bytes.len() as u64, id)?;
    for (number, block) in bytes.chunks_exact(BLOCK_LEN).take(trailer.n_blocks() as usize).enumerate() {
        check_block(block)?;
        for i in 0..trailer.entries_in(number as u64) {
            entry_at(block, i, trailer.n_packs)?;
        }
    }
    Ok(trailer.n_entries)
}

/// Says whether the checksum of a block holds.
pub(super) fn check_block(block: &[u8]) -> Result<()> {
    match block_checksum(&block[..CHECKED_LEN]) == block[CHECKED_LEN..BLOCK_LEN] {
        true => Ok(()),
        false => Err(corrupt("a block of an index segment does not match its checksum")),
    }
}

fn block_checksum(entries: &[u8]) -> [u8; 16] {
    blake3::hash(entries).as_bytes()[..16].try_into().expect("BUG: 16 of 32 bytes")
}

fn entry_at(block: &[u8], i: usize, n_packs: u32) -> Result<Entry> {
    let raw = &block[i * ENTRY_LEN..][..ENTRY_LEN];
    let entry = Entry {
        id: ChunkId::from_bytes(hash_at(raw, 0)),
        pack: le32(raw, 32),
        offset: le32(raw, 36),
        stored_len: le32(raw, 40),
        plain_len: le32(raw, 44),
    };
    match entry.pack < n_packs {
        true => Ok(entry),
        false => Err(corrupt("an entry of an index segment names a pack that is not in its table")),
    }
}

/// Returns the filter group of `id` and 63 bits, 9 for each probe in it.
fn filter_place(id: &ChunkId, n_groups: u32) -> (usize, u64) {
    let group = (u128::from(le64(id.as_bytes(), 8)) * u128::from(n_groups)) >> 64;
    (group as usize * GROUP_LEN, le64(id.as_bytes(), 16))
}

fn filter_insert(filter: &mut [u8], id: &ChunkId, n_groups: u32) {
    let (at, bits) = filter_place(id, n_groups);
    for probe in 0..FILTER_PROBES {
        let bit = (bits >> (9 * probe)) as usize & 511;
        filter[at + bit / 8] |= 1 << (bit % 8);
    }
}

fn filter_has(filter: &[u8], id: &ChunkId, n_groups: u32) -> bool {
    let (at, bits) = filter_place(id, n_groups);
    let group = &filter[at..at + GROUP_LEN];
    (0..FILTER_PROBES).all(|probe| {
        let bit = (bits >> (9 * probe)) as usize & 511;
        group[bit / 8] >> (bit % 8) & 1 == 1
    })
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub id: SegmentId,
    pub trailer: Trailer,
    file: File,
    /// Pack table, anchors and filter, as they lie in the file.
    tables: Vec<u8>,
}

impl Segment {
    /// Opens the segment `id` in the directory `dir` and loads its tables.
    pub fn open(dir: &Path, id: SegmentId) -> Result<Self> {
        let path = path_of(dir, id);
        let what = || format!("cannot open index segment '{}'", path.display());
        let file = durable::open(&path).context(what)?;
        let len = file.metadata().context(what)?.len();
        let at = len.checked_sub(TRAILER_LEN as u64).ok_or_else(|| corrupt("index segment is cut short")).context(what)?;
        let mut raw = [0; TRAILER_LEN];
        file.read_exact_at(&mut raw, at).context(what)?;
        let trailer = Trailer::decode(&raw, len, id).context(what)?;
        // The trailer fits the length of the file, so this is no more than the file has.
        let mut tables = vec![0; trailer.tables_len()];
        file.read_exact_at(&mut tables, trailer.n_blocks() * BLOCK_LEN as u64).context(what)?;
        if blake3::hash(&tables) != blake3::Hash::from_bytes(trailer.tables_hash) {
            return Err(corrupt("tables of the index segment do not match their checksum").wrap(what()));
        }
        Ok(Self { id, trailer, file, tables })
    }

    /// Returns the id of a pack by its place in the pack table.
    pub fn pack(&self, pack: u32) -> PackId {
        PackId::from_bytes(hash_at(&self.tables, pack as usize * PACK_ID_LEN))
    }

    /// Returns every pack whose chunks this segment lists.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        (0..self.trailer.n_packs).map(|pack| self.pack(pack))
    }

    /// Looks `id` up: its place among the entries, and the entry.
    pub fn find(&self, id: &ChunkId) -> Result<Option<(u64, Entry)>> {
        if self.may_have(id) { self.find_in_block_of(id, &mut LastBlock::default()) } else { Ok(None) }
    }

    /// Does so after others, of which the `last` may have been in the same block of this segment.
    pub fn find_near(&self, id: &ChunkId, last: &mut LastBlock) -> Result<Option<(u64, Entry)>> {
        if self.may_have(id) { self.find_in_block_of(id, last) } else { Ok(None) }
    }

    fn may_have(&self, id: &ChunkId) -> bool {
        filter_has(&self.tables[self.trailer.filter_at()..], id, self.trailer.n_groups)
    }

    fn find_in_block_of(&self, id: &ChunkId, last: &mut LastBlock) -> Result<Option<(u64, Entry)>> {
        let (prefix, anchors) = (&id.as_bytes()[..ANCHOR_LEN], self.anchors());
        // Usually one block; two when the anchor of the second has the same first 8 bytes.
        let mut block = anchors.partition_point(|anchor| anchor[..] < *prefix).saturating_sub(1) as u64;
        while anchors.get(block as usize).is_some_and(|anchor| anchor[..] <= *prefix) {
            if last.block != Some(block) {
                last.block = None;
                self.read_blocks(block, &mut last.bytes)?;
                check_block(&last.bytes)?;
                last.block = Some(block);
            }
            if let Some(i) = find_in_block(&last.bytes, self.trailer.entries_in(block), id) {
                let position = block * BLOCK_ENTRIES as u64 + i as u64;
                return Ok(Some((position, entry_at(&last.bytes, i, self.trailer.n_packs)?)));
            }
            block += 1;
        }
        Ok(None)
    }

    /// Reads all entries in order.
    pub fn entries(self: &Arc<Self>) -> Cursor {
        Cursor { segment: Arc::clone(self), next: 0, buffer: Vec::new(), hasher: None }
    }

    /// Reads and verifies everything: checksums, order, anchors, filter and sums.
    pub fn verify(self: &Arc<Self>) -> Result<()> {
        let (mut plain_bytes, mut stored_bytes) = (0, 0);
        let mut last: Option<ChunkId> = None;
        let mut cursor = Cursor { hasher: Some(blake3::Hasher::new()), ..self.entries() };
        while let Some(entry) = cursor.next_entry()? {
            let place = cursor.next - 1;
            let is_in_order = last.is_none_or(|last| last < entry.id);
            let has_anchor = !place.is_multiple_of(BLOCK_ENTRIES as u64)
                || self.anchors()[(place / BLOCK_ENTRIES as u64) as usize] == entry.id.as_bytes()[..ANCHOR_LEN];
            let has_filter = filter_has(&self.tables[self.trailer.filter_at()..], &entry.id, self.trailer.n_groups);
            if !is_in_order || !has_anchor || !has_filter {
                return Err(corrupt(format!("entry {place} of the index segment is out of order or not in its tables")));
            }
            plain_bytes += u64::from(entry.plain_len);
            stored_bytes += u64::from(entry.stored_len);
            last = Some(entry.id);
        }
        let in_last = self.trailer.entries_in(self.trailer.n_blocks() - 1) * ENTRY_LEN;
        let last_block = cursor.buffer.len() - BLOCK_LEN;
        if cursor.buffer[last_block + in_last..last_block + CHECKED_LEN].iter().any(|&byte| byte != 0) {
            return Err(corrupt("the last block of the index segment has bits set that must be zero"));
        }
        let blocks_hash = cursor.hasher.take().expect("BUG: verify hashes the blocks").finalize();
        let sums = (plain_bytes, stored_bytes, *blocks_hash.as_bytes());
        match sums == (self.trailer.plain_bytes, self.trailer.stored_bytes, self.trailer.blocks_hash) {
            true => Ok(()),
            false => Err(corrupt("the entries of the index segment do not add up to its trailer")),
        }
    }

    /// Returns the start of each block's first id.
    fn anchors(&self) -> &[[u8; ANCHOR_LEN]] {
        let anchors = &self.tables[self.trailer.anchors_at()..][..self.trailer.n_blocks() as usize * ANCHOR_LEN];
        anchors.as_chunks().0
    }

    fn read_blocks(&self, block: u64, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, block * BLOCK_LEN as u64)
            .context(|| format!("cannot read block {block} of index segment '{}'", self.id))
    }
}

/// The block of a segment that was read and verified last: who looks for many ids in order reads each block once.
pub(super) struct LastBlock {
    block: Option<u64>,
    bytes: [u8; BLOCK_LEN],
}

impl Default for LastBlock {
    fn default() -> Self {
        Self { block: None, bytes: [0; BLOCK_LEN] }
    }
}

fn find_in_block(block: &[u8], n: usize, id: &ChunkId) -> Option<usize> {
    block.as_chunks::<ENTRY_LEN>().0[..n].binary_search_by(|entry| entry[..32].cmp(id.as_bytes())).ok()
}

/// Returns the place of a segment in the directory of all segments.
pub(super) fn path_of(dir: &Path, id: SegmentId) -> PathBuf {
    dir.join(format!("{id}.segment"))
}

/// Reads the entries of a segment in order, some blocks at a time.
pub(super) struct Cursor {
    segment: Arc<Segment>,
    next: u64,
    buffer: Vec<u8>,
    /// Hashes the block checksums, where somebody wants them verified as a whole.
    hasher: Option<blake3::Hasher>,
}

/// Blocks that a cursor reads at once.
const READ_BLOCKS: u64 = 64;

impl Cursor {
    /// Returns the next entry, `None` after the last.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let trailer = &self.segment.trailer;
        if self.next == trailer.n_entries {
            return Ok(None);
        }
        let (block, i) = (self.next / BLOCK_ENTRIES as u64, (self.next % BLOCK_ENTRIES as u64) as usize);
        if i == 0 && block % READ_BLOCKS == 0 {
            self.fill(block)?;
        }
        let at = (block % READ_BLOCKS) as usize * BLOCK_LEN;
        self.next += 1;
        entry_at(&self.buffer[at..at + BLOCK_LEN], i, self.segment.trailer.n_packs).map(Some)
    }

    fn fill(&mut self, block: u64) -> Result<()> {
        let n = READ_BLOCKS.min(self.segment.trailer.n_blocks() - block);
        self.buffer.resize(n as usize * BLOCK_LEN, 0);
        self.segment.read_blocks(block, &mut self.buffer)?;
        for bytes in self.buffer.chunks_exact(BLOCK_LEN) {
            check_block(bytes)?;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes[CHECKED_LEN..]);
            }
        }
        Ok(())
    }
}

/// Writes a segment from entries that come sorted.
pub(super) struct Builder {
    out: BufWriter<File>,
    temp: Temp,
    block: Vec<u8>,
    blocks_hasher: blake3::Hasher,
    packs: Vec<PackId>,
    anchors: Vec<u8>,
    filter: Vec<u8>,
    trailer: Trailer,
    last: Option<ChunkId>,
}

impl Builder {
    /// Starts a segment of at most `max_entries` entries as a temporary file in the directory `tmp`.
    pub fn create(tmp: &Path, max_entries: u64, packs: Vec<PackId>) -> Result<Self> {
        let temp = Temp::beside(&tmp.join("segment"), 0o444)?;
        let file = temp.file.try_clone().context(|| "cannot write an index segment")?;
        let n_groups = u32::try_from((max_entries * FILTER_BITS_PER_ENTRY).div_ceil(GROUP_LEN as u64 * 8).max(1))
            .map_err(|_| Error::new(Kind::Unsupported, "the store has too many chunks for one index segment"))?;
        let trailer = Trailer {
            n_entries: 0,
            n_packs: packs.len() as u32,
            n_groups,
            plain_bytes: 0,
            stored_bytes: 0,
            blocks_hash: [0; 32],
            tables_hash: [0; 32],
        };
        Ok(Self {
            out: BufWriter::with_capacity(256 << 10, file),
            temp,
            block: Vec::with_capacity(BLOCK_LEN),
            blocks_hasher: blake3::Hasher::new(),
            packs,
            anchors: Vec::new(),
            filter: vec![0; n_groups as usize * GROUP_LEN],
            trailer,
            last: None,
        })
    }

    /// Adds an entry; one with the same id as the entry before is left out.
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        if self.last == Some(entry.id) {
            return Ok(());
        }
        assert!(self.last < Some(entry.id), "BUG: the entries of an index segment are sorted");
        self.last = Some(entry.id);
        if self.block.is_empty() {
            self.anchors.extend_from_slice(&entry.id.as_bytes()[..ANCHOR_LEN]);
        }
        self.block.extend_from_slice(entry.id.as_bytes());
        for number in [entry.pack, entry.offset, entry.stored_len, entry.plain_len] {
            self.block.extend_from_slice(&number.to_le_bytes());
        }
        filter_insert(&mut self.filter, &entry.id, self.trailer.n_groups);
        self.trailer.n_entries += 1;
        self.trailer.plain_bytes += u64::from(entry.plain_len);
        self.trailer.stored_bytes += u64::from(entry.stored_len);
        match self.block.len() == CHECKED_LEN {
            true => self.end_block(),
            false => Ok(()),
        }
    }

    /// Publishes the segment in the directory `dir`; its name is durable once that was synced. `None` if it has no entries.
    pub fn publish(mut self, dir: &Path) -> Result<Option<SegmentId>> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        if self.trailer.n_entries == 0 {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let packs: Vec<u8> = self.packs.iter().flat_map(|pack| *pack.as_bytes()).collect();
        for table in [&packs, &self.anchors, &self.filter] {
            hasher.update(table);
            self.out.write_all(table).context(|| "cannot write an index segment")?;
        }
        self.trailer.tables_hash = *hasher.finalize().as_bytes();
        self.trailer.blocks_hash = *self.blocks_hasher.finalize().as_bytes();
        let trailer = self.trailer.encode();
        self.out.write_all(&trailer).and_then(|()| self.out.flush()).context(|| "cannot write an index segment")?;
        let id = SegmentId(*blake3::hash(&trailer).as_bytes());
        self.temp.publish_unsynced(&path_of(dir, id))?;
        Ok(Some(id))
    }

    fn end_block(&mut self) -> Result<()> {
        self.block.resize(CHECKED_LEN, 0);
        let checksum = block_checksum(&self.block);
        self.blocks_hasher.update(&checksum);
        self.block.extend_from_slice(&checksum);
        self.out.write_all(&self.block).context(|| "cannot write an index segment")?;
        self.block.clear();
        Ok(())
    }
}

/// Merges `segments` into one, published in `dir`, without the packs that `is_gone` names; `None` if nothing is left.
///
/// Memory: one read buffer per segment, and 1.4 bytes per chunk for the new tables.
pub(super) fn merge(
    segments: &[Arc<Segment>],
    is_gone: &dyn Fn(&PackId) -> bool,
    tmp: &Path,
    dir: &Path,
) -> Result<Option<SegmentId>> {
    let (packs, new_places) = merge_pack_tables(segments, is_gone);
    let max_entries = segments.iter().map(|segment| segment.trailer.n_entries).sum();
    let mut builder = Builder::create(tmp, max_entries, packs)?;
    let mut cursors: Vec<Cursor> = segments.iter().map(Segment::entries).collect();
    let mut heap = BinaryHeap::new();
    for (i, cursor) in cursors.iter_mut().enumerate() {
        heap.extend(cursor.next_entry()?.map(|entry| Reverse((entry, i))));
    }
    while let Some(mut top) = heap.peek_mut() {
        let Reverse((entry, i)) = *top;
        if let Some(pack) = new_places[i][entry.pack as usize] {
            builder.push(&Entry { pack, ..entry })?;
        }
        match cursors[i].next_entry()? {
            Some(next) if next.id <= entry.id => return Err(corrupt("the entries of an index segment are not sorted")),
            Some(next) => *top = Reverse((next, i)),
            None => drop(std::collections::binary_heap::PeekMut::pop(top)),
        }
    }
    builder.publish(dir)
}

/// Returns the pack table of the merged segment, and for each old table where its packs are in the new one.
fn merge_pack_tables(segments: &[Arc<Segment>], is_gone: &dyn Fn(&PackId) -> bool) -> (Vec<PackId>, Vec<Vec<Option<u32>>>) {
    let mut packs = Vec::new();
    let mut places: HashMap<PackId, u32> = HashMap::new();
    let mut place_of = |pack: PackId| {
        (!is_gone(&pack)).then(|| {
            *places.entry(pack).or_insert_with(|| {
                packs.push(pack);
                packs.len() as u32 - 1
            })
        })
    };
    let new_places = segments.iter().map(|segment| segment.packs().map(&mut place_of).collect()).collect();
    (packs, new_places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_version_that_rotted_is_damage_and_one_with_a_name_of_its_own_is_a_newer_format() {
        let hashes = [0; 32];
        let trailer = Trailer {
            n_entries: 1,
            n_packs: 1,
            n_groups: 1,
            plain_bytes: 1,
            stored_bytes: 1,
            blocks_hash: hashes,
            tables_hash: hashes,
        };
        let (mut bytes, len) = (trailer.encode(), trailer.file_len());
        let id = |bytes: &[u8]| SegmentId(*blake3::hash(bytes).as_bytes());
        let name = id(&bytes);
        Trailer::decode(&bytes, len, name).unwrap();
        for version in [0_u32, 3, 513, 1 << 24] {
            bytes[116..120].copy_from_slice(&version.to_le_bytes());
            assert_eq!(Trailer::decode(&bytes, len, name).unwrap_err().kind(), Kind::Corrupt, "{version}");
        }
        assert_eq!(Trailer::decode(&bytes, len, id(&bytes)).unwrap_err().kind(), Kind::Unsupported);
    }
}
