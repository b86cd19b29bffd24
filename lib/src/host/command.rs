//! Runs the commands that the log tells of: it says who runs before that does anything, and how it ended.

use super::Host;
use super::halt::{Halt, Why};
use super::output::Output;
use super::replay::{is_ok, job};
use super::run::{Ended, Ground, Job, boot_id};
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::journal::{Entry, EntryId, Field};

impl Host<'_> {
    /// Runs the command of an entry, with a line in the log before and after; returns how it ended, and the number of its line.
    pub(super) fn run_entry(
        &mut self,
        ground: &Ground,
        id: &EntryId,
        entry: &Entry,
        inputs: &std::path::Path,
    ) -> Result<(Ended, u64)> {
        let name = id.to_string();
        let (ended, sequence, said) =
            self.run_logged(ground, &job(ground, entry, &entry.run, id, inputs), ("run", &[("entry", &name)]))?;
        let word = if is_ok(entry, ended) { "yes" } else { "no" };
        let output = blake3::hash(&said).to_hex();
        self.note("ran", &[("entry", &name), ("ok", word), ("how", &ended.told()), ("output", &output)])?;
        Ok((ended, sequence))
    }

    /// Runs a job whose line in the log has this kind and these fields; returns how it ended, the number of the line, and what it said.
    ///
    /// The line is durable before the command begins, and what that did is, before this returns.
    pub(super) fn run_logged(
        &mut self,
        ground: &Ground,
        job: &Job<'_>,
        (kind, fields): (&str, &[Field<'_>]),
    ) -> Result<(Ended, u64, Vec<u8>)> {
        let sequence = self.log.next_sequence();
        let waiting = ground.prepare(job, Output::create(&self.state(), sequence)?)?;
        let (boot, process) = (boot_id()?, waiting.process());
        let (number, started) = (process.id.to_string(), process.started.to_string());
        let who = [("boot", &*boot), ("process", &*number), ("started", &*started)];
        self.note(kind, &[fields, &who].concat())?;
        let (ended, said) = waiting.go()?;
        // What it did must not be lost when the log says that it is done.
        durable::sync_all();
        Ok((ended, sequence, said))
    }

    /// Says that the command that was started last still runs, though whoever started it was killed: nothing may run beside it.
    pub(super) fn still_running(&self) -> Result<Option<Halt>> {
        let Some(running) = &self.history.running else { return Ok(None) };
        if running.boot != boot_id()? {
            return Ok(None);
        }
        let living = running.process.living()?;
        let Some(first) = living.first() else { return Ok(None) };
        let all: Vec<String> = living.iter().map(ToString::to_string).collect();
        let what = format!("{} still runs, as process {first}, though the run that started it was cut off", running.what);
        let kill = format!("kill -- -{}", running.process.id);
        let output = format!("gdo log --output {}", running.sequence);
        let ways = [
            ("gdo up", "when it has ended: goes on ('gdo converge' where that is used)"),
            (&*output, "shows what it said up to now"),
            (&*kill, "ends it"),
            ("gdo resume --done", "takes it for done, if what is left of it is to go on for ever"),
        ];
        Ok(Some(Halt::new(Why::Running, what, &ways).with([format!("its processes: {}", all.join(" "))])))
    }

    /// Fails if that is so.
    pub(super) fn must_be_alone(&self) -> Result<()> {
        match self.still_running()? {
            None => Ok(()),
            Some(halt) => {
                let ways: Vec<String> = halt.ways.iter().map(|(command, effect)| format!("'{command}' {effect}")).collect();
                Err(Error::new(Kind::Halted, format!("{halt}; {}", ways[1..].join(", "))))
            }
        }
    }

    /// Returns the last lines that a command said.
    pub(super) fn last_words(&self, sequence: u64) -> Vec<String> {
        last_lines(&super::output(&self.state(), sequence).unwrap_or_default())
    }
}

/// Returns the last lines of what a command said.
pub(super) fn last_lines(said: &[u8]) -> Vec<String> {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<String> = said.lines().map(crate::child::told).collect();
    lines[lines.len().saturating_sub(5)..].to_vec()
}
