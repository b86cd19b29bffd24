//! Chunk packs as bytes: `docs/formats/chunk-pack.md`.
//!
//! The decoders here take byte slices and open no file; [`PackWriter`] streams a new pack into a temporary file.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::durable::{self, Temp, Writeback};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::id::{ChunkId, PackId};

/// Longest chunk, in plain bytes.
pub const MAX_CHUNK: usize = 16 << 20;
/// Longest pack that a reader accepts.
pub(super) const MAX_PACK: u64 = 64 << 20;
/// Most chunks in one pack that a reader accepts.
pub(super) const MAX_CHUNKS: u32 = 1 << 16;
/// A writer seals its pack when it has this many bytes.
pub(super) const TARGET_LEN: u64 = 32 << 20;
/// A writer seals its pack when it has this many chunks.
pub(super) const TARGET_CHUNKS: usize = 8192;

pub(super) const HEADER_LEN: usize = 16;
pub(super) const RECORD_HEADER_LEN: usize = 64;
pub(super) const TOC_ENTRY_LEN: usize = 40;
pub(super) const TRAILER_LEN: usize = 64;

const PACK_MAGIC: &[u8; 8] = b"gdo-pack";
const RECORD_MAGIC: &[u8; 4] = b"chnk";
const TRAILER_MAGIC: &[u8; 8] = b"gdo-toc\n";
const VERSION: u32 = 1;

/// How the bytes of a chunk are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As they are.
    Plain,
    /// One zstd frame, shorter than the plain bytes.
    Zstd,
}

/// What stands before the stored bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub id: ChunkId,
    pub codec: Codec,
    pub plain_len: u32,
    pub stored_len: u32,
    /// The first 16 bytes of BLAKE3 of the stored bytes.
    pub checksum: [u8; 16],
}

/// One chunk of a pack, as its table tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TocEntry {
    pub id: ChunkId,
    /// Where the record starts, counted from the start of the pack.
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
}

/// The end of a pack: where its table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub n_chunks: u32,
    pub toc_offset: u32,
    pub plain_bytes: u64,
    toc_hash: [u8; 32],
}

/// Something that does not hold in a pack.
#[derive(Debug)]
pub(super) struct Damage {
    pub offset: u64,
    pub chunk: Option<ChunkId>,
    pub error: Error,
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("BUG: four bytes"))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: eight bytes"))
}

pub(super) fn hash_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes[at..at + 32].try_into().expect("BUG: 32 bytes")
}

pub(super) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, message)
}

/// Says whether `version` is ours; a newer one is no damage.
pub(super) fn check_version(what: &str, version: u32) -> Result<()> {
    match version {
        VERSION => Ok(()),
        0 => Err(corrupt(format!("{what} has version 0"))),
        newer => Err(Error::new(
            Kind::Unsupported,
            format!("{what} has version {newer}, this program knows {VERSION}; use a newer one"),
        )),
    }
}

