//! Garbage collection: mark what is live, then remove the packs in which little is.
//!
//! Marking takes long and excludes nobody. Removing excludes leases, and knows whether there was one since marking began: then
//! everything is marked once more, with nobody around. So a writer that relied on a chunk either has its lease still, and nothing
//! is removed, or gave it back after its ref had moved, and the chunk is marked.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use super::index::{self, Index, PackOnDisk};
use super::lease::{exclude_leases, forget_leases, lock_list, remove_leftovers, was_leased};
use super::pack::{self, PackWriter, SealedPack, TocEntry};
use super::segment::SegmentId;
use super::{Finding, Layout, Location, Store, is_index_damage, segment};
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};
use crate::progress::Progress;

/// What a garbage collection may remove.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Only tell what would be removed.
    pub dry_run: bool,
    /// Packs written at this moment or later stay whole. A convenience, no safety: an interrupted run finds its chunks again.
    pub keep_since: Option<SystemTime>,
    /// A pack of which more than this share is dead is rewritten: 0 rewrites any, 1 none.
    pub max_dead_ratio: f64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, keep_since: None, max_dead_ratio: 0.25 }
    }
}

/// What a garbage collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Live chunks that are here.
    pub live_chunks: u64,
    /// Live chunks that are not here; no error, other hosts may have them.
    pub absent_chunks: u64,
    /// Packs that were removed, rewritten ones included.
    pub removed_packs: u64,
    /// Packs of which the live chunks were copied first.
    pub rewritten_packs: u64,
    /// Bytes of the removed packs.
    pub removed_bytes: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Dead bytes in packs that stay: too few, too young, or the pack is damaged.
    pub dead_bytes_left: u64,
    /// Packs that stay because they are damaged.
    pub findings: Vec<Finding>,
    /// The disk was too full to rewrite packs; those wholly dead were removed.
    pub is_cut_short: bool,
}

/// Gives every live id to the sink, in any order, as often as it likes. Called a second time if a writer came in between.
pub type Live<'a> = dyn FnMut(&mut dyn FnMut(ChunkId) -> Result<()>) -> Result<()> + 'a;

/// The same as [`Store::removal_lock`], of the store in `dir`, which need not be one yet.
pub fn removal_lock(dir: &Path) -> Result<Lock> {
    Lock::exclusive(&Layout { root: dir.to_owned() }.gc_lock())
}

impl Store {
    /// Removes chunks that `live` does not name.
    ///
    /// Fails with [`Kind::Locked`] while anyone holds a lease or another collection runs, having removed nothing; the caller must
    /// not hold one itself. Memory: one bit per chunk. A crash at any point loses nothing.
    pub fn gc(&self, live: &mut Live<'_>, options: GcOptions, progress: &Progress) -> Result<GcReport> {
        let _one = self.removal_lock()?;
        let mut view = {
            let _alone = exclude_leases(self.layout())?;
            forget_leases(self.layout())?;
            self.view()?
        };
        progress.stage("marking chunks", 0, 0);
        let mut marks = mark(&view.index, live, progress)?;
        if options.dry_run {
            return Ok(Sweep::plan(self, &view, &marks, &options)?.report);
        }
        let _alone = exclude_leases(self.layout())?;
        if was_leased(self.layout())? {
            view = self.view()?;
            progress.stage("marking chunks again", 0, 0);
            marks = mark(&view.index, live, progress)?;
        }
        let plan = Sweep::plan(self, &view, &marks, &options)?;
        let report = self.sweep(&view, &marks, plan, &mut || Ok(()), progress);
        self.forget_loaded();
        report
    }

    /// Takes the lock of whoever removes chunks, or decides to; fails with [`Kind::Locked`] if somebody has it.
    pub fn removal_lock(&self) -> Result<Lock> {
        removal_lock(self.dir())
    }

    /// Removes every copy of `doomed`, which ascend, and nothing else, whoever needs it. The caller has [`Store::removal_lock`], and no lease.
    ///
    /// `may_go` is asked last of all, when only the removal itself is left; its error ends the run. Fails with [`Kind::Locked`] while anyone holds a lease. A
    /// crash at any point loses nothing else.
    pub fn remove_chunks(
        &self,
        doomed: &[ChunkId],
        may_go: &mut dyn FnMut() -> Result<()>,
        progress: &Progress,
    ) -> Result<GcReport> {
        let _alone = exclude_leases(self.layout())?;
        let view = self.view()?;
        let marks = all_but(&view.index, doomed)?;
        let plan = Sweep::plan(self, &view, &marks, &GcOptions { max_dead_ratio: 0.0, ..GcOptions::default() })?;
        let report = self.sweep(&view, &marks, plan, may_go, progress);
        self.forget_loaded();
        report
    }

