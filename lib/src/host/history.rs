//! What the log of a host says, taken together: what is applied, what is half done, what is owed.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::error::{Error, Kind, Result};
use crate::git::Oid;
use crate::journal::{EntryId, Line};
use crate::process::Process;

/// How a host follows its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The same changes in the same order as every other host of the type.
    Congruent,
    /// From whatever it is towards what the type says.
    Convergent,
}

impl Model {
    /// Returns its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Congruent => "congruent",
            Self::Convergent => "convergent",
        }
    }
}

/// From where on the log tells of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// How it follows.
    pub model: Model,
    /// Which type.
    pub kind: String,
    /// What tells this machine from others.
    pub machine: String,
}

/// A commit that is being applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Which.
    pub commit: Oid,
    /// Where the replay leads that came to it.
    pub target: Oid,
    /// Entries that were run, or found needless, since it was begun.
    pub entries: HashSet<EntryId>,
    /// Whether its files are in place.
    pub has_content: bool,
}

/// A rollback that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where it leads.
    pub to: Oid,
    /// Whether commands that cannot be undone are left as they are.
    pub content_only: bool,
}

/// A replay that is taken back unless somebody confirms it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Where this host goes back to.
    pub to: Oid,
    /// Whether only the files go back.
    pub content_only: bool,
    /// Until when it can be confirmed, in seconds since 1970; `None` while it is applied.
    pub until: Option<u64>,
}

/// How far an entry came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It was started, in the boot of this id, and nothing is known of its end.
    Started {
        /// The boot.
        boot: String,
        /// The line that says so, which names its output.
        sequence: u64,
    },
    /// It failed.
    Failed {
        /// How.
        how: String,
        /// The line that says that it was started.
        sequence: u64,
    },
    /// It is done.
    Over,
    /// It was not needed, or is left out: it is over, and was not run.
    Spared,
    /// A person says that it is to be run again.
    Again,
}

/// A command of whose end nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is, as a person would say it.
    pub what: String,
    /// The boot that it was started in.
    pub boot: String,
    /// Who it is.
    pub process: Process,
    /// The line that says so, which names its output.
    pub sequence: u64,
}

impl Running {
    /// Takes a line; one that older programs wrote does not say who it is.
    fn of(line: &Line, what: String) -> Option<Self> {
        let process = Process { id: line.get("process").parse().ok()?, started: line.get("started").parse().ok()? };
        Some(Self { what, boot: line.get("boot").to_owned(), process, sequence: line.sequence })
    }
}

/// Where replay stopped last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The name of the reason.
    pub why: String,
    /// At what.
    pub what: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// What the log of a host says.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// From where on; `None` if nothing was ever applied.
    pub begun: Option<Begun>,
    /// The commit that is being applied.
    pub pending: Option<Pending>,
    /// The commit that was applied last, as far as the log tells.
    pub applied: Option<Oid>,
    /// Handlers that are to be run.
    pub owed: BTreeSet<String>,
    /// The rollback that was begun, and is to be ended before anything else.
    pub backing: Option<Backing>,
    /// The trial that nobody confirmed yet.
    pub trial: Option<Trial>,
    /// The entry whose undoing was begun, and of whose end nothing is known.
    pub undoing: Option<EntryId>,
    /// The handler that was started, and of whose end nothing is known.
    pub handling: Option<String>,
    /// The command that was started last, if nothing is known of its end.
    pub running: Option<Running>,
    /// What no release up to this one is applied beyond by itself.
    pub hold: Option<String>,
    /// Where replay stopped, if it did not go on.
    pub stopped: Option<Stopped>,
    /// Entries that a person left out: such a host is no more like the others.
    pub n_skipped: u64,
    entries: HashMap<EntryId, Progress>,
    /// The line with the `run` that was last.
    last_run: u64,
}

impl History {
    /// Takes all lines.
    pub fn of(lines: &[Line]) -> Result<Self> {
        let mut history = Self::default();
        lines.iter().try_for_each(|line| history.take(line))?;
        Ok(history)
    }

    /// Returns how far an entry came here; `None` if it was never begun.
    pub fn entry(&self, id: &EntryId) -> Option<&Progress> {
        self.entries.get(id)
    }