/// Returns what every pack starts with.
fn encode_header() -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(PACK_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// Says whether `bytes` start a pack.
pub(super) fn decode_header(bytes: &[u8]) -> Result<()> {
    if bytes.len() < HEADER_LEN {
        return Err(corrupt(format!("pack is cut short at byte {}", bytes.len())));
    }
    if &bytes[..8] != PACK_MAGIC {
        return Err(corrupt("this is not a chunk pack"));
    }
    check_version("pack", le32(bytes, 8))?;
    if le32(bytes, 12) != 0 {
        return Err(corrupt("pack header has bits set that must be zero"));
    }
    Ok(())
}

impl RecordHeader {
    pub fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(RECORD_MAGIC);
        bytes[4] = match self.codec {
            Codec::Plain => 0,
            Codec::Zstd => 1,
        };
        bytes[8..12].copy_from_slice(&self.plain_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[16..48].copy_from_slice(self.id.as_bytes());
        bytes[48..].copy_from_slice(&self.checksum);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() < RECORD_HEADER_LEN {
            return Err(corrupt("record is cut short in its header"));
        }
        if &bytes[..4] != RECORD_MAGIC {
            return Err(corrupt("no record starts here"));
        }
        if bytes[5..8] != [0; 3] {
            return Err(corrupt("record header has bits set that must be zero"));
        }
        let (plain_len, stored_len) = (le32(bytes, 8), le32(bytes, 12));
        if plain_len as usize > MAX_CHUNK {
            let what = format!("record claims {plain_len} bytes, at most {MAX_CHUNK} are possible");
            return Err(corrupt(what).with_reason(Reason::ChunkLength));
        }
        let codec = match bytes[4] {
            0 if stored_len == plain_len => Codec::Plain,
            1 if stored_len < plain_len => Codec::Zstd,
            0 | 1 => {
                let what = format!("record claims {stored_len} stored bytes for {plain_len}");
                return Err(corrupt(what).with_reason(Reason::ChunkLength));
            }
            other => return Err(Error::new(Kind::Unsupported, format!("record has unknown codec {other}; use a newer program"))),
        };
        let checksum = bytes[48..64].try_into().expect("BUG: 16 bytes");
        Ok(Self { id: ChunkId::from_bytes(hash_at(bytes, 16)), codec, plain_len, stored_len, checksum })
    }
}

impl TocEntry {
    /// Returns how many bytes header and stored bytes take.
    pub fn record_len(&self) -> usize {
        RECORD_HEADER_LEN + self.stored_len as usize
    }

    /// Returns how many bytes of the pack this chunk costs, its place in the table included.
    pub fn cost(&self) -> u64 {
        (self.record_len() + TOC_ENTRY_LEN) as u64
    }
}

impl Trailer {
    /// Decodes the last bytes of a pack that is `pack_len` bytes long.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<Self> {
        if bytes.len() < TRAILER_LEN {
            return Err(corrupt("pack is cut short in its trailer"));
        }
        if &bytes[56..64] != TRAILER_MAGIC {
            return Err(corrupt("pack does not end in a trailer: it was cut short or overwritten"));
        }
        check_version("pack trailer", le32(bytes, 48))?;
        let (n_chunks, toc_offset) = (le32(bytes, 0), le32(bytes, 4));
        let toc_len = u64::from(n_chunks) * TOC_ENTRY_LEN as u64;
        let fits = u64::from(toc_offset) + toc_len + TRAILER_LEN as u64 == pack_len;
        if le32(bytes, 52) != 0 || n_chunks == 0 || n_chunks > MAX_CHUNKS || pack_len > MAX_PACK || !fits {
            return Err(corrupt(format!("pack trailer does not fit a pack of {pack_len} bytes")));
        }
        Ok(Self { n_chunks, toc_offset, plain_bytes: le64(bytes, 8), toc_hash: hash_at(bytes, 16) })
    }
}

/// Decodes the table of a pack: `bytes` go from the table's first byte to the end of the pack.
pub(super) fn decode_toc(bytes: &[u8], pack_len: u64) -> Result<Vec<TocEntry>> {
    let table_len = bytes.len().checked_sub(TRAILER_LEN).ok_or_else(|| corrupt("pack is cut short in its trailer"))?;
    let trailer = Trailer::decode(&bytes[table_len..], pack_len)?;
    if table_len != trailer.n_chunks as usize * TOC_ENTRY_LEN {
        return Err(corrupt("pack table has another length than its trailer says"));
    }
    if blake3::hash(&bytes[..table_len + 16]) != blake3::Hash::from_bytes(trailer.toc_hash) {
        return Err(corrupt("pack table does not match its checksum"));
    }
    let mut offset = HEADER_LEN as u64;
    let mut plain_bytes = 0;
    let mut toc = Vec::with_capacity(trailer.n_chunks as usize);
    for raw in bytes[..table_len].chunks_exact(TOC_ENTRY_LEN) {
        let (plain_len, stored_len) = (le32(raw, 32), le32(raw, 36));
        if offset >= MAX_PACK || plain_len as usize > MAX_CHUNK || stored_len > plain_len {
            return Err(corrupt(format!("pack table has an impossible entry {}", toc.len())));
        }
        let entry = TocEntry { id: ChunkId::from_bytes(hash_at(raw, 0)), offset: offset as u32, stored_len, plain_len };
        offset += entry.record_len() as u64;
        plain_bytes += u64::from(plain_len);
        toc.push(entry);
    }
    if offset != u64::from(trailer.toc_offset) || plain_bytes != trailer.plain_bytes {
        return Err(corrupt("pack table does not add up to the length of its pack"));
    }
    Ok(toc)
}

