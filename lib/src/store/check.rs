//! Checking what is stored, and putting damaged packs aside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::index::{self, Index, PackOnDisk};
use super::pack::{self, Damage};
use super::{Store, WriteOptions, is_index_damage, list_dir, reference, rescue, segment};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};
use crate::progress::Progress;
use crate::threads;

/// Something that is wrong in a store, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file concerned.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// The chunk that is lost, if it is one.
    pub chunk: Option<ChunkId>,
    /// What does not hold, and why.
    pub problem: String,
    /// What to do next.
    pub remedy: &'static str,
}

/// What a look at all packs brought.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is wrong, by file and place.
    pub findings: Vec<Finding>,
    /// The packs in which nothing is, when every byte was read; not those of which the chunks lie elsewhere.
    pub sound: BTreeSet<PackId>,
    /// Bytes of packs that were as they had been when they were sound.
    pub n_same: u64,
    /// Bytes of packs that were verified.
    pub n_fresh: u64,
}

const POISONED: &str = "BUG: a thread panicked while it checked packs";

const INDEX_REMEDY: &str = "nothing: the index was made anew from the packs";
const PACK_REMEDY: &str = "'gdo check --repair --from SOURCE' keeps what is sound and takes the rest from another store, or from a directory that has the files";

impl Store {
    /// Verifies the index and the table of every pack, and with `read_data` every byte: each pack against its name, each chunk
    /// as a restore would.
    ///
    /// A damaged index is reported and made anew; nothing else is changed. Progress counts packs as files.
    pub fn check(&self, read_data: bool, progress: &Progress) -> Result<Vec<Finding>> {
        Ok(self.check_after(&BTreeSet::new(), read_data, progress)?.findings)
    }

    /// Does so after packs were found `sound`: of those only the hash of all bytes is compared with the name.
    pub fn check_after(&self, sound: &BTreeSet<PackId>, read_data: bool, progress: &Progress) -> Result<Checked> {
        let _lease = self.lease()?;
        let packs = index::list_packs(self.layout())?;
        let total = if read_data { packs.iter().map(|pack| pack.len).sum() } else { 0 };
        progress.stage("checking packs", packs.len() as u64, total);
        let mut checked = self.check_packs(&packs, sound, read_data, progress)?;
        let findings = &mut checked.findings;
        findings.extend(self.check_strangers()?);
        let index_findings = self.check_index(&packs)?;
        if !index_findings.is_empty() {
            index::rebuild(self.layout())?;
        }
        self.close_packs();
        self.refresh()?;
        findings.extend(index_findings);
        findings.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
        Ok(checked)
    }

    /// Copies what is sound out of damaged packs, and moves those to `quarantine` in the store, where nothing looks for chunks; but for those that come out
    /// the same.
    ///
    /// Returns what [`Store::check`] with data found before. A chunk that is lost can be put again afterwards.
    pub fn repair(&self, progress: &Progress) -> Result<Vec<Finding>> {
        let writer = self.writer(WriteOptions::default())?;
        let findings = self.check(true, progress)?;
        let mut damaged: Vec<&Path> = findings.iter().filter(|f| f.remedy == PACK_REMEDY).map(|f| &*f.file).collect();
        damaged.dedup();
        let stamps: Vec<_> = damaged.iter().map(|path| durable::stamp(path)).collect();
        for path in &damaged {
            // If it cannot be looked at now, nothing is moved.
            for (header, stored) in sound_records(&rescue::read_damaged(path)?) {
                writer.append(&header, stored)?;
            }
        }
        let (_, _lease) = writer.finish_with_lease()?;
        let quarantine = self.layout().root.join("quarantine");
        for (path, stamp) in damaged.iter().zip(stamps) {
            let now = durable::stamp(path);
            // Where every record was sound, the copy of the pack has its name, and stands in its place.
            if now.is_none() || now != stamp {
                continue;
            }
            durable::create_dir_all(&quarantine, 0o700)?;
            durable::move_into(path, &quarantine)?;
        }
        if !damaged.is_empty() {
            index::rebuild(self.layout())?;
            self.close_packs();
            self.refresh()?;
        }
        Ok(findings)
    }

