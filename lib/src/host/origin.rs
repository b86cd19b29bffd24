//! Changes that are made here first: files and commands become work in progress, which then becomes part of the type's branch.

use std::path::PathBuf;

use super::halt::{Halt, Why};
use super::history::{Model, Progress as Far};
use super::plan::{Stop, check_drift, journal_of, line_to, parents, read_entry};
use super::replay::{guarded, is_ok};
use super::run::{Ended, Ground, Job, boot_id};
use super::{Host, dpkg};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::file::write::{ChunkSink, cut_file};
use crate::git::index::CachedStat;
use crate::git::object::FILE;
use crate::git::{NewIndex, Oid, PackWriter};
use crate::journal::{Entry, EntryId, HandlerName, Kind as EntryKind, Name};
use crate::progress::Progress;
use crate::repo::exclude::{ExcludeOptions, Excludes};
use crate::repo::restore::{ExchangeOptions, exchange};
use crate::repo::scan::{Change, ScanOptions, Scope, Sink, Staged, scan, shown};
use crate::repo::seen::Seen;
use crate::repo::stage::{CommitInfo, Recorded, commit_on, nothing_else, record_on};
use crate::repo::{next, status, wip};
use crate::safepath::stat_fd;
use crate::store::Writer;

/// What becomes of a command that is to be journalled.
#[derive(Debug)]
pub enum Executed {
    /// It succeeded, or was not needed, and is in the work in progress, with the owned files that it changed.
    Done {
        /// The entry.
        id: EntryId,
        /// The commit.
        commit: Oid,
        /// What it changed of what is owned.
        changes: Vec<Change>,
        /// The guard that made it needless.
        spared: Option<&'static str>,
    },
    /// It failed, and nothing was journalled.
    Failed(Halt),
}

