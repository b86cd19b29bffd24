//! Whether all is here that objects and roots lead to, and what of that is noted for the next time.
//!
//! What is in a pack that is the same as when it was verified is not read again, so that what it leads to has to be known: each object that
//! something in a pack refers to and that is not in the same pack (*needs*). As long as all of these packs are here, what one of them has for
//! another is here, too, and only what was in none of them (*outside*) is looked for.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Look, POISONED, Packed, bit};
use crate::git::inflate::Reader;
use crate::git::packhash::PackHashes;
use crate::git::roots::Root;
use crate::git::{ObjectKind, Oid};

/// So many objects that packs need of each other are noted one by one: beyond, looking for each takes as long as verifying them anew.
pub(super) const MAX_NEEDS: usize = if cfg!(test) { 16 } else { 1 << 17 };

impl Look<'_> {
    /// Says whether all is here that the roots and the objects lead to, as far as it is known.
    pub(super) fn is_whole(&self) -> bool {
        let has_gap = self.has_gap.load(Ordering::Relaxed) || self.packs.iter().any(Packed::is_open);
        !has_gap && self.needs_to_follow().is_some()
    }

    /// Returns what the packs need that are the same; `None` if nobody knows.
    fn needs_before(&self) -> Option<&[Oid]> {
        match self.packs.iter().any(|packed| packed.is_same) {
            true => self.before.needs.as_deref(),
            false => Some(&[]),
        }
    }

    /// The same, without what is known to be here: what no pack had, if all packs are here.
    pub(super) fn needs_to_follow(&self) -> Option<&[Oid]> {
        let is_here = |hashes: &PackHashes| {
            let is_it =
                |packed: &Packed| packed.index_hash == hashes.index && *packed.hash.lock().expect(POISONED) == Some(hashes.pack);
            self.packs.iter().any(|packed| packed.is_same && is_it(packed))
        };
        let outside = self.before.outside.as_deref().filter(|_| self.before.packs.keys().all(is_here));
        outside.or_else(|| self.needs_before())
    }

    /// Returns what all packs need, and maybe more; `None` if it is too much to keep.
    pub(super) fn needs_after(&self) -> Option<Vec<Oid>> {
        let before = self.needs_before().filter(|_| !self.has_more_needs.load(Ordering::Relaxed))?;
        let mut needs: Vec<Oid> = self.needs.lock().expect(POISONED).keys().chain(before).copied().collect();
        needs.sort_unstable();
        needs.dedup();
        Some(needs).filter(|needs| needs.len() <= MAX_NEEDS)
    }

    /// Follows what an object of a pack leads to and that is not in that pack.
    pub(super) fn follow_out_of(&self, packed: &Packed, kind: ObjectKind, oid: Oid, reader: &mut Reader) {
        // Of a directory of which little changes, every version has most of the others' entries.
        if self.needs.lock().expect(POISONED).get(&oid).is_some_and(|kinds| kinds & bit(kind) != 0) {
            return;
        }
        if !self.follow_need(Some(kind), oid, reader) {
            return packed.is_open.store(true, Ordering::Relaxed);
        }
        let mut needs = self.needs.lock().expect(POISONED);
        if needs.len() < MAX_NEEDS || needs.contains_key(&oid) {
            *needs.entry(oid).or_default() |= bit(kind);
        } else {
            self.has_more_needs.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn follow_needs(&self, range: Range<usize>, reader: &mut Reader) {
        for oid in &self.needs_to_follow().unwrap_or_default()[range] {
            // What they are was looked at when the packs were verified.
            if !self.follow_need(None, *oid, reader) {
                self.has_lost_need.store(true, Ordering::Relaxed);
                self.has_gap.store(true, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn follow_roots(&self, roots: &[Root], reader: &mut Reader) {
        roots.iter().for_each(|(kind, oid)| self.require(*kind, *oid, reader));
    }

    /// Follows what a root or a loose object leads to.
    pub(super) fn require(&self, kind: Option<ObjectKind>, oid: Oid, reader: &mut Reader) {
        if !self.follow(kind, oid, reader) {
            self.has_gap.store(true, Ordering::Relaxed);
        }
    }

    /// Follows what something in a pack refers to that is not in that pack.
    fn follow_need(&self, kind: Option<ObjectKind>, oid: Oid, reader: &mut Reader) -> bool {
        if self.is_in_any(kind, &oid, reader) {
            return true;
        }
        let mut loose_needs = self.loose_needs.lock().expect(POISONED);
        if loose_needs.len() <= MAX_NEEDS {
            loose_needs.insert(oid);
        }
        drop(loose_needs);
        self.is_loose(kind, oid)
    }

    fn is_in_any(&self, kind: Option<ObjectKind>, oid: &Oid, reader: &mut Reader) -> bool {
        self.packs.iter().any(|packed| self.is_in(packed, kind, oid, reader))
    }

    /// Notes what an object is taken for, in the first of the places where it is, or says that it is not here. Git says what ought to be.
    fn follow(&self, kind: Option<ObjectKind>, oid: Oid, reader: &mut Reader) -> bool {
        self.is_in_any(kind, &oid, reader) || self.is_loose(kind, oid)
    }

    fn is_loose(&self, kind: Option<ObjectKind>, oid: Oid) -> bool {
        // The empty tree, too, has to be stored: git reads it without a file, and yet misses it.
        let loose = self.loose.binary_search_by_key(&oid, |single| single.oid);
        loose.map(|at| self.loose[at].known.take_for(kind)).is_ok()
    }

    /// Says whether a pack has an object, and notes what it is taken for.
    pub(super) fn is_in(&self, packed: &Packed, kind: Option<ObjectKind>, oid: &Oid, reader: &mut Reader) -> bool {
        let name = oid.as_slice().try_into().expect("BUG: an object id is a SHA-1");
        match packed.pack.index().rank(name, &self.shared.files) {
            Ok(Some(rank)) if !packed.is_same => {
                if let Some(known) = packed.known.get(rank as usize) {
                    known.take_for(kind);
                }
                true
            }
            Ok(Some(_)) => {
                if let Some(kind) = kind {
                    self.compare_kind(packed, kind, oid, reader);
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.note_unread(&error);
                false
            }
        }
    }

    /// Compares what an object in a pack that is the same is taken for with what stands there.
    fn compare_kind(&self, packed: &Packed, kind: ObjectKind, oid: &Oid, reader: &mut Reader) {
        let offset = packed.pack.find(oid, &self.shared);
        let header = offset.and_then(|offset| offset.map(|offset| packed.pack.header(offset, &self.shared, reader)).transpose());
        match header {
            Ok(Some((is, _))) if is == kind => (),
            Ok(_) => self.note_odd(),
            Err(error) => self.note_unread(&error),
        }
    }
}