/// Returns header and stored bytes of the record in `bytes`, if it is the one that `entry` tells of and its checksum holds.
pub(super) fn open_record<'a>(bytes: &'a [u8], entry: &TocEntry) -> Result<(RecordHeader, &'a [u8])> {
    let (header, stored) = split_record(bytes, entry)?;
    match checksum(stored) == header.checksum {
        true => Ok((header, stored)),
        false => Err(corrupt("stored bytes do not match their checksum").with_reason(Reason::ChunkHash)),
    }
}

/// Returns header and stored bytes of the record in `bytes`, if it is the one that `entry` tells of.
fn split_record<'a>(bytes: &'a [u8], entry: &TocEntry) -> Result<(RecordHeader, &'a [u8])> {
    let header = RecordHeader::decode(bytes)?;
    if (header.id, header.plain_len, header.stored_len) != (entry.id, entry.plain_len, entry.stored_len) {
        let what = format!("here lies chunk '{}' of {} bytes instead", header.id, header.plain_len);
        return Err(corrupt(what).with_reason(Reason::ChunkHash));
    }
    let stored = bytes[RECORD_HEADER_LEN..].get(..header.stored_len as usize);
    Ok((header, stored.ok_or_else(|| corrupt("record is cut short"))?))
}

/// Puts the plain bytes of the record in `bytes` into `out`, or fails, with `out` empty, if anything about it does not hold.
pub(super) fn unpack(bytes: &[u8], entry: &TocEntry, out: &mut Vec<u8>) -> Result<()> {
    if let Some(plain) = verify_record(bytes, entry, out)? {
        out.extend_from_slice(plain);
    }
    Ok(())
}

/// Verifies the record in `bytes`, and returns its plain bytes if they are stored as they are; else they are in `out`, which is empty in any other case.
///
/// The decompressor sees only bytes whose checksum held, and writes into a buffer that was sized before.
fn verify_record<'a>(bytes: &'a [u8], entry: &TocEntry, out: &mut Vec<u8>) -> Result<Option<&'a [u8]>> {
    out.clear();
    let (header, stored) = split_record(bytes, entry)?;
    match header.codec {
        // The id is the hash of the stored bytes here, and the checksum the start of the id.
        Codec::Plain if ChunkId::of(stored) != header.id || header.id.as_bytes()[..16] != header.checksum => {
            Err(corrupt("stored bytes do not match their checksum").with_reason(Reason::ChunkHash))
        }
        Codec::Plain => Ok(Some(stored)),
        Codec::Zstd => {
            open_record(bytes, entry)?;
            decompress(stored, &header, out).inspect_err(|_| out.clear())?;
            Ok(None)
        }
    }
}

/// The record of a chunk that came from elsewhere, and that is what it was said to be.
#[derive(Debug)]
pub struct Record<'a> {
    pub(super) header: RecordHeader,
    pub(super) stored: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes `bytes` for nothing that they do not prove to be: the record of the chunk `id`, of at most `max_len` bytes, which are left in `plain`.
    pub fn verify(bytes: &'a [u8], id: &ChunkId, max_len: usize, plain: &mut Vec<u8>) -> Result<Self> {
        let header = RecordHeader::decode(bytes)?;
        let entry = TocEntry { id: *id, offset: 0, stored_len: header.stored_len, plain_len: header.plain_len };
        if header.plain_len as usize > max_len || bytes.len() != entry.record_len() {
            let (len, plain_len) = (bytes.len(), header.plain_len);
            let what = format!("a record of {len} bytes with {plain_len} plain ones came, at most {max_len} are expected");
            return Err(corrupt(what).with_reason(Reason::ChunkLength));
        }
        unpack(bytes, &entry, plain)?;
        Ok(Self { header, stored: &bytes[RECORD_HEADER_LEN..] })
    }

    /// Returns which chunk it is.
    pub fn id(&self) -> ChunkId {
        self.header.id
    }

    /// Returns how many bytes it takes, compressed.
    pub fn stored_len(&self) -> u64 {
        self.stored.len() as u64
    }

    /// Returns how many bytes it takes in a store, with what is kept about it.
    pub fn cost(&self) -> u64 {
        (self.stored.len() + RECORD_HEADER_LEN + TOC_ENTRY_LEN + super::segment::ENTRY_LEN) as u64
    }
}