    /// Returns chunks that `live` does not name, ascending, at most `most` of them. Holds no lock: what is live may have changed since.
    pub fn dead(&self, live: &mut Live<'_>, most: usize, progress: &Progress) -> Result<Vec<ChunkId>> {
        self.refresh()?;
        let index = self.index()?;
        let marks = mark(&index, live, progress)?;
        let mut dead = Vec::new();
        self.for_each_chunk(&mut |id| {
            let is_live = index.find(&id)?.is_none_or(|found| marks.is_set(found.segment, found.position));
            if !is_live && dead.len() < most {
                dead.push(id);
            }
            Ok(())
        })?;
        Ok(dead)
    }

    /// Whatever was done, what is loaded may be stale.
    pub(super) fn forget_loaded(&self) {
        self.close_packs();
        *self.inner.index.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    /// Removes the packs that were changed longest ago until at most `keep` bytes are left, whatever is in them; returns how many there are then.
    ///
    /// Fails with [`Kind::Locked`] while anyone holds a lease.
    pub(super) fn evict(&self, keep: u64) -> Result<u64> {
        let _one = self.removal_lock()?;
        let _alone = exclude_leases(self.layout())?;
        let view = self.view()?;
        let mut packs = view.packs.clone();
        packs.sort_by_key(|pack| (pack.modified, pack.id));
        let mut left = self.disk_bytes()?;
        let mut dead = Vec::new();
        for pack in packs {
            if left <= keep {
                break;
            }
            left -= pack.len.min(left);
            dead.push(pack);
        }
        if !dead.is_empty() {
            self.remove(&view, &dead, &Written::default())?;
            self.forget_loaded();
        }
        self.disk_bytes()
    }

    /// Removes `gone`, whatever is in them. Fails with [`Kind::Locked`] while anyone holds a lease.
    pub(super) fn remove_packs(&self, gone: &[PackId]) -> Result<()> {
        let _one = self.removal_lock()?;
        let _alone = exclude_leases(self.layout())?;
        let view = self.view()?;
        let dead: Vec<PackOnDisk> = view.packs.iter().filter(|pack| gone.contains(&pack.id)).copied().collect();
        if !dead.is_empty() {
            self.remove(&view, &dead, &Written::default())?;
            self.forget_loaded();
        }
        Ok(())
    }

    /// Keeps everyone out while the lock is held, for whoever removes the store itself.
    pub(super) fn alone(&self) -> Result<Lock> {
        exclude_leases(self.layout())
    }

    /// Returns how many bytes the files of the store take.
    pub(super) fn disk_bytes(&self) -> Result<u64> {
        let packs: u64 = index::list_packs(self.layout())?.iter().map(|pack| pack.len).sum();
        Ok(packs + self.index_bytes()?)
    }

    /// Returns how many bytes the index takes.
    pub(super) fn index_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for path in super::list_dir(&self.layout().index())? {
            bytes += durable::look(&path).map_or(0, |metadata| metadata.len());
        }
        Ok(bytes)
    }

    /// Returns a verified index of all packs; the caller excludes leases.
    pub(super) fn view(&self) -> Result<View> {
        remove_leftovers(self.layout())?;
        let packs = index::list_packs(self.layout())?;
        let on_disk: HashSet<PackId> = packs.iter().map(|pack| pack.id).collect();
        let index = match sound_index(self) {
            Err(error) if is_index_damage(&error) => None,
            Ok(index) if index.packs().is_subset(&on_disk) => Some(index),
            Ok(_) => None,
            Err(error) => return Err(error),
        };
        let Some(index) = index else {
            index::rebuild(self.layout())?;
            return Ok(View { index: sound_index(self)?, packs });
        };
        if !index::index_strays(self.layout(), &index, &packs)? {
            return Ok(View { index, packs });
        }
        Ok(View { index: Index::load_again(self.layout(), &index.segments)?, packs })
    }

