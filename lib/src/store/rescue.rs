//! What a writer that was killed had got done: its whole packs are indexed, and the whole records of the pack that it was at get one of their own.
//!
//! A transfer that is cut off again and again would otherwise begin anew each time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::index::{self, Index};
use super::pack::{self, MAX_CHUNK, PackWriter, TARGET_LEN};
use super::{Layout, list_dir};
use crate::durable;
use crate::error::Result;

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
    index_strays(layout)
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

/// Indexes the packs that the index does not know.
fn index_strays(layout: &Layout) -> Result<()> {
    let known = Index::load(layout)?.packs();
    let strays: Vec<_> = index::list_packs(layout)?.into_iter().map(|pack| pack.id).filter(|id| !known.contains(id)).collect();
    let paths = strays.iter().map(|id| pack::path_of(&layout.packs(), *id));
    let dirs: BTreeSet<PathBuf> = paths.filter_map(|path| path.parent().map(Path::to_owned)).collect();
    dirs.iter().try_for_each(|dir| durable::sync_dir(dir))?;
    let segments = index::index_packs(layout, strays.into_iter())?;
    if segments.is_empty() { Ok(()) } else { index::publish(layout, &segments) }
}
