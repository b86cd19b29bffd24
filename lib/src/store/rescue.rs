//! What can be had of packs that are not whole. What a writer that was killed had got done: its whole packs are indexed, and the whole records of the pack
//! that it was at get one of their own.
//!
//! A transfer that is cut off again and again would otherwise begin anew each time.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::index::{self, Index};
use super::pack::{self, MAX_CHUNK, PackWriter, TARGET_LEN};
use super::{Layout, list_dir};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};

/// No pack that is being written is longer: a full one, and the chunk that made it so.
const MAX_OPEN_PACK: u64 = TARGET_LEN + MAX_CHUNK as u64 + (1 << 20);

/// Saves what dead writers left in the directory for temporary files, and indexes the packs that they did not; the caller excludes leases.
///
/// The temporary files stay. Does nothing if there are none: a writer at work has one.
pub(super) fn rescue(layout: &Layout) -> Result<()> {
    let leftovers = list_dir(&layout.tmp())?;
    if leftovers.is_empty() {
        return Ok(());
    }
    for path in leftovers {
        save_records(layout, &path)?;
    }
    index::index_strays(layout, &Index::load(layout)?, &index::list_packs(layout)?).map(drop)
}

/// Puts the records of an unfinished pack whose checksums hold into a pack.
fn save_records(layout: &Layout, path: &Path) -> Result<()> {
    if durable::look(path)?.len() > MAX_OPEN_PACK {
        return Ok(());
    }
    let bytes = durable::read(path)?;
    let found = if pack::decode_header(&bytes).is_ok() { pack::salvage(&bytes) } else { Vec::new() };
    if found.is_empty() {
        return Ok(());
    }
    let mut writer = PackWriter::create(&layout.tmp())?;
    for entry in &found {
        let (header, stored) = pack::open_record(&bytes[entry.offset as usize..], entry)?;
        writer.append(&header, stored)?;
    }
    writer.seal(&layout.packs()).map(drop)
}

/// Refuses what is longer than any pack.
pub(super) fn must_be_possible(len: u64) -> Result<()> {
    match len <= pack::MAX_PACK {
        true => Ok(()),
        false => Err(pack::corrupt(format!("pack has {len} bytes, at most {} are possible", pack::MAX_PACK))),
    }
}

/// Reads a whole pack, with zeros in the place of what the disk does not give back. What is no file, or longer than any pack, has nothing in it.
///
/// It fails where nothing is said of what stands there: the file cannot be opened, or there is no memory for it.
pub(super) fn read_damaged(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read chunk pack '{}'", path.display());
    match durable::look(path) {
        Ok(found) if found.is_file() => (),
        Err(error) if error.kind() != Kind::NotFound => return Err(error.wrap(what())),
        _ => return Ok(Vec::new()),
    }
    let file = durable::open(path).context(what)?;
    let len = file.metadata().context(what)?.len();
    if must_be_possible(len).is_err() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(len as usize);
    reserved.map_err(|_| Error::new(Kind::Io, format!("not enough memory for {len} bytes of it"))).context(what)?;
    bytes.resize(len as usize, 0);
    fill(&mut bytes, &|at, into| file.read_exact_at(into, at)).context(what)?;
    Ok(bytes)
}

/// Reads what can be read; a block that the disk does not give back is left as zeros.
fn fill(bytes: &mut [u8], read: &dyn Fn(u64, &mut [u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    const BLOCK: usize = 4096;
    let read_or_zeros = |at: usize, into: &mut [u8]| match read(at as u64, into) {
        Err(error) if durable::is_rot(&error) => {
            into.fill(0);
            Ok(())
        }
        other => other,
    };
    for (n, piece) in bytes.chunks_mut(64 * BLOCK).enumerate() {
        match read((n * 64 * BLOCK) as u64, piece) {
            Err(error) if durable::is_rot(&error) => {
                let mut blocks = piece.chunks_mut(BLOCK).enumerate();
                blocks.try_for_each(|(block, into)| read_or_zeros((n * 64 + block) * BLOCK, into))?;
            }
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn what_the_disk_does_not_give_back_is_zeros_and_all_else_is_there() {
        let whole: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8 + 1).collect();
        let with_hole = |errno: Errno, hole: usize| {
            let whole = &whole;
            move |at: u64, into: &mut [u8]| {
                let range = at as usize..at as usize + into.len();
                into.fill(7);
                if range.contains(&hole) {
                    return Err(errno.into());
                }
                into.copy_from_slice(&whole[range]);
                Ok(())
            }
        };
        for hole in [0, 300_000, 699_999] {
            let mut bytes = vec![0; whole.len()];
            fill(&mut bytes, &with_hole(Errno::IO, hole)).unwrap();
            let start = hole / 4096 * 4096;
            let end = whole.len().min(start + 4096);
            assert!(bytes[start..end].iter().all(|&byte| byte == 0), "{hole}");
            assert!(bytes[..start] == whole[..start] && bytes[end..] == whole[end..], "{hole}");
            fill(&mut bytes, &with_hole(Errno::STALE, hole)).unwrap_err();
        }
    }
}