/// Returns the header of the record of a chunk that is stored as it is.
pub(super) fn plain_header(entry: &TocEntry) -> [u8; RECORD_HEADER_LEN] {
    let checksum = entry.id.as_bytes()[..16].try_into().expect("BUG: 16 of 32 bytes");
    let (plain_len, stored_len) = (entry.plain_len, entry.plain_len);
    RecordHeader { id: entry.id, codec: Codec::Plain, plain_len, stored_len, checksum }.encode()
}

/// Returns the first 16 bytes of BLAKE3 of `stored`.
pub(super) fn checksum(stored: &[u8]) -> [u8; 16] {
    blake3::hash(stored).as_bytes()[..16].try_into().expect("BUG: 16 of 32 bytes")
}

fn decompress(stored: &[u8], header: &RecordHeader, out: &mut Vec<u8>) -> Result<()> {
    decompress_frame(stored, header.plain_len as usize, out)?;
    match ChunkId::of(out) == header.id {
        true => Ok(()),
        false => Err(corrupt("plain bytes do not match the chunk id").with_reason(Reason::ChunkHash)),
    }
}

/// Puts the `plain_len` bytes of a zstd frame into `out`, which is empty; whether they are the right ones the caller finds out.
pub(super) fn decompress_frame(stored: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
    thread_local! {
        static CONTEXT: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    }
    // One byte more than declared, so that a longer frame is told from a right one.
    out.reserve_exact(plain_len + 1);
    let n = CONTEXT.with_borrow_mut(|context| context.decompress_to_buffer(stored, out)).map_err(|error| {
        let what = format!("stored bytes are not a zstd frame of {plain_len} bytes: {error}");
        corrupt(what).with_reason(Reason::DecompressLimit)
    })?;
    if n != plain_len {
        let what = format!("stored bytes hold {n} plain bytes instead of {plain_len}");
        return Err(corrupt(what).with_reason(Reason::ChunkLength));
    }
    Ok(())
}

/// Fills a buffer with what lies in a pack from a position on.
pub(super) type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<()>;