    /// Returns the entry that failed or was interrupted in what is being applied, or else the last that was interrupted.
    ///
    /// One that failed where it was made first is in no commit, and waits for nobody.
    pub fn stuck(&self) -> Option<&EntryId> {
        let sequence = |(id, far): (_, &Progress)| {
            let is_here = |id: &EntryId| self.pending.as_ref().is_none_or(|pending| pending.entries.contains(id));
            match far {
                Progress::Started { sequence, .. } if is_here(id) => Some((*sequence, id)),
                Progress::Failed { sequence, .. } if self.pending.is_some() && is_here(id) => Some((*sequence, id)),
                _ => None,
            }
        };
        self.undoing
            .as_ref()
            .or_else(|| self.entries.iter().filter_map(sequence).max_by_key(|(sequence, _)| *sequence).map(|(_, id)| id))
    }

    /// Says whether nothing is to be done for an entry any more.
    pub fn is_over(&self, id: &EntryId) -> bool {
        matches!(self.entry(id), Some(Progress::Over | Progress::Spared))
    }

    /// Says whether an entry, or its undoing, was started and nobody knows of its end.
    pub fn is_open(&self, id: &EntryId) -> bool {
        self.undoing.as_ref() == Some(id) || matches!(self.entry(id), Some(Progress::Started { .. }))
    }

    /// Returns the line of the command that waits for a person's word, if one does: what it said is still asked for.
    pub fn unsettled(&self) -> Option<u64> {
        let far = self.stuck().and_then(|id| self.entry(id));
        match (&self.running, far) {
            (Some(running), _) => Some(running.sequence),
            (None, Some(Progress::Started { sequence, .. } | Progress::Failed { sequence, .. })) => Some(*sequence),
            _ => None,
        }
    }

