//! What this host tells of itself, for whoever pulls from it: `docs/formats/report.md`.

use super::Host;
use super::adopt::n_owned;
use super::fingerprint::Look;
use crate::error::Result;
use crate::git::empty_tree;
use crate::journal::Report;
use crate::progress::Progress;
use crate::repo::{releases, reports};

/// So long a report that says nothing new is not repeated, in seconds.
const QUIET: u64 = 3600;

impl Host<'_> {
    /// Looks at this host and tells what it is like, as `name`; one that follows no type tells nothing.
    pub fn report(&self, name: &str, progress: &Progress) -> Result<()> {
        let Some(begun) = &self.history().begun else { return Ok(()) };
        let head = self.repo.head()?;
        let tree = head.map_or(Ok(empty_tree()), |head| self.repo.objects.commit(&head).map(|data| data.tree))?;
        let here = Look::here(self.repo, progress)?;
        let n_covered = n_owned(&*self.repo.index()?) as u64;
        // Another index is made of the tree: one at a time.
        self.repo.forget_index();
        let differs = Look::of_tree(self.repo, tree)?.differing(&here)?;
        let accepted = begun.kind.parse().ok().map(|kind| releases::accepted(self.repo, &kind)).transpose()?.flatten();
        let history = self.history();
        let report = Report {
            key: String::new(),
            name: name.to_owned(),
            generation: 0,
            issued: self.call.now,
            model: begun.model.name().to_owned(),
            kind: begun.kind.clone(),
            applied: head,
            release: accepted.map(|accepted| accepted.seq),
            halted: history.stopped.as_ref().map(|stopped| stopped.why.clone()),
            is_held: history.hold.is_some(),
            n_skipped: history.n_skipped,
            n_owed: history.owed.len() as u64,
            n_covered,
            fingerprint: here.fingerprint()?.0,
            n_drift: differs.len() as u64,
            is_partial: here.is_partial,
            differs,
        };
        reports::publish(self.repo, &self.lock, report, QUIET)
    }
}
