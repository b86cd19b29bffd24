//! Maintenance: chunks are compressed once more, at a level that takes too long while somebody waits.
//!
//! Design: `docs/maintenance.md`. At each moment every chunk is in a pack that is whole and durable.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Instant;

use super::gc::Written;
use super::index::{self, PackOnDisk};
use super::lease::exclude_leases;
use super::pack::{self, Codec, MAX_CHUNK, RecordHeader, TARGET_LEN, TocEntry};
use super::{Finding, Layout, Store};
use crate::durable;
use crate::endline;
use crate::error::{Context, Kind, Result};
use crate::id::{ChunkId, PackId};
use crate::progress::Progress;
use crate::threads;

/// Packs are replaced when so many bytes were read: as much the disk must have free.
const BATCH: u64 = 64 << 20;
/// Packs shorter than this are put together with others, whatever that gains.
const SMALL: u64 = TARGET_LEN / 4;
/// Threads that compress.
const COMPRESSORS: usize = 4;

/// How chunks are compressed once more.
#[derive(Clone, Copy, Debug)]
pub struct Recompress {
    /// The zstd level.
    pub level: i32,
    /// Only tell what there is to do.
    pub dry_run: bool,
    /// No pack is begun after this moment.
    pub until: Option<Instant>,
}

/// Why a run ended before all was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutShort {
    /// Time was over.
    Time,
    /// The disk is too full for copies.
    NoSpace,
    /// Somebody stores chunks, so that none could be removed: some are there twice until the next run.
    Busy,
}

/// What was compressed once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recompressed {
    /// Packs that were done.
    pub packs: u64,
    /// Bytes that they had.
    pub bytes_before: u64,
    /// Bytes of what is there in their place.
    pub bytes_after: u64,
    /// Packs that are to be done still.
    pub left_packs: u64,
    /// Bytes of these.
    pub left_bytes: u64,
    /// Packs that stay because they are damaged.
    pub findings: Vec<Finding>,
    /// Why there is something left, if there is.
    pub cut_short: Option<CutShort>,
}

impl Store {
    /// Compresses at `how.level` what was not yet, in batches: each is written, durable and found before what it replaces goes.
    ///
    /// Fails with [`Kind::Locked`] while another run removes chunks; writers and readers may come and go.
    pub fn recompress(&self, how: &Recompress, progress: &Progress) -> Result<Recompressed> {
        let _one = self.removal_lock()?;
        self.refresh()?;
        let packs = index::list_packs(self.layout())?;
        let mut done = Done::read(self.layout());
        done.0.retain(|id, _| packs.iter().any(|pack| pack.id == *id));
        let mut todo: Vec<PackOnDisk> = packs.into_iter().filter(|pack| !done.has(&pack.id, how.level)).collect();
        todo.sort_by_key(|pack| (pack.modified, pack.id));
        let mut report = Recompressed::default();
        let sum = |packs: &[PackOnDisk]| packs.iter().map(|pack| pack.len).sum::<u64>();
        progress.stage("compressing chunks once more", todo.len() as u64, sum(&todo));
        let mut n_done = 0;
        while !how.dry_run && n_done < todo.len() && report.cut_short.is_none() {
            match self.recompress_some(&todo[n_done..], how, &mut done, &mut report, progress) {
                Ok(n) => n_done += n,
                Err(error) if error.kind() == Kind::NoSpace => report.cut_short = Some(CutShort::NoSpace),
                Err(error) => return Err(error),
            }
        }
        let left = &todo[n_done..];
        (report.left_packs, report.left_bytes) = (left.len() as u64, sum(left));
        Ok(report)
    }