    fn check_packs(
        &self,
        packs: &[PackOnDisk],
        sound: &BTreeSet<PackId>,
        read_data: bool,
        progress: &Progress,
    ) -> Result<Checked> {
        let checked = Mutex::new(Checked::default());
        let check = |pack: &PackOnDisk, (): &mut ()| -> Result<()> {
            let path = pack::path_of(&self.layout().packs(), pack.id);
            let is_named = (read_data && sound.contains(&pack.id)).then(|| is_named_by_hash(&path, pack.id));
            let is_same = matches!(is_named, Some(Ok(true)));
            let mut found = if is_same { Vec::new() } else { self.check_pack(pack, &path, read_data)? };
            if let Some(Err(error)) = is_named
                && found.is_empty()
            {
                let problem = format!("{}: {error:#}", pack::GIVEN_LATER);
                found.push(Finding { file: path.clone(), offset: None, chunk: None, problem, remedy: PACK_REMEDY });
            }
            let is_sound = read_data && found.is_empty() && (is_same || !index::is_reference(&path).unwrap_or(true));
            let n_read = if read_data { pack.len } else { 0 };
            let mut checked = checked.lock().expect(POISONED);
            checked.findings.extend(found);
            checked.sound.extend(is_sound.then_some(pack.id));
            *(if is_same { &mut checked.n_same } else { &mut checked.n_fresh }) += n_read;
            progress.add(1, n_read);
            Ok(())
        };
        threads::each(usize::MAX, packs, || Ok(()), check)?;
        Ok(checked.into_inner().expect(POISONED))
    }

