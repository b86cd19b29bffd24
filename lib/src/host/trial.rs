//! A replay on trial: unless somebody confirms it in time, this host goes back to where it was. Design: `docs/replay.md`.

use super::Host;
use super::back::Back;
use super::history::Trial;
use super::plan::{Stop, journal_of, read_entry};
use crate::durable::Lock;
use crate::error::{Error, Kind, Result};
use crate::git::Oid;
use crate::journal::Kind as EntryKind;
use crate::progress::Progress;
use crate::repo::Repo;

/// Held by whoever waits for the end of a trial.
const LOCK: &str = "trial-lock";

/// Takes the place of the one who waits; `Locked` if there is one.
pub fn watch(repo: &Repo) -> Result<Lock> {
    Lock::exclusive(&repo.places.state.join(LOCK)).map_err(|error| match error.kind() {
        Kind::Locked => error.wrap("a trial is running; 'gdo confirm' keeps what it brought, 'gdo rollback' ends it"),
        _ => error,
    })
}

impl Host<'_> {
    /// Begins a trial of what leads to `target`: from here on, only a confirmation keeps this host from going back.
    ///
    /// Commands that cannot be undone make it a promise that could not be kept, unless only the files are to go back.
    pub fn begin_trial(&mut self, target: Oid, content_only: bool) -> Result<()> {
        self.must_be_settled()?;
        let head = self.here()?;
        let tree = |commit: &Oid| self.repo.objects.commit(commit).map(|data| data.tree);
        let known = journal_of(self.repo, tree(&head)?)?;
        let mut stuck = Vec::new();
        for (id, oid) in journal_of(self.repo, tree(&target)?)?.into_iter().filter(|(id, _)| !known.contains_key(id)) {
            let entry = read_entry(self.repo, &oid, &id)?;
            if entry.kind == EntryKind::Exec && entry.undo.is_none() && !self.history().is_over(&id) {
                stuck.push(format!("{id} {}", entry.shown()));
            }
        }
        if !stuck.is_empty() && !content_only {
            let message = format!(
                "commands on the way cannot be undone ({}), so nobody could go back from there; '--content-only' tries it all the same, and takes \
                 back the files alone",
                stuck.join("; ")
            );
            return Err(Error::new(Kind::Refused, message));
        }
        let (to, content) = (head.to_string(), if content_only { "only" } else { "and-commands" });
        self.note("trial", &[("to", &to), ("content", content)]).map(drop)
    }

    /// Notes that all is in place, and that there are `seconds` left to confirm it.
    pub fn tried(&mut self, seconds: u64) -> Result<()> {
        let until = self.call.now.saturating_add(seconds).to_string();
        self.note("tried", &[("until", &until)]).map(drop)
    }

    /// Keeps what a trial brought.
    pub fn confirm(&mut self) -> Result<()> {
        if self.history().trial.is_none() {
            return Err(Error::new(Kind::NotFound, "nothing is on trial here"));
        }
        let by = self.call.by.clone();
        self.note("confirmed", &[("by", &by)]).map(drop)
    }

    /// Goes back from a trial that nobody confirmed, and holds this host there; `None` if there is none.
    pub fn end_trial(&mut self, hold: &str, progress: &Progress) -> Result<Option<Back>> {
        let Some(Trial { to, content_only, .. }) = self.history().trial else { return Ok(None) };
        if self.repo.head()? == Some(to) && self.history().pending.is_none() && self.history().backing.is_none() {
            // It was cut off before it changed anything.
            self.confirm()?;
            return Ok(None);
        }
        self.must_be_alone()?;
        let back = self.back(to, content_only, Some(hold), progress);
        match back {
            // Nobody can be asked: what was changed meanwhile is kept, and taken back as well.
            Err(error) if error.kind() == Kind::Halted && self.history().undoing.is_none() => {
                self.fix(&[], false, progress, &mut |_, _| Ok(())).map_err(Stop::into_error)?;
                self.back(to, content_only, Some(hold), progress).map(Some)
            }
            back => back.map(Some),
        }
    }
}
