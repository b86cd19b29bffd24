//! The store's decoders on whole files in memory: for tests and fuzzers that feed them hostile bytes.

use super::index;
use super::pack::{self, HEADER_LEN, TRAILER_LEN};
use super::reference::ReferencePack;
use super::segment;
use crate::error::Result;

/// Decodes a chunk pack, every record of it, and returns how many chunks it has.
pub fn pack(bytes: &[u8]) -> Result<usize> {
    pack::decode_header(bytes)?;
    let len = bytes.len() as u64;
    let trailer = pack::Trailer::decode(bytes.get(bytes.len().saturating_sub(TRAILER_LEN)..).unwrap_or_default(), len)?;
    let toc = pack::decode_toc(&bytes[trailer.toc_offset as usize..], len)?;
    let mut plain = Vec::new();
    for entry in &toc {
        pack::unpack(&bytes[entry.offset as usize..], entry, &mut plain)?;
    }
    Ok(toc.len())
}

/// Decodes one record header and what follows it, as a reader does who trusts the index too much.
pub fn record(bytes: &[u8]) -> Result<usize> {
    let header = pack::RecordHeader::decode(bytes)?;
    let (id, stored_len, plain_len) = (header.id, header.stored_len, header.plain_len);
    let mut plain = Vec::new();
    pack::unpack(bytes, &pack::TocEntry { id, offset: HEADER_LEN as u32, stored_len, plain_len }, &mut plain)?;
    Ok(plain.len())
}

/// Decodes a reference pack, and returns how many chunks it names.
pub fn reference_pack(bytes: &[u8]) -> Result<usize> {
    ReferencePack::decode(bytes).map(|pack| pack.entries.len())
}

/// Decodes the list of the index segments in force, and returns how many there are.
pub fn segment_list(bytes: &[u8]) -> Result<usize> {
    index::decode_list(bytes).map(|list| list.len())
}

/// Decodes the trailer and the entries of an index segment, under whatever name fits it, and returns how many entries it has.
pub fn index_segment(bytes: &[u8]) -> Result<u64> {
    segment::decode_all(bytes)
}