    fn owes(&mut self, handlers: &str) {
        self.owed.extend(handlers.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
    }

    fn belongs(&mut self, id: EntryId) {
        self.pending.iter_mut().for_each(|pending| pending.entries.extend([id.clone()]));
    }

    /// Takes the next line. One of an unknown kind is of a newer program, and then this one does not know where the host is.
    pub fn take(&mut self, line: &Line) -> Result<()> {
        let unknown = |what: &str| {
            let message = format!("line {} of this host's log has {what}; use a newer program", line.sequence);
            Error::new(Kind::Unsupported, message)
        };
        let commit = |key: &str| Oid::from_hex(line.get(key).as_bytes()).map_err(|_| unknown("no commit"));
        let entry = || line.get("entry").parse::<EntryId>().map_err(|_| unknown("no entry"));
        if line.kind != "halt" {
            self.stopped = None;
        }
        match line.kind.as_str() {
            "begin" => {
                let model = match line.get("model") {
                    "congruent" => Model::Congruent,
                    "convergent" => Model::Convergent,
                    _ => return Err(unknown("an unknown model")),
                };
                let (kind, machine) = (line.get("type").to_owned(), line.get("machine").to_owned());
                self.begun = Some(Begun { model, kind, machine });
                if !line.get("over").is_empty() {
                    self.applied = None;
                }
            }
            "intent" => {
                let (commit, target) = (commit("commit")?, commit("to")?);
                self.pending = Some(Pending { commit, target, entries: HashSet::new(), has_content: false });
                self.owes(line.get("handlers"));
            }
            "content" => self.pending.iter_mut().for_each(|pending| pending.has_content = true),
            "run" => {
                self.last_run = line.sequence;
                self.running = Running::of(line, format!("the command of entry {}", entry()?));
                self.belongs(entry()?);
                let started = Progress::Started { boot: line.get("boot").to_owned(), sequence: line.sequence };
                self.entries.insert(entry()?, started);
            }
            "ran" => {
                self.running = None;
                let progress = match line.get("ok") {
                    "yes" => Progress::Over,
                    _ => Progress::Failed { how: line.get("how").to_owned(), sequence: self.last_run },
                };
                self.entries.insert(entry()?, progress);
            }
            "spared" => {
                self.belongs(entry()?);
                self.entries.insert(entry()?, Progress::Spared);
            }
            "decided" => {
                let progress = match line.get("as") {
                    "rerun" => Progress::Again,
                    "skip" => {
                        self.n_skipped += 1;
                        self.belongs(entry()?);
                        Progress::Spared
                    }
                    _ => Progress::Over,
                };
                self.running = None;
                let id = entry()?;
                match self.undoing.take_if(|undoing| *undoing == id) {
                    // Of an undoing that was interrupted: it is to be begun again, or it is undone.
                    Some(_) if progress == Progress::Again => (),
                    Some(_) => drop(self.entries.remove(&id)),
                    None => drop(self.entries.insert(id, progress)),
                }
            }
            "handle" => {
                self.handling = Some(line.get("handler").to_owned());
                self.running = Running::of(line, format!("handler '{}'", line.get("handler")));
            }
            "handled" => {
                if self.handling.take_if(|handler| *handler == line.get("handler")).is_some() {
                    self.running = None;
                }
                if line.get("ok") == "yes" {
                    self.owed.remove(line.get("handler"));
                }
            }
            "done" => {
                self.applied = Some(commit("commit")?);
                self.pending = None;
            }
            "halt" => {
                let (why, what) = (line.get("why").to_owned(), line.get("what").to_owned());
                self.stopped = Some(Stopped { why, what, time: line.time });
            }
            "hold" => self.hold = Some(line.get("at").to_owned()),
            "unhold" => self.hold = None,
            "backing" => {
                self.backing = Some(Backing { to: commit("to")?, content_only: line.get("content") == "only" });
                self.owes(line.get("handlers"));
            }
            "back" => {
                self.applied = Some(commit("to")?);
                (self.pending, self.backing, self.trial) = (None, None, None);
            }
            "trial" => {
                let content_only = line.get("content") == "only";
                self.trial = Some(Trial { to: commit("to")?, content_only, until: None });
            }
            "tried" => self.trial.iter_mut().for_each(|trial| trial.until = line.get("until").parse().ok()),
            "confirmed" => self.trial = None,
            "given-up" => {
                // What failed is begun anew if the commit comes again; what was interrupted is still for a person to decide.
                let gone = self.pending.take().map(|pending| pending.entries).unwrap_or_default();
                self.entries.retain(|id, far| !(gone.contains(id) && matches!(far, Progress::Failed { .. } | Progress::Again)));
            }
            "undo" => {
                self.undoing = Some(entry()?);
                self.running = Running::of(line, format!("the undoing of entry {}", entry()?));
            }
            "undone" => {
                (self.undoing, self.running) = (None, None);
                self.entries.remove(&entry()?);
            }
            "converged" => self.applied = Some(commit("commit")?),
            "fixed" => self.owes(line.get("handlers")),
            _ => return Err(unknown("an unknown kind")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes lines, as `KIND KEY=VALUE…`, and says what still runs then.
    fn running(lines: &[&str]) -> Option<(String, u32, u64)> {
        let one = |(at, text): (usize, &&str)| {
            let mut words = text.split(' ').map(str::to_owned);
            let kind = words.next().unwrap();
            let field = |word: String| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap();
            Line { sequence: at as u64 + 1, time: 5, kind, fields: words.map(field).collect() }
        };
        let lines: Vec<Line> = lines.iter().enumerate().map(one).collect();
        History::of(&lines).unwrap().running.map(|running| (running.what, running.process.id, running.sequence))
    }

    #[test]
    fn what_was_started_last_and_did_not_end_still_runs_unless_nobody_said_who_it_is() {
        let id = EntryId::new(1, [2; 10]).to_string();
        let line = |kind: &str| format!("{kind} entry={id} boot=b process=77 started=9");
        let (run, ran, undo) = (line("run"), format!("ran entry={id} ok=yes"), line("undo"));
        let (handle, other) = ("handle handler=a boot=b process=78 started=9", "handled handler=b ok=yes");
        assert_eq!(running(&[&run]), Some((format!("the command of entry {id}"), 77, 1)));
        assert_eq!(running(&[&run, &ran]), None);
        assert_eq!(running(&[&run, &format!("decided entry={id} as=done")]), None);
        assert_eq!(running(&[&undo]), Some((format!("the undoing of entry {id}"), 77, 1)));
        assert_eq!(running(&[&undo, &format!("undone entry={id}")]), None);
        assert_eq!(running(&[&run, &ran, handle, other]), Some(("handler 'a'".to_owned(), 78, 3)));
        assert_eq!(running(&[handle, "handled handler=a ok=no how=x"]), None);
        for old in
            ["boot=b", "boot=b process=x started=9", "boot=b process=77", "boot=b started=9", "boot=b process=-1 started=9"]
        {
            assert_eq!(running(&[&format!("run entry={id} {old}")]), None, "{old}");
        }
    }
}
