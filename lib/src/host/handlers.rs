//! Runs the handlers that are owed: what the log says is to follow a change of files, whoever changed them.

use super::Host;
use super::halt::{Halt, Why};
use super::plan::{Step, read_handler};
use super::replay::{is_ok, job};
use super::run::{Ground, Job};
use crate::error::Result;
use crate::git::Oid;
use crate::journal::{Entry, EntryId};

/// Who is told of each handler that is started.
pub type Tell<'a> = &'a mut dyn FnMut(&str, &Entry) -> Result<()>;

impl Host<'_> {
    /// Lets go of handlers that are owed and that `tree` does not have: what asked for them is not here any more.
    pub(super) fn owe_nothing_unknown(&mut self, tree: Oid) -> Result<()> {
        let known = super::plan::handlers(self.repo, tree)?;
        for name in self.history.owed.clone().into_iter().filter(|name| !known.contains_key(name)) {
            self.note("handled", &[("handler", &name), ("ok", "yes"), ("how", "not in this commit")])?;
        }
        Ok(())
    }

    /// Runs what is owed, as the first of `trees` that has it says what that is; the first that fails ends it, and stays owed.
    pub(super) fn run_handlers(&mut self, trees: &[Oid], tell: Tell<'_>) -> Step<()> {
        let ground = Ground::of(&self.repo.places);
        if let (Some(halt), false) = (self.still_running()?, self.history.owed.is_empty()) {
            return Err(halt.into());
        }
        for name in self.history.owed.clone() {
            let mut found = None;
            for tree in trees {
                found = if found.is_none() { read_handler(self.repo, *tree, &name)? } else { found };
            }
            let Some(handler) = found else {
                let ways = [("gdo handler NAME -- COMMAND", "on the origin: says what it is"), ("gdo up", "goes on then")];
                return Err(Halt::new(Why::Handler, format!("there is no handler '{name}'"), &ways).into());
            };
            tell(&name, &handler)?;
            let job = handler_job(&ground, &handler, &self.state());
            let (ended, sequence, _) = self.run_logged(&ground, &job, ("handle", &[("handler", &name)]))?;
            let is_done = is_ok(&handler, ended);
            let word = if is_done { "yes" } else { "no" };
            self.note("handled", &[("handler", &name), ("ok", word), ("how", &ended.told())])?;
            if !is_done {
                let ways = [
                    (&*format!("gdo log --output {sequence}"), "shows what it said"),
                    ("gdo up", "runs it again, and goes on ('gdo converge' where that is used): it is owed until it succeeds"),
                ];
                let what = format!("handler '{name}' failed: {}", ended.told());
                return Err(Halt::new(Why::Handler, what, &ways).with(self.last_words(sequence)).into());
            }
        }
        Ok(())
    }
}

fn handler_job<'e>(ground: &Ground, handler: &'e Entry, nowhere: &std::path::Path) -> Job<'e> {
    let mut job = job(ground, handler, &handler.run, &EntryId::new(0, [0; 10]), nowhere);
    job.env.retain(|(name, _)| name != "GIT_DEVOPS_ENTRY");
    job
}