impl Host<'_> {
    /// Returns what differs from the index under the owned paths.
    pub fn drift(&self) -> Result<Vec<Change>> {
        let progress = Progress::default();
        Ok(scan(self.repo, &*self.repo.index()?, &self.owned()?, Sink::Compare, &progress)?.changes.to_vec())
    }

    fn owned(&self) -> Result<ScanOptions> {
        let excludes = Excludes::new(ExcludeOptions::default(), &self.repo.places.git_dir.join("info/exclude"))?;
        Ok(ScanOptions { scope: Scope::Owned, excludes, one_file_system: false, by_reference: false })
    }

    pub(super) fn info(&self, message: String) -> CommitInfo {
        let message = format!("{}\n", message.trim_end());
        CommitInfo { identity: self.call.identity.clone(), time: self.call.now as i64, offset: self.call.offset, message }
    }

    /// Takes the files that `options` name into the work in progress, as they are now.
    pub fn snap(&mut self, options: &ScanOptions, message: String, progress: &Progress) -> Result<Recorded> {
        self.follow(Model::Congruent)?;
        self.must_be_alone()?;
        self.finish_cut_off()?;
        let line = wip::line(self.repo)?;
        record_on(self.repo, &self.lock, &line, options, Some(&self.info(message)), &nothing_else, progress)
    }

    /// Runs a command here and, if it succeeds, takes it into the work in progress; `inputs` are files on this host.
    pub fn exec(
        &mut self,
        mut entry: Entry,
        inputs: Vec<(Name, PathBuf)>,
        message: Option<String>,
        progress: &Progress,
    ) -> Result<Executed> {
        self.follow(Model::Congruent)?;
        self.must_be_alone()?;
        entry.check()?;
        if let Some((id, done, commit)) = self.finish_cut_off()? {
            entry.inputs = inputs.iter().map(|(name, _)| name.clone()).collect();
            if (Entry { effects: entry.effects.clone(), ..done }) == entry {
                return Ok(Executed::Done { id, commit, changes: Vec::new(), spared: None });
            }
        }
        let drift = self.drift()?;
        if let Some(change) = drift.first() {
            let message = format!(
                "{} owned files differ from what is recorded, '{}' for one, and then nobody can tell what the command changes; \
                 'gdo snap PATH' records them, 'gdo restore PATH' takes them back",
                drift.len(),
                shown(&change.path)
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        let id = self.new_id()?;
        let ground = Ground::of(&self.repo.places);
        entry.inputs = inputs.iter().map(|(name, _)| name.clone()).collect();
        let here = self.copy_inputs(&id, &entry, &inputs)?;
        let mut spared = None;
        match guarded(self.repo, &ground, &id, &entry, &here)? {
            Some(guard) => {
                self.note("spared", &[("entry", &id.to_string()), ("guard", guard)])?;
                spared = Some(guard);
            }
            None => {
                let (ended, sequence) = self.run_entry(&ground, &id, &entry, &here)?;
                if !is_ok(&entry, ended) {
                    self.remove_inputs(&id)?;
                    let what = format!("'{}' failed: {}; it is not in the journal", entry.shown(), ended.told());
                    let output = format!("gdo log --output {sequence}");
                    let ways = [
                        (&*output, "shows what it said"),
                        ("gdo status", "shows what it changed of what is owned"),
                        ("gdo restore", "takes that back"),
                    ];
                    return Ok(Executed::Failed(Halt::new(Why::Failed, what, &ways).with(self.last_words(sequence))));
                }
            }
        }
        let message = message.unwrap_or_else(|| format!("exec {}", entry.shown().chars().take(60).collect::<String>()));
        let recorded = self.journal(&id, &entry, &inputs, message, progress)?;
        self.remove_inputs(&id)?;
        let commit = recorded.commit.ok_or_else(|| Error::new(Kind::Bug, "BUG: an entry made no commit"))?;
        Ok(Executed::Done { id, commit, changes: recorded.found.changes.to_vec(), spared })
    }

    /// Takes the entry into the work in progress that is staged and not committed, because a run was cut off when its command had ended; else the next
    /// one would run it again, and journal it twice. Returns it with its commit.
    fn finish_cut_off(&self) -> Result<Option<(EntryId, Entry, Oid)>> {
        if self.history().pending.is_some() || self.history().backing.is_some() || next::tip(self.repo)?.is_some() {
            return Ok(None);
        }
        let line = wip::line(self.repo)?;
        let known =
            line.tip.map(|tip| journal_of(self.repo, self.repo.objects.commit(&tip)?.tree)).transpose()?.unwrap_or_default();
        let index = self.repo.index()?;
        let mut staged = index.iter().filter_map(|entry| Some((EntryId::of_path(entry.path)?.ok()?, entry.oid)));
        let Some((id, oid)) = staged.rfind(|(id, _)| !known.contains_key(id) && self.history().is_over(id)) else {
            return Ok(None);
        };
        let entry = read_entry(self.repo, &oid, &id)?;
        let info = self.info(format!("exec {}", entry.shown().chars().take(60).collect::<String>()));
        Ok(commit_on(self.repo, &self.lock, &line, &info)?.map(|commit| (id, entry, commit)))
    }

    /// Adds a start of the machine to the work in progress: what follows waits for it, here too.
    pub fn reboot(&mut self, message: Option<String>, progress: &Progress) -> Result<EntryId> {
        self.follow(Model::Congruent)?;
        let id = self.new_id()?;
        let entry = Entry::new(EntryKind::Reboot, Vec::new());
        self.journal(&id, &entry, &[], message.unwrap_or_else(|| "reboot".to_owned()), progress)?;
        self.note("run", &[("entry", &id.to_string()), ("boot", &boot_id()?)])?;
        Ok(id)
    }

    /// Adds the handler `name`, or another version of it, to the work in progress.
    pub fn set_handler(&mut self, name: &HandlerName, handler: &Entry, progress: &Progress) -> Result<Option<Oid>> {
        self.follow(Model::Congruent)?;
        let path = name.path();
        handler.check()?;
        let text = handler.encode();
        let extra = |_: &_, pack: &PackWriter<'_>, _: &Writer| {
            Ok(vec![Staged { path: path.clone(), oid: pack.blob(&text)?, mode: FILE, stat: CachedStat::default() }])
        };
        let (line, info) = (wip::line(self.repo)?, self.info(format!("handler {}", name.as_str())));
        Ok(record_on(self.repo, &self.lock, &line, &self.nothing()?, Some(&info), &extra, progress)?.commit)
    }

    /// Makes the work in progress part of the branch; returns where that is then.
    pub fn check_in(&mut self) -> Result<Oid> {
        self.must_be_alone()?;
        self.finish_cut_off()?;
        if let (Some(tip), Some(branch)) = (wip::tip(self.repo)?, self.repo.git.head_ref()?) {
            self.must_be_over(tip)?;
            self.must_be_ahead(tip, branch.strip_prefix("refs/heads/").unwrap_or(&branch))?;
        }
        let tip = wip::publish(self.repo, &self.lock)?;
        self.note("done", &[("commit", &tip.to_string())])?;
        Ok(tip)
    }

    /// Fails if an entry of the work in progress is not over on this host itself.
    fn must_be_over(&self, tip: Oid) -> Result<()> {
        for id in journal_of(self.repo, self.repo.objects.commit(&tip)?.tree)?.into_keys() {
            match self.history().entry(&id) {
                Some(Far::Started { boot, .. }) if *boot == boot_id()? => {
                    let message = "this machine was not started anew since 'gdo reboot'; reboot it, or say 'gdo resume --done'";
                    return Err(Error::new(Kind::Reboot, message));
                }
                Some(Far::Failed { .. }) => {
                    return Err(Error::new(Kind::Halted, format!("entry {id} failed here; 'gdo abort' takes all back")));
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Fails if the branch went on elsewhere, as far as that was fetched.
    fn must_be_ahead(&self, tip: Oid, branch: &str) -> Result<()> {
        let listed = self.repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", "refs/remotes/"])?;
        for line in String::from_utf8_lossy(&listed).lines() {
            let Some((oid, name)) = line.split_once(' ') else { continue };
            let Some((remote, _)) =
                name.strip_prefix("refs/remotes/").and_then(|name| name.split_once('/')).filter(|(_, rest)| *rest == branch)
            else {
                continue;
            };
            let is_in = self.repo.git.output(&["merge-base", "--is-ancestor", oid, &tip.to_string()], b"")?.status.success();
            if !is_in {
                let message = format!("'{branch}' went on at '{remote}'; 'gdo abort', then 'gdo up', and do it again");
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(())
    }

    /// Takes the work in progress back: what can be undone is undone in reverse, then the files; returns what could not be undone.
    pub fn abort(&mut self, content_only: bool, progress: &Progress) -> Result<Vec<String>> {
        let nothing = || Error::new(Kind::NotFound, "there is no work in progress");
        if let Some(tip) = next::tip(self.repo)? {
            if self.history().pending.is_some() {
                let message =
                    format!("commit {tip} is applied by half; 'gdo up' goes on with it, and then 'gdo rollback' takes it back");
                return Err(Error::new(Kind::Halted, message));
            }
            next::remove(self.repo, &self.lock)?;
            return Ok(Vec::new());
        }
        self.must_be_alone()?;
        self.finish_cut_off()?;
        let tip = wip::tip(self.repo)?.ok_or_else(nothing)?;
        let head = self.repo.head()?;
        let commits = line_to(self.repo, head, tip)?.unwrap_or_default();
        let base = head.map(|head| self.repo.objects.commit(&head).map(|data| data.tree)).transpose()?;
        let base = base.unwrap_or_else(crate::git::empty_tree);
        let tree = self.repo.objects.commit(&tip)?.tree;
        // What an abort that was killed took back already is no obstacle; what somebody changed since is.
        let changes = status::compare_work_trees(self.repo, tree, base)?;
        let seen = check_drift(self.repo, (tree, base), &changes, true).map_err(Stop::into_error)?.seen;
        let left = self.undo(head, &commits, content_only)?;
        self.lay_back((tree, base), content_only.then_some(&seen), progress)?;
        let here = self.repo.index()?;
        let index = status::index_after(self.repo, &here, tree, base)?;
        self.repo.write_index(&NewIndex::of(&index).in_place_of(&here))?;
        self.repo.git.delete_ref(wip::WIP, tip)?;
        self.repo.note_refs(&self.lock)?;
        status::refresh(self.repo, progress)?;
        Ok(left)
    }

    /// Brings the owned files from the one tree to the other, those that are as they were `seen`, if no command ran since that may have changed them.
    pub(super) fn lay_back(&self, (from, to): (Oid, Oid), seen: Option<&Seen>, progress: &Progress) -> Result<()> {
        let changes = status::compare_work_trees(self.repo, from, to)?;
        let paths: Vec<Vec<u8>> = changes.into_iter().map(|change| change.path).collect();
        let paths = [parents(self.repo, (from, to), &paths)?, paths].concat();
        let how = ExchangeOptions { seen, ..ExchangeOptions::default() };
        let _held = dpkg::hold(self.repo, progress)?;
        exchange(self.repo, (from, to), &paths, &*self.repo.laying, how, progress).map(drop)
    }

    pub(super) fn new_id(&self) -> Result<EntryId> {
        let tip = wip::line(self.repo)?.tip;
        let known = tip.map(|tip| journal_of(self.repo, self.repo.objects.commit(&tip)?.tree)).transpose()?;
        self.new_id_after(known.unwrap_or_default().keys().next_back())
    }

    /// Returns the id of an entry that is made now, and follows `last`: the clock may stand still, or be set back.
    pub(super) fn new_id_after(&self, last: Option<&EntryId>) -> Result<EntryId> {
        let mut random = [0; 10];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context(|| "cannot get random bytes")?;
        let millis = self.call.now.saturating_mul(1000).max(last.map_or(0, |last| last.millis() + 1));
        Ok(EntryId::new(millis, random))
    }

    pub(super) fn nothing(&self) -> Result<ScanOptions> {
        Ok(ScanOptions { scope: Scope::Paths(Vec::new()), ..self.owned()? })
    }

    /// Commits an entry, its inputs, and what changed under the owned paths, to the work in progress.
    fn journal(
        &mut self,
        id: &EntryId,
        entry: &Entry,
        inputs: &[(Name, PathBuf)],
        message: String,
        progress: &Progress,
    ) -> Result<Recorded> {
        let line = wip::line(self.repo)?;
        let info = self.info(message);
        let here = self.inputs_of(id);
        let extra = |found: &crate::repo::scan::Found, pack: &PackWriter<'_>, chunks: &Writer| -> Result<Vec<Staged>> {
            let mut entry = entry.clone();
            entry.effects = found.changes.iter().map(|(path, _)| path.to_vec()).collect();
            entry.effects.sort();
            entry.effects.dedup();
            let staged = |path, oid| Staged { path, oid, mode: FILE, stat: CachedStat::default() };
            let mut all = vec![staged(id.path(), pack.blob(&entry.encode())?)];
            for (name, _) in inputs {
                let what = || format!("cannot store input '{}'", name.as_str());
                let oid = self.store_input(&here.join(name.as_str()), pack, chunks).context(what)?;
                all.push(staged(id.input_path(name.as_str()), oid));
            }
            Ok(all)
        };
        record_on(self.repo, &self.lock, &line, &self.owned()?, Some(&info), &extra, progress)
    }

    fn store_input(&self, path: &std::path::Path, pack: &PackWriter<'_>, chunks: &Writer) -> Result<Oid> {
        let file = durable::open(path)?;
        let size = stat_fd(&file)?.size;
        if size < self.repo.settings.threshold {
            return pack.blob(&durable::read(path)?);
        }
        let has_failed = std::sync::atomic::AtomicBool::new(false);
        let sink = ChunkSink::Store { writer: chunks, has_failed: &has_failed };
        let settings = &self.repo.settings;
        let index = cut_file(&file, size, &[], &settings.chunker, sink, settings.n_threads, &Progress::default())?;
        pack.blob(&index.encode())
    }

    /// Decides about the entry that replay stopped at: it is run again, or taken for done.
    pub fn decide(&mut self, is_done: bool) -> Result<EntryId> {
        let id = self.history().stuck().cloned();
        let id = id.ok_or_else(|| Error::new(Kind::NotFound, "no command failed or was interrupted here; 'gdo up' goes on"))?;
        if !is_done {
            self.must_be_alone()?;
        }
        let by = self.call.by.clone();
        let word = if is_done { "done" } else { "rerun" };
        self.note("decided", &[("entry", &id.to_string()), ("as", word), ("by", &by)])?;
        self.remove_inputs(&id)?;
        Ok(id)
    }

    /// Goes on without an entry: this host is then no more like the others.
    pub fn skip(&mut self, id: &EntryId, reason: &str) -> Result<()> {
        if self.history().is_over(id) {
            return Err(Error::new(Kind::Usage, format!("entry {id} is over on this host")));
        }
        let nothing = || {
            Error::new(
                Kind::NotFound,
                format!("entry {id} is not one that this host stopped at; 'gdo status' says where it stands"),
            )
        };
        let pending = self.history().pending.as_ref().ok_or_else(nothing)?.commit;
        if !journal_of(self.repo, self.repo.objects.commit(&pending)?.tree)?.contains_key(id) {
            return Err(nothing());
        }
        let by = self.call.by.clone();
        self.note("decided", &[("entry", &id.to_string()), ("as", "skip"), ("by", &by), ("reason", reason)])?;
        self.remove_inputs(id)
    }

    /// Starts the machine anew, if it is the one that runs.
    ///
    /// Where that fails, nothing is changed: whoever calls may try again.
    pub fn start_anew(&self) -> Result<()> {
        if self.repo.places.work_tree != std::path::Path::new("/") {
            return Ok(());
        }
        let (ended, said) = Ground::of(&self.repo.places).run(&Job::of(vec![b"systemctl".to_vec(), b"reboot".to_vec()]))?;
        if ended == Ended::Code(0) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).map(crate::child::told).unwrap_or_default();
        let separator = if last.is_empty() { "" } else { ": " };
        let message = format!("'systemctl reboot' failed: {}{separator}{last}; start this machine anew yourself", ended.told());
        Err(Error::new(Kind::Reboot, message))
    }
}
