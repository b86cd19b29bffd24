//! Machine types: a host begins a new one, takes another, merges one into its own, or takes a commit of it back. Design: `docs/types.md`.

use super::Host;
use super::history::Model;
use super::plan::{journal_of, line_to, read_entry};
use crate::error::{Error, Kind, Reason, Result};
use crate::git::Oid;
use crate::git::merge::MergedTree;
use crate::git::object::FILE;
use crate::journal::{Entry, EntryId, Kind as EntryKind, When};
use crate::repo::next::{self, Joining, Settled, Unsettled, Way};
use crate::repo::{branch, wip};

/// What came of joining two commits.
#[derive(Debug)]
pub enum Joined {
    /// HEAD has the other one already.
    Nothing,
    /// This commit is to be applied.
    Next(Oid),
    /// A person settles conflicts first.
    Conflicts(Box<Unsettled>),
}

impl Host<'_> {
    /// Fails where something is half done here.
    pub(super) fn must_be_settled(&self) -> Result<()> {
        wip::must_not_be(self.repo)?;
        if self.history.pending.is_some() || self.history.backing.is_some() {
            return Err(Error::new(Kind::Halted, "a commit is applied by half here; 'gdo up' or 'gdo rollback' ends that first"));
        }
        next::must_not_be(self.repo)
    }

    pub(super) fn here(&self) -> Result<Oid> {
        let nothing = || Error::new(Kind::NotFound, "nothing is applied here; 'gdo snapshot' or 'gdo up' begins");
        self.repo.head()?.ok_or_else(nothing)
    }

    /// Begins the type `kind` with what is applied here; this host is of it from now on.
    pub fn fork(&mut self, kind: &str) -> Result<Oid> {
        self.must_be_settled()?;
        let head = self.here()?;
        let full = branch::full_name(kind)?;
        if self.repo.git.read_ref(&full)?.is_some() {
            return Err(Error::new(Kind::Conflict, format!("there is a type '{kind}' already; 'gdo switch {kind}' takes it")));
        }
        self.stand_on(&full, None, head, "fork")?;
        Ok(head)
    }

    /// Takes the type `kind`, which is what the commit `wanted` is, where what is applied here is its beginning.
    pub fn switch(&mut self, kind: &str, wanted: Oid) -> Result<()> {
        self.must_be_settled()?;
        let head = self.here()?;
        let full = branch::full_name(kind)?;
        if self.history.begun.as_ref().is_some_and(|begun| begun.model == Model::Convergent) {
            let message = format!("this host is convergent, and takes a type by 'gdo adopt {kind} --begin'");
            return Err(Error::new(Kind::Refused, message));
        }
        if line_to(self.repo, Some(head), wanted)?.is_none() {
            let message = format!(
                "what is applied here ({}) is not on the way of type '{kind}', whose hosts have another past; install this host anew, or let it \
                 converge: 'gdo adopt {kind} --begin'",
                head.to_hex_with_len(12)
            );
            return Err(Error::refused(Reason::Fork, message));
        }
        let at = self.repo.git.read_ref(&full)?;
        self.must_not_lose(&full, at, head)?;
        self.stand_on(&full, at, head, "switch")
    }

    /// Fails if `branch`, which is at `at`, has commits that would be nowhere any more when it leads to `to`.
    pub(super) fn must_not_lose(&self, branch: &str, at: Option<Oid>, to: Oid) -> Result<()> {
        if let Some(at) = at.filter(|at| *at != to)
            && line_to(self.repo, Some(at), to)?.is_none()
            && !branch::is_kept_elsewhere(self.repo, branch, at)?
        {
            let kind = branch.strip_prefix("refs/heads/").unwrap_or(branch);
            let message = format!(
                "the branch '{kind}' has commits that no remote and no other branch has, and it would go to commit {}, which does not follow them; \
                 'gdo branch KEEP {kind}' keeps them",
                to.to_hex_with_len(12)
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        Ok(())
    }

    /// Lets `branch`, which is at `at`, lead to `head`, and HEAD stand on it.
    fn stand_on(&mut self, branch: &str, at: Option<Oid>, head: Oid, why: &str) -> Result<()> {
        let git = self.repo.git.clone().with_identity(self.call.identity.clone());
        if at != Some(head) {
            self.repo.turn_ref(&git, (branch, head), at, why, &self.lock)?;
        }
        git.stand_on(branch)?;
        self.repo.note_refs(&self.lock)?;
        // A host that never followed a type begins with its first replay.
        match self.history.begun.as_ref().map(|begun| begun.model) {
            Some(model) => self.follow(model),
            None => Ok(()),
        }
    }

    /// Merges `other` into the type of this host, as the commit that is applied next.
    pub fn merge(&mut self, other: Oid, message: &str) -> Result<Joined> {
        self.must_be_settled()?;
        let head = self.here()?;
        if self.repo.git.is_ancestor(other, head)? {
            return Ok(Joined::Nothing);
        }
        if line_to(self.repo, Some(head), other)?.is_some() {
            return self.lead_to(other).map(Joined::Next);
        }
        self.join(Joining { way: Way::Merge, head, other }, message)
    }

    /// Takes the commit `other` back, as the commit that is applied next.
    pub fn revert(&mut self, other: Oid, content_only: bool, message: &str) -> Result<Joined> {
        self.must_be_settled()?;
        let head = self.here()?;
        if line_to(self.repo, Some(other), head)?.is_none() {
            let message = format!("commit {other} is not one that was applied here; 'gdo log' lists those");
            return Err(Error::new(Kind::NotFound, message));
        }
        self.join(Joining { way: Way::Revert { content_only }, head, other }, message)
    }

    fn join(&mut self, joining: Joining, message: &str) -> Result<Joined> {
        if Unsettled::open(self.repo)?.is_some() {
            return Err(Error::new(
                Kind::Conflict,
                "a merge is being settled; 'gdo merge --continue' ends it, 'gdo merge --abort' gives it up",
            ));
        }
        // What cannot be taken back is known before anybody settles anything.
        let undoing = self.undoing(&joining)?;
        let merged = joining.merge(self.repo)?;
        match merged.conflicts.is_empty() {
            true => self.make(&joining, &merged, undoing, message).map(Joined::Next),
            false => Unsettled::begin(self.repo, joining, merged).map(|unsettled| Joined::Conflicts(Box::new(unsettled))),
        }
    }

    /// Takes what a person settled, as the commit that is applied next.
    pub fn conclude(&mut self, unsettled: &Unsettled, message: &str) -> Result<Oid> {
        self.must_be_settled()?;
        if self.here()? != unsettled.joining.head {
            let message = "HEAD moved since the merge was begun; 'gdo merge --abort', and merge anew";
            return Err(Error::new(Kind::Conflict, message));
        }
        let mut changes = unsettled.settled(self.repo)?;
        changes.extend(self.undoing(&unsettled.joining)?);
        let next = self.make(&unsettled.joining, &unsettled.merged, changes, message)?;
        Unsettled::forget(self.repo)?;
        Ok(next)
    }

    fn make(&mut self, joining: &Joining, merged: &MergedTree, changes: Vec<Settled>, message: &str) -> Result<Oid> {
        let parents = match joining.way {
            Way::Merge => vec![joining.head, joining.other],
            Way::Revert { .. } => vec![joining.head],
        };
        let commit = next::make(self.repo, &self.lock, merged.tree, changes, parents, &self.info(message.to_owned()))?;
        let tree = |commit: &Oid| self.repo.objects.commit(commit).map(|data| data.tree);
        if matches!(joining.way, Way::Revert { .. }) && tree(&commit)? == tree(&joining.head)? {
            next::remove(self.repo, &self.lock)?;
            return Err(Error::new(Kind::NotFound, "there is nothing of it left to take back"));
        }
        Ok(commit)
    }

    /// Lets a commit that is there be applied next.
    fn lead_to(&mut self, commit: Oid) -> Result<Oid> {
        let git = self.repo.git.clone().with_identity(self.call.identity.clone());
        git.update_ref(next::NEXT, commit, None, "next")?;
        self.repo.note_refs(&self.lock)?;
        Ok(commit)
    }

    /// Returns what a revert adds to the merged tree: the entries that stay, and those that undo them; nothing for a merge.
    fn undoing(&self, joining: &Joining) -> Result<Vec<Settled>> {
        let Way::Revert { content_only } = joining.way else { return Ok(Vec::new()) };
        let data = self.repo.objects.commit(&joining.other)?;
        let tree = |commit: &Oid| self.repo.objects.commit(commit).map(|data| data.tree);
        let before = data.parents.first().map(|parent| journal_of(self.repo, tree(parent)?)).transpose()?.unwrap_or_default();
        let mut changes: Vec<Settled> = Vec::new();
        let mut added: Vec<(EntryId, Entry)> = Vec::new();
        for (id, oid) in journal_of(self.repo, data.tree)?.into_iter().filter(|(id, _)| !before.contains_key(id)) {
            changes.push((id.path(), Some((FILE, self.repo.objects.blob(&oid)?))));
            added.push((id.clone(), read_entry(self.repo, &oid, &id)?));
        }
        let stuck: Vec<String> = added
            .iter()
            .filter(|(_, entry)| entry.kind == EntryKind::Exec && entry.undo.is_none())
            .map(|(id, entry)| format!("{id} {}", entry.shown()))
            .collect();
        if !stuck.is_empty() && !content_only {
            let message = format!(
                "commands without '--undo' cannot be taken back ({}); '--content-only' takes back the files alone, 'gdo exec' adds what undoes the \
                 rest",
                stuck.join("; ")
            );
            return Err(Error::new(Kind::Halted, message));
        }
        let mut last = journal_of(self.repo, tree(&joining.head)?)?.into_keys().next_back();
        for (id, entry) in added.into_iter().rev().filter(|_| !content_only) {
            let Some(undo) = entry.undo.clone() else { continue };
            let new = self.new_id_after(last.as_ref())?;
            for input in &entry.inputs {
                let oid = self.repo.blob_in(&data.tree, &id.input_path(input.as_str()))?;
                let oid =
                    oid.ok_or_else(|| Error::new(Kind::Corrupt, format!("input '{}' of entry {id} is missing", input.as_str())))?;
                changes.push((new.input_path(input.as_str()), Some((FILE, self.repo.objects.blob(&oid)?))));
            }
            let undone = Entry {
                run: undo,
                undo: Some(entry.run.clone()),
                when: When::After,
                unless: None,
                onlyif: None,
                creates: None,
                ..entry
            };
            changes.push((new.path(), Some((FILE, undone.encode()))));
            last = Some(new);
        }
        Ok(changes)
    }
}