    fn sweep(
        &self,
        view: &View,
        marks: &Marks,
        plan: Sweep,
        may_go: &mut dyn FnMut() -> Result<()>,
        progress: &Progress,
    ) -> Result<GcReport> {
        let Sweep { mut dead, rewrite, mut report } = plan;
        progress.stage("removing packs", (dead.len() + rewrite.len()) as u64, 0);
        let mut written = Written::default();
        match self.rewrite(view, marks, &rewrite, &mut written, &mut report, progress) {
            Err(error) if error.kind() == Kind::NoSpace => {
                report.is_cut_short = true;
                (report.rewritten_packs, report.copied_bytes) = (0, 0);
                written = Written::default();
            }
            other => dead.extend(other?),
        }
        // A rewritten pack may have come out identical to one that is to go.
        dead.retain(|pack| !written.packs.contains(&pack.id));
        if dead.is_empty() {
            return Ok(report);
        }
        report.removed_packs = dead.len() as u64;
        report.removed_bytes = dead.iter().map(|pack| pack.len).sum();
        may_go()?;
        self.remove(view, &dead, &written)?;
        progress.add(dead.len() as u64, 0);
        Ok(report)
    }

    /// Copies the live chunks of `packs`, durably, and returns the packs that are now dispensable.
    fn rewrite(
        &self,
        view: &View,
        marks: &Marks,
        packs: &[PackOnDisk],
        written: &mut Written,
        report: &mut GcReport,
        progress: &Progress,
    ) -> Result<Vec<PackOnDisk>> {
        let mut done = Vec::new();
        for pack in packs {
            match self.copy_live(view, marks, pack, written) {
                Ok(copied) => {
                    done.push(*pack);
                    report.rewritten_packs += 1;
                    report.copied_bytes += copied;
                }
                Err(error) if error.kind() == Kind::Corrupt => report.findings.push(self.damaged(pack.id, &error)),
                Err(error) => return Err(error),
            }
            progress.add(1, 0);
        }
        written.seal(self)?;
        written.flush(self)?;
        Ok(done)
    }

    fn copy_live(&self, view: &View, marks: &Marks, pack: &PackOnDisk, written: &mut Written) -> Result<u64> {
        let path = pack::path_of(&self.layout().packs(), pack.id);
        let file = durable::open(&path).context(|| format!("cannot read chunk pack '{}'", path.display()))?;
        let mut copied = 0;
        for entry in index::read_toc(&path)? {
            if !self.is_needed(view, marks, pack.id, &entry)? {
                continue;
            }
            let mut record = vec![0; entry.record_len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut record, entry.offset.into())
                .context(|| format!("cannot read chunk pack '{}'", path.display()))?;
            let (header, stored) = pack::open_record(&record, &entry)
                .context(|| format!("cannot copy the chunk at byte {} of '{}'", entry.offset, path.display()))?;
            written.append(self, &header, stored)?;
            copied += entry.cost();
        }
        Ok(copied)
    }

    /// Says whether this copy of a chunk must stay: by the pack's own table, which knows better than the index.
    fn is_needed(&self, view: &View, marks: &Marks, pack: PackId, entry: &TocEntry) -> Result<bool> {
        let Some(found) = view.index.find(&entry.id)? else { return Ok(true) };
        if !marks.is_set(found.segment, found.position) {
            return Ok(false);
        }
        if (found.location.pack, found.location.offset) == (pack, entry.offset) {
            return Ok(true);
        }
        // Another copy is the one that stays. Is it good?
        let mut plain = Vec::new();
        let mut take = |record: &[u8], entry: &TocEntry| pack::unpack(record, entry, &mut plain);
        Ok(self.read_at(&entry.id, &found.location, pack::MAX_CHUNK, &mut take).is_err())
    }

    /// Tells the index that the packs are gone and what is there instead, then removes them.
    pub(super) fn remove(&self, view: &View, dead: &[PackOnDisk], written: &Written) -> Result<()> {
        let gone: HashSet<PackId> = dead.iter().map(|pack| pack.id).collect();
        let layout = self.layout();
        let is_indexed = match self.publish_without(view, &gone, written) {
            Err(error) if error.kind() == Kind::NoSpace => {
                // No room for a new index: do without one until there is. Readers that need it meanwhile wait for us.
                durable::remove(&layout.list())?;
                durable::sync_dir(&layout.index())?;
                false
            }
            other => other.map(|()| true)?,
        };
        if !is_indexed {
            remove_segments(self, &[])?;
        }
        for pack in dead {
            durable::remove(&pack::path_of(&layout.packs(), pack.id))?;
        }
        match is_indexed {
            true => remove_segments(self, &index::read_list(layout)?),
            false => index::rebuild(layout),
        }
    }