/// Verifies all bytes of a pack of `len` bytes against its name and against each other, every chunk as a reader would, and reports what does
/// not hold, or cannot be read. What is held of it at a time is [`PIECE`], or a chunk, and the table.
pub(super) fn verify(len: u64, name: PackId, read: ReadAt<'_>, report: &mut dyn FnMut(Damage)) {
    let mut is_sound = true;
    let mut failed = |offset: u64, chunk, error| {
        is_sound = false;
        report(Damage { offset, chunk, error });
    };
    let mut whole = blake3::Hasher::new();
    let mut header = vec![0; (HEADER_LEN as u64).min(len) as usize];
    match read(0, &mut header).and_then(|()| decode_header(&header)) {
        Ok(()) => _ = whole.update(&header),
        Err(error) => failed(0, None, error),
    }
    let toc = read_toc(len, read).unwrap_or_else(|error| {
        failed(len.saturating_sub(TRAILER_LEN as u64), None, error);
        Vec::new()
    });
    let _alone = toc
        .iter()
        .any(|entry| entry.plain_len as usize > MAX_SHARED)
        .then(|| LONG.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut piece, mut plain) = (Vec::new(), Vec::new());
    let mut rest = &*toc;
    while let [first, ..] = rest {
        let end_of = |entry: &TocEntry| entry.offset as usize + entry.record_len();
        let start = first.offset as usize;
        let n = rest.partition_point(|entry| end_of(entry) <= start + PIECE).max(1);
        let (entries, others) = rest.split_at(n);
        piece.resize(end_of(&entries[n - 1]) - start, 0);
        let mut unread = read(start as u64, &mut piece).err();
        let was_unread = unread.is_some();
        for entry in entries {
            let record = &mut piece[entry.offset as usize - start..][..entry.record_len()];
            // Of what cannot be read at once, most may be there.
            let record = if was_unread { read(entry.offset.into(), record) } else { Ok(()) }.map(|()| &*record);
            if let Err(error) = record.and_then(|record| verify_record(record, entry, &mut plain)) {
                failed(entry.offset.into(), Some(entry.id), error);
                unread = None;
            }
        }
        if let Some(error) = unread {
            // The next time it may not.
            failed(first.offset.into(), None, error.wrap(GIVEN_LATER));
        }
        whole.update(&piece);
        rest = others;
    }
    let Some(last) = toc.last() else { return };
    let end = u64::from(last.offset) + last.record_len() as u64;
    piece.resize((len - end) as usize, 0);
    if let Err(error) = read(end, &mut piece) {
        failed(end, None, error);
    }
    whole.update(&piece);
    if is_sound && whole.finalize().as_bytes() != name.as_bytes() {
        report(Damage {
            offset: 0,
            chunk: None,
            error: corrupt("pack does not match its name, though every chunk in it is sound"),
        });
    }
}

/// What is said of a read error that did not come again.
pub(super) const GIVEN_LATER: &str = "it could be read only when that was tried again";

/// Bytes of a chunk up to which each thread may hold one; of packs with longer ones a process verifies one at a time.
const MAX_SHARED: usize = 2 << 20;

/// Held by who verifies a pack with longer ones.
static LONG: Mutex<()> = Mutex::new(());

/// Bytes of a pack that are read and verified at once, if no chunk is longer: what a processor has near.
const PIECE: usize = 512 << 10;

/// Reads the table of a pack of `len` bytes.
pub(super) fn read_toc(len: u64, read: ReadAt<'_>) -> Result<Vec<TocEntry>> {
    let trailer = read_trailer(len, read)?;
    let mut toc = vec![0; (len - u64::from(trailer.toc_offset)) as usize];
    read(trailer.toc_offset.into(), &mut toc)?;
    decode_toc(&toc, len)
}

/// Reads the trailer of a pack of `len` bytes, which tells whether that is its right length.
pub(super) fn read_trailer(len: u64, read: ReadAt<'_>) -> Result<Trailer> {
    let at = len.checked_sub(TRAILER_LEN as u64).ok_or_else(|| corrupt("pack is cut short"))?;
    let mut trailer = [0; TRAILER_LEN];
    read(at, &mut trailer)?;
    Trailer::decode(&trailer, len)
}

/// Finds the records of a pack whose table is lost: every record whose checksum holds, wherever it lies.
pub(super) fn salvage(bytes: &[u8]) -> Vec<TocEntry> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + RECORD_HEADER_LEN <= bytes.len() && at as u64 <= MAX_PACK {
        match sound_record(bytes, at) {
            Some(entry) => {
                at += entry.record_len();
                found.push(entry);
            }
            None => at += 1,
        }
    }
    found
}

fn sound_record(bytes: &[u8], at: usize) -> Option<TocEntry> {
    if !bytes[at..].starts_with(RECORD_MAGIC) {
        return None;
    }
    let header = RecordHeader::decode(&bytes[at..]).ok()?;
    let entry = TocEntry { id: header.id, offset: at as u32, stored_len: header.stored_len, plain_len: header.plain_len };
    open_record(&bytes[at..], &entry).ok().map(|_| entry)
}

