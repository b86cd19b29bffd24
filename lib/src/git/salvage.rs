//! What is sound in packs that were taken out of the object database because something in them is damaged.
//!
//! Nothing here changes or removes what lies in the quarantine.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::check::{QUARANTINE, ends_in_its_sum, is_of_its_pack, list};
use super::inflate::Reader;
use super::object::{object_id, oid_from};
use super::packed::{Pack, Shared};
use super::{Git, Kept, ObjectKind, Objects, Oid, PackWriter};
use crate::durable;
use crate::error::Result;

/// The packs in the quarantine.
pub struct Salvage {
    packs: Vec<Aside>,
    /// Where an object starts that no index tells of, and the position of its pack among these; looked for when it is needed.
    unlisted: OnceCell<HashMap<Oid, (usize, u64)>>,
    shared: Shared,
    reader: RefCell<Reader>,
}

struct Aside {
    index: PathBuf,
    pack: Pack,
}

impl Salvage {
    /// Opens all packs that were ever put into the quarantine of the state directory `state`.
    pub fn open(state: &Path) -> Result<Self> {
        let paths = list(&state.join(QUARANTINE).join("pack"))?;
        Ok(Self::of(paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "pack"))))
    }

    fn of<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Self {
        let open = |path: &PathBuf| {
            let index = path.with_extension("idx");
            let pack = Pack::open_damaged(&index, 0).unwrap_or_else(|_| Pack::without_index(path));
            Aside { index, pack }
        };
        let packs = paths.map(open).collect();
        Self { packs, unlisted: OnceCell::new(), shared: Shared::default(), reader: RefCell::new(Reader::new()) }
    }

    /// Returns the object `oid`, if one of the packs has it undamaged.
    pub fn find(&self, oid: &Oid) -> Option<(ObjectKind, Vec<u8>)> {
        let listed = |aside: &Aside| self.read(&aside.pack, aside.pack.find(oid, &self.shared).ok()??, oid);
        self.packs.iter().find_map(listed).or_else(|| {
            let (at, offset) = *self.unlisted().get(oid)?;
            self.read(&self.packs[at].pack, offset, oid)
        })
    }

    /// Looks through the packs whose index is missing or not in order.
    fn unlisted(&self) -> &HashMap<Oid, (usize, u64)> {
        self.unlisted.get_or_init(|| {
            let mut found = HashMap::new();
            for (at, Aside { pack, .. }) in self.packs.iter().enumerate().filter(|(_, aside)| !aside.is_listed()) {
                // What the index says of places may still be right, and leads past what is damaged.
                let listed = pack.index().by_offset(&self.shared.files).unwrap_or_default();
                let mut reader = self.reader.borrow_mut();
                let walked = pack.walk(&self.shared, &mut reader).unwrap_or_default();
                let starts: BTreeSet<u64> = listed.into_iter().map(|(offset, _)| offset).chain(walked).collect();
                for offset in starts {
                    let object = pack.read(offset, &self.shared, &mut reader);
                    if let Ok(oid) = object.and_then(|(kind, content)| object_id(kind, &content)) {
                        found.insert(oid, (at, offset));
                    }
                }
            }
            found
        })
    }

    fn read(&self, pack: &Pack, offset: u64, oid: &Oid) -> Option<(ObjectKind, Vec<u8>)> {
        let (kind, content) = pack.read(offset, &self.shared, &mut self.reader.borrow_mut()).ok()?;
        (object_id(kind, &content).ok()? == *oid).then_some((kind, content))
    }
}

impl Aside {
    /// Says whether there is an index of this pack, and it is in order.
    fn is_listed(&self) -> bool {
        let has_sum = durable::open(&self.index).is_ok_and(|file| ends_in_its_sum(&file).unwrap_or(false));
        has_sum && is_of_its_pack(&self.index).unwrap_or(false)
    }
}

impl Git {
    /// Copies what is sound in the packs at `paths`, as far as their indexes tell, and not in the object database back into it, as a new pack.
    pub(super) fn salvage(&self, paths: &[PathBuf], objects: &Objects) -> Result<()> {
        let writer = PackWriter::new(self.git_dir(), objects)?;
        let salvage = Salvage::of(paths.iter());
        let files = &salvage.shared.files;
        for Aside { pack, .. } in &salvage.packs {
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