    /// Does the first ones of `todo`, and returns how many.
    fn recompress_some(
        &self,
        todo: &[PackOnDisk],
        how: &Recompress,
        done: &mut Done,
        report: &mut Recompressed,
        progress: &Progress,
    ) -> Result<usize> {
        // Nobody takes what is being written for leftovers.
        let lease = self.lease()?;
        let (mut written, mut old, mut stay) = (Written::default(), Vec::new(), Vec::new());
        let (mut n_done, mut n_bytes, mut seen) = (0, 0, HashSet::new());
        for pack in todo {
            let is_late = how.until.is_some_and(|until| Instant::now() >= until);
            if is_late {
                report.cut_short = Some(CutShort::Time);
            }
            if n_bytes >= BATCH || is_late {
                break;
            }
            (n_done, n_bytes) = (n_done + 1, n_bytes + pack.len);
            match self.recompress_pack(pack.id, how.level, done) {
                Ok(records) if pack.len >= SMALL && !gains(pack.len, &records) => stay.push(*pack),
                Ok(records) => {
                    let mut new = records.iter().filter(|(header, _)| seen.insert(header.id));
                    new.try_for_each(|(header, stored)| written.append(self, header, stored))?;
                    old.push(*pack);
                }
                Err(error) if error.kind() == Kind::Corrupt => report.findings.push(self.damaged(pack.id, &error)),
                Err(error) => return Err(error),
            }
            progress.add(1, pack.len);
        }
        written.seal(self)?;
        written.flush(self)?;
        index::publish(self.layout(), &written.segments)?;
        done.0.extend(stay.iter().map(|pack| pack.id).chain(written.packs.iter().copied()).map(|id| (id, how.level)));
        done.write(self.layout())?;
        let len = |id: &PackId| durable::look(&pack::path_of(&self.layout().packs(), *id)).map(|found| found.len());
        report.packs += (stay.len() + old.len()) as u64;
        report.bytes_before += stay.iter().chain(&old).map(|pack| pack.len).sum::<u64>();
        report.bytes_after += stay.iter().map(|pack| pack.len).sum::<u64>();
        report.bytes_after += written.packs.iter().map(len).sum::<Result<u64>>()?;
        drop(lease);
        if !self.replace(&old, written)? {
            report.cut_short = Some(CutShort::Busy);
        }
        Ok(n_done)
    }

    /// Removes `old`, in whose place is what was `written`; returns false if somebody stores chunks.
    fn replace(&self, old: &[PackOnDisk], mut written: Written) -> Result<bool> {
        if old.is_empty() {
            return Ok(true);
        }
        let _alone = match exclude_leases(self.layout()) {
            Err(error) if error.kind() == Kind::Locked => return Ok(false),
            other => other?,
        };
        let view = self.view()?;
        let is_there = |id: &PackId| view.packs.iter().any(|pack| pack.id == *id);
        if written.packs.iter().all(is_there) {
            // What came out as it was is its own replacement.
            let gone: Vec<PackOnDisk> =
                old.iter().filter(|pack| is_there(&pack.id) && !written.packs.contains(&pack.id)).copied().collect();
            // A merge of the index may have left out what was there twice.
            written.segments = index::index_packs(self.layout(), written.packs.iter().copied())?;
            self.remove(&view, &gone, &written)?;
            self.forget_loaded();
        }
        Ok(true)
    }

