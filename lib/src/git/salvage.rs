//! What is sound in packs that were taken out of the object database because something in them is damaged.
//!
//! Nothing here changes or removes what lies in the quarantine.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::check::{QUARANTINE, list};
use super::inflate::Reader;
use super::object::{object_id, oid_from};
use super::packed::{Pack, Shared};
use super::{Git, Kept, ObjectKind, Objects, Oid, PackWriter};
use crate::error::Result;

/// The packs in the quarantine.
pub struct Salvage {
    packs: Vec<Pack>,
    shared: Shared,
    reader: RefCell<Reader>,
}

impl Salvage {
    /// Opens all packs that were ever put into the quarantine of the state directory `state`.
    pub fn open(state: &Path) -> Result<Self> {
        let paths = list(&state.join(QUARANTINE).join("pack"))?;
        Ok(Self::of(paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "pack"))))
    }

    /// Opens the packs at `paths`; one whose index cannot be used has nothing.
    fn of<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Self {
        let packs = paths.filter_map(|path| Pack::open_damaged(&path.with_extension("idx"), 0).ok()).collect();
        Self { packs, shared: Shared::default(), reader: RefCell::new(Reader::new()) }
    }

    /// Returns the object `oid`, if one of the packs has it undamaged.
    pub fn find(&self, oid: &Oid) -> Option<(ObjectKind, Vec<u8>)> {
        self.packs.iter().find_map(|pack| self.read(pack, pack.find(oid, &self.shared).ok()??, oid))
    }

    fn read(&self, pack: &Pack, offset: u64, oid: &Oid) -> Option<(ObjectKind, Vec<u8>)> {
        let (kind, content) = pack.read(offset, &self.shared, &mut self.reader.borrow_mut()).ok()?;
        (object_id(kind, &content).ok()? == *oid).then_some((kind, content))
    }
}

impl Git {
    /// Copies what is sound in the packs at `paths` and not in the object database back into it, as a new pack.
    pub(super) fn salvage(&self, paths: &[PathBuf], objects: &Objects) -> Result<()> {
        let writer = PackWriter::new(self.git_dir(), objects)?;
        let salvage = Salvage::of(paths.iter());
        let files = &salvage.shared.files;
        for pack in &salvage.packs {
            for (offset, rank) in pack.index().by_offset(files).unwrap_or_default() {
                if let Ok(oid) = pack.index().name(rank, files).map(oid_from)
                    && !objects.contains_quickly(&oid)
                    && let Some((kind, content)) = salvage.read(pack, offset, &oid)
                {
                    writer.put(kind, &content)?;
                }
            }
        }
        writer.finish()?.map_or(Ok(()), Kept::release)
    }
}