/// Returns the place of a pack below the directory of all packs.
pub(super) fn path_of(packs: &Path, id: PackId) -> PathBuf {
    let name = id.to_string();
    packs.join(&name[..2]).join(format!("{name}.pack"))
}

/// A pack being written: a temporary file that is removed on drop unless it was sealed.
pub(super) struct PackWriter {
    temp: Temp,
    writeback: Writeback,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    len: u64,
    plain_bytes: u64,
    toc: Vec<TocEntry>,
}

/// A pack under its final name, which is durable once `dir` was synced.
pub(super) struct SealedPack {
    pub id: PackId,
    pub toc: Vec<TocEntry>,
    pub dir: PathBuf,
}

const BUFFER_LEN: usize = 256 << 10;

impl PackWriter {
    /// Starts a pack as a temporary file in the directory `tmp`.
    pub fn create(tmp: &Path) -> Result<Self> {
        let temp = Temp::beside(&tmp.join("pack"), 0o444)?;
        let mut buffer = Vec::with_capacity(BUFFER_LEN + BUFFER_LEN / 2);
        buffer.extend_from_slice(&encode_header());
        let (hasher, len) = (blake3::Hasher::new(), HEADER_LEN as u64);
        Ok(Self { temp, writeback: Writeback::default(), hasher, buffer, len, plain_bytes: 0, toc: Vec::new() })
    }

    /// Adds one chunk.
    pub fn append(&mut self, header: &RecordHeader, stored: &[u8]) -> Result<()> {
        let entry = TocEntry {
            id: header.id,
            offset: u32::try_from(self.len).expect("BUG: a pack is sealed long before 4 GiB"),
            stored_len: header.stored_len,
            plain_len: header.plain_len,
        };
        self.write(&header.encode())?;
        self.write(stored)?;
        self.len += entry.record_len() as u64;
        self.plain_bytes += u64::from(entry.plain_len);
        self.toc.push(entry);
        Ok(())
    }

    /// Says whether it is time to seal this pack.
    pub fn is_full(&self) -> bool {
        self.len >= TARGET_LEN || self.toc.len() >= TARGET_CHUNKS
    }

    /// Writes table and trailer, syncs the file and gives it its name below `packs`.
    ///
    /// An identical pack that is already there is replaced by itself.
    pub fn seal(mut self, packs: &Path) -> Result<SealedPack> {
        self.write_toc()?;
        self.flush()?;
        let id = PackId::from_bytes(*self.hasher.finalize().as_bytes());
        let path = path_of(packs, id);
        let dir = path.parent().expect("BUG: a pack lies in a directory").to_owned();
        durable::create_dir_all(&dir, 0o700)?;
        self.temp.publish_unsynced(&path)?;
        Ok(SealedPack { id, toc: self.toc, dir })
    }

    fn write_toc(&mut self) -> Result<()> {
        let mut toc = Vec::with_capacity(self.toc.len() * TOC_ENTRY_LEN + TRAILER_LEN);
        for entry in &self.toc {
            toc.extend_from_slice(entry.id.as_bytes());
            toc.extend_from_slice(&entry.plain_len.to_le_bytes());
            toc.extend_from_slice(&entry.stored_len.to_le_bytes());
        }
        toc.extend_from_slice(&(self.toc.len() as u32).to_le_bytes());
        toc.extend_from_slice(&(self.len as u32).to_le_bytes());
        toc.extend_from_slice(&self.plain_bytes.to_le_bytes());
        let hash = blake3::hash(&toc);
        toc.extend_from_slice(hash.as_bytes());
        toc.extend_from_slice(&VERSION.to_le_bytes());
        toc.extend_from_slice(&[0; 4]);
        toc.extend_from_slice(TRAILER_MAGIC);
        self.write(&toc)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        match self.buffer.len() >= BUFFER_LEN {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        let written = self.temp.file.write_all(&self.buffer);
        let written = written.and_then(|()| self.writeback.wrote(&self.temp.file, self.buffer.len() as u64));
        written.context(|| "cannot write a chunk pack")?;
        self.buffer.clear();
        Ok(())
    }
}