    /// Returns the records of a pack, compressed anew where that makes them smaller, without those that a pack which is done has, too.
    fn recompress_pack(&self, id: PackId, level: i32, done: &Done) -> Result<Vec<(RecordHeader, Vec<u8>)>> {
        let path = pack::path_of(&self.layout().packs(), id);
        let what = || format!("cannot read chunk pack '{}'", path.display());
        let toc = index::read_toc(&path)?;
        let file = durable::open(&path).context(what)?;
        let records = Mutex::new(Vec::with_capacity(toc.len()));
        let compress = |entry: &TocEntry, again: &mut Again| -> Result<()> {
            if !self.is_done(&entry.id, level, done)? {
                let record = again.record(&file, entry).context(|| format!("byte {}", entry.offset)).context(what)?;
                records.lock().expect("BUG: a thread panicked while it compressed").push((entry.offset, record));
            }
            Ok(())
        };
        threads::each(COMPRESSORS, &toc, || Again::new(level), compress)?;
        let mut records = records.into_inner().expect("BUG: a thread panicked while it compressed");
        records.sort_by_key(|(offset, _)| *offset);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Says whether a sound copy of the chunk is in a pack that is done: an earlier run was cut off before it could remove the other.
    fn is_done(&self, id: &ChunkId, level: i32, done: &Done) -> Result<bool> {
        let mut plain = Vec::new();
        for place in self.find_all(id)?.iter().filter(|place| done.has(&place.pack, level)) {
            if self.read_at(id, place, MAX_CHUNK, &mut |record, entry| pack::unpack(record, entry, &mut plain)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Says whether a pack of `len` bytes gets smaller by a fiftieth.
fn gains(len: u64, records: &[(RecordHeader, Vec<u8>)]) -> bool {
    let extra = (pack::RECORD_HEADER_LEN + pack::TOC_ENTRY_LEN) as u64;
    let after: u64 = records.iter().map(|(_, stored)| stored.len() as u64 + extra).sum();
    after < len - len / 50
}

/// What one thread compresses with.
struct Again {
    compressor: zstd::bulk::Compressor<'static>,
    /// Tells in a thirtieth of the time what will not get smaller.
    quick: zstd::bulk::Compressor<'static>,
    record: Vec<u8>,
    plain: Vec<u8>,
    again: Vec<u8>,
}

impl Again {
    fn new(level: i32) -> Result<Self> {
        let at_level = |level| zstd::bulk::Compressor::new(level).context(|| format!("cannot compress at level {level}"));
        let (compressor, quick) = (at_level(level)?, at_level(1)?);
        Ok(Self { compressor, quick, record: Vec::new(), plain: Vec::new(), again: Vec::new() })
    }

    /// Returns the record of `entry` as small as it gets; it was verified from end to end, and so was what comes in its place.
    fn record(&mut self, file: &File, entry: &TocEntry) -> Result<(RecordHeader, Vec<u8>)> {
        self.record.resize(entry.record_len(), 0);
        file.read_exact_at(&mut self.record, entry.offset.into())?;
        pack::unpack(&self.record, entry, &mut self.plain)?;
        let (header, stored) = pack::open_record(&self.record, entry)?;
        self.again.clear();
        self.again.reserve(zstd::zstd_safe::compress_bound(self.plain.len()));
        // Whoever stored it plain may not have tried.
        let tries = [Some(&mut self.quick).filter(|_| header.codec == Codec::Plain), Some(&mut self.compressor)];
        let mut n = 0;
        for compressor in tries.into_iter().flatten() {
            n = compressor.compress_to_buffer(&self.plain, &mut self.again).context(|| "cannot compress a chunk")?;
            // As little is gained by less as a chunk costs to decompress.
            if n + n / 32 >= stored.len() {
                return Ok((header, stored.to_vec()));
            }
        }
        let better = RecordHeader { codec: Codec::Zstd, stored_len: n as u32, checksum: pack::checksum(&self.again), ..header };
        let bytes = [&better.encode()[..], &self.again].concat();
        pack::Record::verify(&bytes, &entry.id, self.plain.len(), &mut self.record)?;
        Ok((better, self.again.clone()))
    }
}

/// Packs that were compressed as well as they can be, each with the level.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done(BTreeMap<PackId, i32>);

const HEAD: &str = "git-devops store maintained 1\n";

impl Done {
    /// Reads what was noted; what is damaged tells nothing, and all is done once more.
    fn read(layout: &Layout) -> Self {
        durable::read(&layout.maintained()).ok().and_then(|bytes| Self::decode(&bytes)).unwrap_or_default()
    }

    fn write(&self, layout: &Layout) -> Result<()> {
        durable::publish(&layout.maintained(), &self.encode(), 0o600)
    }

    fn has(&self, id: &PackId, level: i32) -> bool {
        self.0.get(id).is_some_and(|done| *done >= level)
    }

    fn encode(&self) -> Vec<u8> {
        endline::add(self.0.iter().fold(HEAD.to_owned(), |text, (id, level)| text + &format!("{id} {level}\n")))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let lines = std::str::from_utf8(bytes).ok()?.strip_prefix(HEAD)?.lines();
        let entry = |line: &str| line.split_once(' ').and_then(|(id, level)| Some((id.parse().ok()?, level.parse().ok()?)));
        let done = Self(lines.map_while(entry).collect());
        (done.encode() == bytes).then_some(done)
    }
}