    fn publish_without(&self, view: &View, gone: &HashSet<PackId>, written: &Written) -> Result<()> {
        let layout = self.layout();
        let is_left_out = |pack: &PackId| gone.contains(pack) || written.packs.contains(pack);
        let merged = segment::merge(&view.index.segments, &is_left_out, &layout.tmp(), &layout.index())?;
        let mut segments: Vec<SegmentId> = merged.into_iter().collect();
        segments.extend(written.segments.iter().filter(|id| Some(**id) != merged));
        let _lock = lock_list(layout)?;
        index::replace_list(layout, &segments)
    }

    pub(super) fn damaged(&self, pack: PackId, error: &Error) -> Finding {
        Finding {
            file: pack::path_of(&self.layout().packs(), pack),
            offset: None,
            chunk: None,
            problem: format!("{error:#}"),
            remedy: "the pack was left alone; check and repair the store",
        }
    }
}

/// The store as whoever removes from it sees it.
pub(super) struct View {
    index: Index,
    pub packs: Vec<PackOnDisk>,
}

fn sound_index(store: &Store) -> Result<Index> {
    let index = Index::load(store.layout())?;
    index.segments.iter().try_for_each(|segment| segment.verify())?;
    Ok(index)
}

/// One bit for each entry of the index.
struct Marks {
    bits: Vec<Vec<u64>>,
    n_live: u64,
    n_absent: u64,
}

impl Marks {
    fn set(&mut self, segment: usize, position: u64) {
        let word = &mut self.bits[segment][position as usize / 64];
        let bit = 1 << (position % 64);
        self.n_live += u64::from(*word & bit == 0);
        *word |= bit;
    }

    fn is_set(&self, segment: usize, position: u64) -> bool {
        self.bits[segment][position as usize / 64] >> (position % 64) & 1 == 1
    }
}

/// Marks every chunk but `doomed`, which ascend.
fn all_but(index: &Index, doomed: &[ChunkId]) -> Result<Marks> {
    let mut marks = Marks { bits: Vec::new(), n_live: 0, n_absent: 0 };
    for segment in &index.segments {
        let mut bits = vec![0_u64; segment.trailer.n_entries.div_ceil(64) as usize];
        let mut cursor = segment.entries();
        let mut position = 0;
        while let Some(entry) = cursor.next_entry()? {
            let is_doomed = doomed.binary_search(&entry.id).is_ok();
            bits[position / 64] |= u64::from(!is_doomed) << (position % 64);
            marks.n_live += u64::from(!is_doomed);
            position += 1;
        }
        marks.bits.push(bits);
    }
    Ok(marks)
}

fn mark(index: &Index, live: &mut Live<'_>, progress: &Progress) -> Result<Marks> {
    let bits = index.segments.iter().map(|segment| vec![0; segment.trailer.n_entries.div_ceil(64) as usize]).collect();
    let mut marks = Marks { bits, n_live: 0, n_absent: 0 };
    live(&mut |id| {
        match index.find(&id)? {
            Some(found) => marks.set(found.segment, found.position),
            None => marks.n_absent += 1,
        }
        progress.add(1, 0);
        Ok(())
    })?;
    Ok(marks)
}

/// What is to be done with the packs.
struct Sweep {
    dead: Vec<PackOnDisk>,
    rewrite: Vec<PackOnDisk>,
    report: GcReport,
}

