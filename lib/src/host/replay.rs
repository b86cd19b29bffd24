//! Brings this host to a commit of its type: commit by commit, in order, each whole, and halts at the first that does not work.
//!
//! The log is written before and after each step, and alone decides how an interrupted replay goes on: `docs/replay.md`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::Host;
use super::dpkg::{self, Packages};
use super::halt::{Halt, Why};
use super::history::Progress as Far;
use super::plan::{CommitPlan, Step, Stop, are, check_drift, first, line_to, parents};
use super::run::{Ended, Ground, Job, boot_id};
use super::supply;
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::{NewIndex, Oid};
use crate::journal::{Entry, EntryId, IN, Kind as EntryKind, When, Words};
use crate::progress::Progress;
use crate::repo::restore::{ExchangeOptions, exchange};
use crate::repo::scan::{What, shown, split};
use crate::repo::seen::Seen;
use crate::repo::{Repo, next, status, wip};
use crate::safepath::Dir;

/// How to go on.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// Tell what would be done, and do nothing.
    pub dry_run: bool,
    /// The machine may be started anew.
    pub may_reboot: bool,
    /// So many removals in one commit are meant.
    pub yes_delete: usize,
}

/// What a replay tells while it goes on.
pub enum Event<'a> {
    /// A commit is begun.
    Commit(&'a CommitPlan),
    /// A command is started.
    Entry(&'a EntryId, &'a Entry),
    /// A command is not needed here.
    Spared(&'a EntryId, &'a Entry),
    /// A handler is started.
    Handler(&'a str, &'a Entry),
    /// A file is rendered anew, because what fills its template changed.
    Rendered(&'a [u8]),
    /// Packages that dpkg has not configured in full, before anything is done.
    Unsettled(&'a [String]),
}

/// Who is told.
pub type Tell<'a> = &'a mut dyn FnMut(Event<'_>) -> Result<()>;

/// What a replay did.
#[derive(Debug, Default)]
pub struct Replayed {
    /// The commits that were applied, or would be.
    pub applied: Vec<Oid>,
    /// Where it stopped.
    pub halt: Option<Halt>,
}

/// Applies the commits that lead to `target`.
pub fn up(host: &mut Host<'_>, target: Oid, options: &UpOptions, progress: &Progress, tell: Tell<'_>) -> Result<Replayed> {
    wip::must_not_be(host.repo)?;
    if let (Some(_), false) = (host.history.backing, options.dry_run) {
        return Err(Error::new(Kind::Halted, "a rollback was interrupted; 'gdo rollback' goes on with it"));
    }
    let head = host.repo.head()?;
    let Some(line) = line_to(host.repo, head, target)? else {
        let head = head.map(|head| head.to_string()).unwrap_or_default();
        let message = format!(
            "this host is at commit {head}, to which the first parents of {target} do not lead: a commit made here by hand, or another type? \
             'gdo log' shows what is here, 'gdo fork NEW' keeps it"
        );
        return Err(Error::refused(Reason::Fork, message));
    };
    if let Some(pending) = host.history.pending.as_ref().filter(|pending| Some(pending.commit) != head)
        && !line.contains(&pending.commit)
    {
        let message = format!(
            "commit {} is applied by half here, and is not on the way to {target}; 'gdo up --to {}' ends it, 'gdo rollback' takes it back",
            pending.commit,
            pending.commit.to_hex_with_len(12)
        );
        return Err(Error::new(Kind::Halted, message));
    }
    let mut replay = Replay { ground: Ground::of(&host.repo.places), target, host, options, progress, tell };
    let mut replayed = Replayed::default();
    match replay.all(head, &line, &mut replayed.applied) {
        Ok(()) if options.dry_run => (),
        Ok(()) => replay.host.end_next()?,
        Err(Stop::Error(error)) => return Err(error),
        Err(Stop::Halt(halt)) => {
            if !options.dry_run {
                let at = replay.host.history.pending.as_ref().map(|pending| pending.commit.to_string()).unwrap_or_default();
                replay.host.note("halt", &[("why", halt.why.id()), ("commit", &at), ("what", &halt.what)])?;
            }
            replayed.halt = Some(halt);
        }
    }
    Ok(replayed)
}

struct Replay<'a, 'h> {
    host: &'a mut Host<'h>,
    ground: Ground,
    target: Oid,
    options: &'a UpOptions,
    progress: &'a Progress,
    tell: Tell<'a>,
}

impl Replay<'_, '_> {
    fn all(&mut self, head: Option<Oid>, line: &[Oid], applied: &mut Vec<Oid>) -> Step<()> {
        if !self.options.dry_run {
            self.host.repair_head(head)?;
            // What a commit that is half done owes is done in its place.
            if let (Some(head), None) = (head, &self.host.history.pending) {
                let tree = self.host.repo.objects.commit(&head)?.tree;
                self.handlers(tree)?;
            }
            supply::check(self.host.repo, &supply::needs(self.host.repo, head, line)?)?;
        }
        if let (Some(packages), false) = (Packages::of(self.host.repo)?, line.is_empty()) {
            let unsettled = packages.unsettled_since(&BTreeSet::new());
            if !unsettled.is_empty() {
                (self.tell)(Event::Unsettled(&unsettled))?;
            }
        }
        let mut last = head;
        for commit in line {
            let plan = CommitPlan::of(self.host.repo, &self.host.history, last, *commit)?;
            match self.options.dry_run {
                true => {
                    (self.tell)(Event::Commit(&plan))?;
                    // Later ones stand on what this one has not done yet.
                    if last == head {
                        match self.host.history.pending {
                            None => drop(plan.check(self.host.repo, self.options.yes_delete, false)?),
                            Some(_) => self.check_begun(&plan)?,
                        }
                    }
                }
                false => self.commit(&plan, last)?,
            }
            applied.push(*commit);
            last = Some(*commit);
        }
        let dry_run = self.options.dry_run;
        if let (Some(last), false) = (last, dry_run && !applied.is_empty()) {
            let tree = self.host.repo.objects.commit(&last)?.tree;
            let rendered = self.host.render_anew(tree, dry_run, self.progress)?;
            rendered.iter().try_for_each(|path| (self.tell)(Event::Rendered(path)))?;
            if !dry_run {
                self.handlers(tree)?;
            }
        }
        if !applied.is_empty() && !self.options.dry_run {
            status::refresh(self.host.repo, self.progress)?;
        }
        Ok(())
    }

    fn commit(&mut self, plan: &CommitPlan, last: Option<Oid>) -> Step<()> {
        let pending = self.host.history.pending.clone().filter(|pending| pending.commit == plan.commit);
        let mut seen = Seen::default();
        let mut unsettled = BTreeSet::new();
        if pending.is_none() {
            unsettled.extend(Packages::of(self.host.repo)?.into_iter().flat_map(|packages| packages.unsettled.into_keys()));
            // Nothing of an entry is written before the files can be.
            seen = plan.check(self.host.repo, self.options.yes_delete, false)?;
            (self.tell)(Event::Commit(plan))?;
            let handlers: Vec<&str> = plan.handlers.iter().map(String::as_str).collect();
            self.host.note(
                "intent",
                &[("commit", &plan.commit.to_string()), ("to", &self.target.to_string()), ("handlers", &handlers.join(","))],
            )?;
        }
        self.entries(plan, When::Before)?;
        if !pending.as_ref().is_some_and(|pending| pending.has_content) {
            if pending.is_some() || plan.entries(When::Before).next().is_some() {
                seen = plan.check(self.host.repo, self.options.yes_delete, pending.is_some())?;
            }
            self.content(plan, &seen)?;
        }
        self.entries(plan, When::After)?;
        self.effects(plan)?;
        self.handlers(plan.tree)?;
        if !plan.entries.is_empty() {
            self.must_be_settled(&unsettled)?;
        }
        self.verify(plan)?;
        self.host.move_to(plan.commit, plan.before, plan.tree, last)?;
        self.host.note("done", &[("commit", &plan.commit.to_string())])?;
        Ok(())
    }

    /// Halts if dpkg has packages that are not installed in full, and were not `before`.
    fn must_be_settled(&self, before: &BTreeSet<String>) -> Step<()> {
        // What another dpkg is about to do is not the doing of these commands.
        let _held = dpkg::hold(self.host.repo, self.progress)?;
        let fresh = Packages::of(self.host.repo)?.map(|packages| packages.unsettled_since(before)).unwrap_or_default();
        if fresh.is_empty() {
            return Ok(());
        }
        let ways = [("dpkg --configure -a", "configures them"), ("gdo up", "goes on then")];
        Err(Halt::new(Why::Packages, "after the commands of this commit, packages are not installed in full", &ways)
            .with(fresh)
            .into())
    }

    fn content(&mut self, plan: &CommitPlan, seen: &Seen) -> Step<()> {
        let _held = dpkg::hold(self.host.repo, self.progress)?;
        let how = ExchangeOptions { seen: Some(seen), ..ExchangeOptions::default() };
        let laid = plan.laid();
        let paths = [parents(self.host.repo, (plan.before, plan.tree), &laid)?, laid].concat();
        exchange(self.host.repo, (plan.before, plan.tree), &paths, &self.host.laying(), how, self.progress).map_err(|error| {
            match error.kind() {
                Kind::Halted => {
                    let ways = [
                        ("gdo revert COMMIT", "on the origin: takes the change back"),
                        ("gdo up", "tries again; nothing of this commit was written"),
                    ];
                    Stop::Halt(Halt::new(Why::Invalid, format!("a file did not pass its check: {error:#}"), &ways))
                }
                _ => Stop::Error(error.wrap(format!("cannot lay down the files of commit {}", plan.commit))),
            }
        })?;
        self.host.note("content", &[("commit", &plan.commit.to_string())])?;
        Ok(())
    }

    fn entries(&mut self, plan: &CommitPlan, when: When) -> Step<()> {
        for (id, entry) in plan.entries(when) {
            self.entry(plan, id, entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, plan: &CommitPlan, id: &EntryId, entry: &Entry) -> Step<()> {
        let name = id.to_string();
        if self.host.history.is_over(id) {
            return Ok(());
        }
        if let Some(halt) = self.stands_at(id, entry)? {
            if halt.why == Why::Reboot {
                self.wait_for_start(id)?;
            }
            return Err(halt.into());
        }
        if let (EntryKind::Reboot, Some(Far::Started { boot, .. })) = (entry.kind, self.host.history.entry(id))
            && *boot != boot_id()?
        {
            self.host.note("ran", &[("entry", &name), ("ok", "yes"), ("how", "another boot")])?;
            return Ok(());
        }
        if entry.kind == EntryKind::Reboot {
            return self.reboot(id);
        }
        let inputs = self.host.lay_inputs(plan.tree, id, entry)?;
        if let Some(guard) = guarded(self.host.repo, &self.ground, id, entry, &inputs)? {
            (self.tell)(Event::Spared(id, entry))?;
            self.host.note("spared", &[("entry", &name), ("guard", guard)])?;
            self.host.remove_inputs(id)?;
            return Ok(());
        }
        // A command may be apt: it finds the locks free, and takes them itself.
        drop(dpkg::hold(self.host.repo, self.progress)?);
        (self.tell)(Event::Entry(id, entry))?;
        let (ended, sequence) = self.host.run_entry(&self.ground, id, entry, &inputs)?;
        self.host.remove_inputs(id)?;
        match is_ok(entry, ended) {
            true => Ok(()),
            false => Err(self.failed(id, entry, &ended.told(), sequence).into()),
        }
    }

    /// Returns why an entry that is not over is not run by itself.
    fn stands_at(&self, id: &EntryId, entry: &Entry) -> Result<Option<Halt>> {
        // Neither its guard nor another run of it may come beside it.
        if let Some(halt) = self.host.still_running()? {
            return Ok(Some(halt));
        }
        Ok(match self.host.history.entry(id) {
            Some(Far::Started { boot, .. }) if entry.kind == EntryKind::Reboot => {
                (*boot == boot_id()? && !self.options.may_reboot).then(|| reboot_halt(id))
            }
            Some(Far::Started { .. }) if !entry.is_idempotent && !has_guard(entry) => {
                let what = format!("'{}' was interrupted, and nobody knows how far it came", entry.shown());
                let ways = [
                    ("gdo resume --done", "takes it for done, and goes on"),
                    ("gdo resume --rerun", "runs it again, and goes on"),
                    (&*format!("gdo skip {id} --reason WHY"), "goes on without it; this host is then no more like the others"),
                ];
                Some(Halt::new(Why::Unknown, what, &ways).with([format!("entry {id}")]))
            }
            Some(Far::Failed { how, sequence }) => Some(self.failed(id, entry, how, *sequence)),
            None if entry.kind == EntryKind::Reboot && !self.options.may_reboot => Some(reboot_halt(id)),
            Some(_) | None => None,
        })
    }

    /// Says the same of the commit that is applied by half, without anything being done.
    fn check_begun(&self, plan: &CommitPlan) -> Step<()> {
        for (id, entry) in plan.entries(When::Before).chain(plan.entries(When::After)) {
            if self.host.history.is_over(id) {
                continue;
            }
            match self.stands_at(id, entry)? {
                Some(halt) => return Err(halt.into()),
                None => break,
            }
        }
        Ok(())
    }

    fn failed(&self, id: &EntryId, entry: &Entry, how: &str, sequence: u64) -> Halt {
        let ways = [
            (&*format!("gdo log --output {sequence}"), "shows what it said"),
            ("gdo resume", "runs it again, and goes on"),
            (&*format!("gdo skip {id} --reason WHY"), "goes on without it; this host is then no more like the others"),
        ];
        let what = format!("'{}' failed: {how}", entry.shown());
        Halt::new(Why::Failed, what, &ways).with(self.host.last_words(sequence))
    }

    /// Notes in which boot a start of the machine is asked for; also where nothing is started from here: whoever starts it by hand does what is waited for.
    fn wait_for_start(&mut self, id: &EntryId) -> Result<()> {
        match self.host.history.entry(id) {
            Some(Far::Started { .. }) => Ok(()),
            _ => self.host.note("run", &[("entry", &id.to_string()), ("boot", &boot_id()?)]).map(drop),
        }
    }

    fn reboot(&mut self, id: &EntryId) -> Step<()> {
        self.wait_for_start(id)?;
        let halt = reboot_halt(id);
        Err(match self.host.start_anew() {
            Ok(()) => halt.into(),
            Err(error) => halt.with([format!("{error:#}")]).into(),
        })
    }

    /// Compares what entries made with the commit, and sets its times.
    fn effects(&mut self, plan: &CommitPlan) -> Step<()> {
        let both = (plan.before, plan.tree);
        // What no command was run for is laid down after all.
        let (spared, made): (Vec<_>, Vec<_>) = plan.made().into_iter().partition(|path| self.is_spared(plan, path));
        let changes: Vec<_> = plan.changes.iter().filter(|change| spared.contains(&change.path)).cloned().collect();
        let seen = check_drift(self.host.repo, both, &changes, true)?.seen;
        let how = ExchangeOptions { seen: Some(&seen), ..ExchangeOptions::default() };
        if !spared.is_empty() {
            exchange(self.host.repo, both, &spared, &*self.host.repo.laying, how, self.progress)?;
        }
        if made.is_empty() {
            return Ok(());
        }
        let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
        let found = exchange(self.host.repo, both, &made, &*self.host.repo.laying, how, &Progress::default())?;
        if !found.steps.is_empty() {
            let differ: Vec<String> = found.steps.iter().map(|step| format!("'{}'", shown(&step.path))).collect();
            let what = format!("after the commands of this commit, {} not what the commit says", are(differ.len()));
            let ways = [
                ("gdo fix PATH", "takes the content of the commit"),
                ("gdo attributes PATTERN derived", "on the origin: says that such a file differs from host to host"),
                ("gdo up", "goes on then"),
            ];
            return Err(Halt::new(Why::Effect, what, &ways).with(first(differ)).into());
        }
        let how = ExchangeOptions { seen: Some(&found.seen), ..ExchangeOptions::default() };
        exchange(self.host.repo, both, &made, &*self.host.repo.laying, how, self.progress)?;
        Ok(())
    }

    /// Says whether all commands that would make `path` were needless or left out.
    fn is_spared(&self, plan: &CommitPlan, path: &Vec<u8>) -> bool {
        let mut makers = plan.entries.iter().filter(|(_, entry)| entry.effects.contains(path));
        makers.all(|(id, _)| self.host.history.entry(id) == Some(&Far::Spared))
    }

    fn handlers(&mut self, tree: Oid) -> Step<()> {
        // One that came later than the file that asks for it is taken from there.
        let newest = self.host.repo.objects.commit(&self.target)?.tree;
        let tell = &mut self.tell;
        self.host.run_handlers(&[tree, newest], &mut |name, handler| tell(Event::Handler(name, handler)))
    }

    /// Says whether `path` is a directory that the commit removes, and that others have something in.
    fn stays_for_others(&self, plan: &CommitPlan, path: &[u8]) -> bool {
        let is_removed = plan.changes.iter().any(|change| change.path == path && change.what == What::Deleted);
        let root = Dir::open(&self.host.repo.places.work_tree);
        let dir = root.and_then(|root| root.open_path_if_there(path));
        is_removed && dir.is_ok_and(|dir| dir.is_some_and(|dir| dir.entries().is_ok_and(|entries| !entries.is_empty())))
    }

    fn verify(&mut self, plan: &CommitPlan) -> Step<()> {
        // Whatever makes a file beside others leaves its time on the directory.
        let (dirs, files_): (Vec<_>, Vec<_>) = plan.laid().into_iter().chain(plan.made()).partition(|path| plan.is_dir(path));
        let mut differ = Vec::new();
        for (paths, ignores_times) in [(dirs, true), (files_, false)] {
            let how = ExchangeOptions { dry_run: true, ignores_times, allow_type_change: true, seen: None };
            let found =
                exchange(self.host.repo, (plan.before, plan.tree), &paths, &*self.host.repo.laying, how, &Progress::default())?;
            let differs = found.steps.iter().filter(|step| !self.stays_for_others(plan, &step.path));
            differ.extend(differs.map(|step| format!("'{}'", shown(&step.path))));
        }
        if differ.is_empty() {
            return Ok(());
        }
        let what = format!(
            "after all of this commit was done, {} not what it says: a command or a handler changes that",
            are(differ.len())
        );
        let ways =
            [("gdo diff -- PATH", "shows how"), ("gdo fix PATH", "takes the content of the commit"), ("gdo up", "goes on then")];
        Err(Halt::new(Why::Verify, what, &ways).with(first(differ)).into())
    }
}

fn reboot_halt(id: &EntryId) -> Halt {
    let ways = [
        ("gdo up -r", "starts this machine anew; 'gdo up' goes on afterwards"),
        ("gdo resume --done", "takes the start for done"),
    ];
    Halt::new(Why::Reboot, "this machine must start anew before anything else is applied", &ways).with([format!("entry {id}")])
}

/// Says whether an entry has a guard.
pub(super) fn has_guard(entry: &Entry) -> bool {
    entry.unless.is_some() || entry.onlyif.is_some() || entry.creates.is_some()
}

/// Says which guard of an entry makes it needless, if one does.
pub(super) fn guarded(repo: &Repo, ground: &Ground, id: &EntryId, entry: &Entry, inputs: &Path) -> Result<Option<&'static str>> {
    if let Some(path) = &entry.creates {
        let root = Dir::open(&repo.places.work_tree)?;
        let (parent, name) = split(path.strip_prefix(b"/").unwrap_or(path));
        let dir = root
            .follow(parent)
            .context(|| format!("cannot tell whether '{}' is there, which entry {id} creates", shown(path)))?;
        if dir.map_or(Ok(false), |dir| dir.stat(name).map(|found| found.is_some()))? {
            return Ok(Some("creates"));
        }
    }
    for (guard, words, spares) in [("unless", &entry.unless, true), ("onlyif", &entry.onlyif, false)] {
        let Some(words) = words else { continue };
        let (ended, _) = ground.run(&job(ground, entry, words, id, inputs))?;
        if !matches!(ended, Ended::Code(_)) {
            let message =
                format!("the guard '{guard}' of entry {id} did not come to its end: {}; 'gdo up' tries again", ended.told());
            return Err(Error::new(Kind::Halted, message));
        }
        if (ended == Ended::Code(0)) == spares {
            return Ok(Some(guard));
        }
    }
    Ok(None)
}

/// Says whether an entry's command ended well.
pub(super) fn is_ok(entry: &Entry, ended: Ended) -> bool {
    matches!(ended, Ended::Code(code) if entry.ok.iter().any(|ok| i32::from(*ok) == code))
}

/// Returns a command of an entry, whose inputs lie in `inputs`.
pub(super) fn job<'e>(ground: &Ground, entry: &'e Entry, words: &Words, id: &EntryId, inputs: &Path) -> Job<'e> {
    let inner = ground.inner(inputs).into_os_string().into_encoded_bytes();
    Job {
        words: words.iter().map(|word| replaced(word, IN.as_bytes(), &inner)).collect(),
        cwd: &entry.cwd,
        user: entry.user.as_deref(),
        umask: entry.umask,
        env: entry.env.clone(),
        entry: Some(id.to_string()),
        timeout: Duration::from_secs(entry.timeout.into()),
    }
}

fn replaced(word: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut new = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        new.extend([&rest[..at], by].concat());
        rest = &rest[at + what.len()..];
    }
    new.extend(rest);
    new
}

impl Host<'_> {
    /// Forgets what was to be applied next, once it is.
    fn end_next(&self) -> Result<()> {
        match next::tip(self.repo)? {
            Some(tip) if self.repo.head()? == Some(tip) => next::remove(self.repo, &self.lock),
            _ => Ok(()),
        }
    }

    /// Adds what a run that was killed just before its end did not write: HEAD is where the pending commit is.
    fn repair_head(&mut self, head: Option<Oid>) -> Result<()> {
        self.follow(super::Model::Congruent)?;
        match (&self.history.pending, head) {
            (Some(pending), Some(head)) if pending.commit == head => {
                self.note("done", &[("commit", &head.to_string())])?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Moves index and HEAD's branch to `commit`, durably.
    pub(super) fn move_to(&self, commit: Oid, before: Oid, tree: Oid, last: Option<Oid>) -> Result<()> {
        let here = self.repo.index()?;
        let index = status::index_after(self.repo, &here, before, tree)?;
        self.repo.write_index(&NewIndex::of(&index).in_place_of(&here))?;
        let branch = format!("refs/heads/{}", self.kind()?);
        let git = self.repo.git.clone().with_identity(self.call.identity.clone());
        git.update_ref(&branch, commit, last, "up")?;
        self.repo.note_refs(&self.lock)
    }
}