    fn check_pack(&self, pack: &PackOnDisk, path: &Path, read_data: bool) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut report = |damage: Damage| {
            let Damage { offset, chunk, error } = damage;
            let (offset, problem) = (Some(offset), format!("{error:#}"));
            findings.push(Finding { file: path.to_owned(), offset, chunk, problem, remedy: PACK_REMEDY });
        };
        if index::is_reference(path).unwrap_or(false) {
            self.check_reference(pack, path, read_data, &mut report);
            return Ok(findings);
        }
        let outcome = match read_data {
            true => verify_pack(pack, path, &mut report),
            false => index::read_toc(path).map(drop),
        };
        match outcome {
            // Bytes that the disk does not give back are as lost as wrong ones, and no reason to stop.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Io | Kind::NotFound | Kind::Refused) => {
                report(Damage { offset: 0, chunk: None, error });
            }
            other => other?,
        }
        Ok(findings)
    }

    /// Verifies a reference pack, and the file that it is about.
    fn check_reference(&self, pack: &PackOnDisk, path: &Path, read_data: bool, report: &mut dyn FnMut(Damage)) {
        let mut damaged = |offset, chunk, error| report(Damage { offset, chunk, error });
        let (found, file) = match reference::read(path).and_then(|found| found.open_file().map(|file| (found, file))) {
            Err(error) => return damaged(0, None, error),
            Ok(opened) => opened,
        };
        let end = found.entries.last().map_or(0, |last| found.base + u64::from(last.offset) + u64::from(last.plain_len));
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        if len < end {
            let problem = format!("'{}', which is its own store, has {len} bytes and had {end} or more", found.shown());
            return damaged(0, None, Error::new(Kind::Corrupt, problem));
        }
        if read_data && pack.id.as_bytes() != blake3::hash(&found.encode()).as_bytes() {
            damaged(0, None, Error::new(Kind::Corrupt, "the reference pack does not match its name"));
        }
        let mut record = Vec::new();
        for entry in found.entries.iter().filter(|_| read_data) {
            record.resize(entry.record_len(), 0);
            let at = found.base + u64::from(entry.offset);
            if let Err(error) = reference::read_record(&file, at, entry, &mut record) {
                damaged(at, Some(entry.id), error.wrap(format!("in '{}'", found.shown())));
            }
        }
    }

    /// Looks for files among the packs that are no packs.
    fn check_strangers(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for dir in list_dir(&self.layout().packs())? {
            for file in list_dir(&dir)? {
                let id = file.file_stem().and_then(|name| name.to_str()?.parse().ok());
                if id.is_none_or(|id| pack::path_of(&self.layout().packs(), id) != file) {
                    let problem = "this is no chunk pack, or lies in the wrong directory".to_owned();
                    findings.push(Finding { file, offset: None, chunk: None, problem, remedy: "remove it" });
                }
            }
        }
        Ok(findings)
    }

    /// Indexes packs that the list of segments knows nothing of, if that can be read.
    fn index_strays(&self, packs: &[PackOnDisk]) -> Result<bool> {
        let Ok(index) = Index::load(self.layout()) else { return Ok(false) };
        index::index_strays(self.layout(), &index, packs)
    }

    /// Does so for a chunk that was not found, before that is said.
    pub(super) fn index_all_packs(&self) -> Result<bool> {
        let _lease = self.lease()?;
        self.index_strays(&index::list_packs(self.layout())?)
    }

    fn check_index(&self, packs: &[PackOnDisk]) -> Result<Vec<Finding>> {
        let finding = |file: PathBuf, error: Error| {
            let problem = format!("{error:#}");
            vec![Finding { file, offset: None, chunk: None, problem, remedy: INDEX_REMEDY }]
        };
        self.index_strays(packs)?;
        let index = match Index::load(self.layout()) {
            // A new store has no list yet.
            Err(error) if error.kind() == Kind::NotFound && packs.is_empty() => return Ok(Vec::new()),
            Err(error) if is_index_damage(&error) => return Ok(finding(self.layout().list(), error)),
            other => other?,
        };
        for segment in &index.segments {
            match segment.verify() {
                Err(error) if is_index_damage(&error) => {
                    return Ok(finding(segment::path_of(&self.layout().index(), segment.id), error));
                }
                other => other?,
            }
        }
        let mut missing = index.packs();
        for pack in packs {
            missing.remove(&pack.id);
        }
        // A pack that was published after we listed them is no loss.
        missing.retain(|pack| !durable::is_there(&pack::path_of(&self.layout().packs(), *pack)));
        Ok(missing
            .into_iter()
            .map(|pack| Finding {
                file: pack::path_of(&self.layout().packs(), pack),
                offset: None,
                chunk: None,
                problem: "the index lists this pack, but it is gone, and its chunks with it".to_owned(),
                remedy: "'gdo check --repair --from SOURCE' takes its chunks from another store, or from a directory that has the files; the index was made anew",
            })
            .collect())
    }
}

/// Says whether a pack has the bytes that its name is the hash of.
fn is_named_by_hash(path: &Path, id: PackId) -> Result<bool> {
    Ok(durable::hash_file(path)?.as_bytes() == id.as_bytes())
}

/// Verifies every byte of a pack; no honest writer makes one longer than the cap.
fn verify_pack(pack: &PackOnDisk, path: &Path, report: &mut dyn FnMut(Damage)) -> Result<()> {
    let verified = index::with_pack(path, |len, read| {
        rescue::must_be_possible(len)?;
        pack::verify(len, pack.id, read, report);
        Ok(())
    });
    verified.context(|| format!("cannot read chunk pack '{}'", path.display()))
}

/// Returns the records of a pack that hold, plain bytes included.
fn sound_records(bytes: &[u8]) -> Vec<(pack::RecordHeader, &[u8])> {
    let mut plain = Vec::new();
    pack::salvage(bytes)
        .iter()
        .filter_map(|entry| {
            let record = &bytes[entry.offset as usize..];
            pack::unpack(record, entry, &mut plain).ok()?;
            pack::open_record(record, entry).ok()
        })
        .collect()
}