impl Sweep {
    fn plan(store: &Store, view: &View, marks: &Marks, options: &GcOptions) -> Result<Self> {
        let live = live_bytes(&view.index, marks)?;
        let report = GcReport { live_chunks: marks.n_live, absent_chunks: marks.n_absent, ..GcReport::default() };
        let mut plan = Self { dead: Vec::new(), rewrite: Vec::new(), report };
        for pack in &view.packs {
            let total = pack.len.saturating_sub((pack::HEADER_LEN + pack::TRAILER_LEN) as u64);
            let live = live.get(&pack.id).copied().unwrap_or(0).min(total);
            let dead = total - live;
            let is_young = options.keep_since.is_some_and(|since| pack.modified >= since);
            let is_wasteful = live == 0 || dead as f64 > total as f64 * options.max_dead_ratio;
            if is_young || !is_wasteful {
                plan.report.dead_bytes_left += dead;
            } else {
                plan.add(store, view, marks, pack, dead)?;
            }
        }
        if options.dry_run {
            let all = || plan.dead.iter().chain(&plan.rewrite);
            (plan.report.removed_packs, plan.report.removed_bytes) = (all().count() as u64, all().map(|pack| pack.len).sum());
            plan.report.rewritten_packs = plan.rewrite.len() as u64;
        }
        Ok(plan)
    }

    /// Looks into the pack's own table before it is called dead.
    fn add(&mut self, store: &Store, view: &View, marks: &Marks, pack: &PackOnDisk, dead: u64) -> Result<()> {
        match index::read_toc(&pack::path_of(&store.layout().packs(), pack.id)) {
            Err(error) if error.kind() == Kind::Corrupt => {
                self.report.dead_bytes_left += dead;
                self.report.findings.push(store.damaged(pack.id, &error));
            }
            toc => {
                let is_needed = |entry: &TocEntry| store.is_needed(view, marks, pack.id, entry);
                let mut needed = false;
                for entry in &toc? {
                    needed = needed || is_needed(entry)?;
                }
                if needed { self.rewrite.push(*pack) } else { self.dead.push(*pack) }
            }
        }
        Ok(())
    }
}

/// Returns how many bytes of each pack are live.
fn live_bytes(index: &Index, marks: &Marks) -> Result<HashMap<PackId, u64>> {
    let mut live = HashMap::new();
    for (i, segment) in index.segments.iter().enumerate() {
        let mut by_pack = vec![0; segment.trailer.n_packs as usize];
        let mut cursor = segment.entries();
        let mut position = 0;
        while let Some(entry) = cursor.next_entry()? {
            if marks.is_set(i, position) {
                by_pack[entry.pack as usize] += cost(&index::location(segment, &entry));
            }
            position += 1;
        }
        for (pack, bytes) in segment.packs().zip(by_pack) {
            *live.entry(pack).or_insert(0) += bytes;
        }
    }
    Ok(live)
}

fn cost(place: &Location) -> u64 {
    u64::from(place.stored_len) + (pack::RECORD_HEADER_LEN + pack::TOC_ENTRY_LEN) as u64
}

/// New packs, with copies of live chunks.
#[derive(Default)]
pub(super) struct Written {
    open: Option<PackWriter>,
    pub packs: HashSet<PackId>,
    unindexed: Vec<(PackId, Vec<TocEntry>)>,
    /// What the index says of `packs`.
    pub segments: Vec<SegmentId>,
}

impl Written {
    pub fn append(&mut self, store: &Store, header: &pack::RecordHeader, stored: &[u8]) -> Result<()> {
        if self.open.as_ref().is_some_and(PackWriter::is_full) {
            self.seal(store)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(PackWriter::create(&store.layout().tmp())?),
        };
        open.append(header, stored)
    }

    pub fn seal(&mut self, store: &Store) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let SealedPack { id, toc, dir } = open.seal(&store.layout().packs())?;
        durable::sync_dir(&dir)?;
        self.packs.insert(id);
        self.unindexed.push((id, toc));
        match self.unindexed.iter().map(|(_, toc)| toc.len()).sum::<usize>() >= index::FLUSH_ENTRIES {
            true => self.flush(store),
            false => Ok(()),
        }
    }

    pub fn flush(&mut self, store: &Store) -> Result<()> {
        if !self.unindexed.is_empty() {
            self.segments.extend(index::write_segment(store.layout(), &mut self.unindexed)?);
        }
        Ok(())
    }
}

/// Removes all segments but those in `listed`; the caller excludes leases.
fn remove_segments(store: &Store, listed: &[SegmentId]) -> Result<()> {
    let listed: Vec<_> = listed.iter().map(|id| segment::path_of(&store.layout().index(), *id)).collect();
    for path in super::list_dir(&store.layout().index())? {
        if path.extension().is_some_and(|extension| extension == "segment") && !listed.contains(&path) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}
