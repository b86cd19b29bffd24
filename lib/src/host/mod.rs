//! A host: what is applied to it, in which order, and what it says of that. Design: `docs/replay.md`.
//!
//! [`mod@history`] is what its log says, [`plan`] what a commit would do, [`replay`] does it, [`run`] starts commands, [`origin`] records changes that are
//! made here first, [`preview`] says what a command would change.

pub mod adopt;
pub mod back;
mod command;
pub mod converge;
pub mod dpkg;
pub mod env;
pub mod facts;
pub mod fingerprint;
pub mod halt;
pub mod handlers;
pub mod history;
mod inputs;
mod laying;
mod merge;
pub mod origin;
pub mod output;
mod overlay;
pub mod plan;
pub mod preimage;
pub mod preview;
pub mod promise;
mod rendered;
pub mod rendering;
pub mod report;
pub mod replay;
pub mod run;
pub mod secret;
pub mod supply;
pub mod trial;
pub mod types;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::durable::Lock;
use crate::error::{Context, Error, Kind, Result};
use crate::git::Identity;
use crate::journal::{Field, HostLog, Line};
use crate::repo::{Places, Repo};
use crate::safepath::Dir;

pub use halt::Halt;
pub use history::{History, Model};
pub use output::output;

/// Who calls, and when.
#[derive(Clone, Debug)]
pub struct Call {
    /// What the clock of this host says, in seconds since 1970.
    pub now: u64,
    /// Offset of the local time from UTC, in minutes.
    pub offset: i32,
    /// Who is named in commits.
    pub identity: Identity,
    /// Who is named in the log, as `root@web1`.
    pub by: String,
}

/// A host that is worked on: its lock is held.
pub struct Host<'a> {
    /// Its repository.
    pub repo: &'a Repo,
    /// Who works on it.
    pub call: Call,
    pub(super) lock: Lock,
    log: HostLog,
    history: History,
}

impl<'a> Host<'a> {
    /// Takes the lock and reads the log.
    pub fn open(repo: &'a Repo, call: Call) -> Result<Self> {
        let lock = repo.lock()?;
        Self::with(repo, call, lock)
    }

    /// Does the same, and moves a log that is damaged aside first; returns where that is then.
    pub fn open_anew(repo: &'a Repo, call: Call) -> Result<(Self, Option<PathBuf>)> {
        let lock = repo.lock()?;
        let aside = HostLog::put_aside(&repo.places.state)?;
        Ok((Self::with(repo, call, lock)?, aside))
    }

    fn with(repo: &'a Repo, call: Call, lock: Lock) -> Result<Self> {
        // A daemon that a command starts would hold it for ever.
        lock.keep_from_children()?;
        let mut log = HostLog::open(&repo.places.state)?;
        if log.lines().is_empty() {
            let kept = preimage::pre_images(repo)?.last().map_or(0, |(number, _)| *number);
            log.begin_behind(kept.max(output::highest(&repo.places.state)?));
        }
        let history = History::of(log.lines())?;
        output::tidy(&repo.places.state, call.now, history.unsettled())?;
        let host = Self { repo, call, lock, log, history };
        host.clear_inputs()?;
        Ok(host)
    }

    /// Returns what the log says.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Returns the lines of the log, oldest first.
    pub fn lines(&self) -> &[Line] {
        self.log.lines()
    }

    /// Writes a line into the log, durably; returns its number.
    fn note(&mut self, kind: &str, fields: &[Field<'_>]) -> Result<u64> {
        let line = self.log.append(self.call.now, kind, fields)?;
        self.history.take(line)?;
        Ok(line.sequence)
    }

    /// Returns the type that this host is of: the branch of HEAD.
    pub fn kind(&self) -> Result<String> {
        let head = self.repo.git.head_ref()?.and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned));
        head.ok_or_else(|| {
            Error::new(Kind::Conflict, "HEAD is on no branch, so this host is of no type; 'gdo fork TYPE' makes one")
        })
    }

    /// Makes sure that this host follows its type in the way that `model` says; one that follows it in another way is refused.
    fn follow(&mut self, model: Model) -> Result<()> {
        let kind = self.kind()?;
        let machine = machine(&self.repo.places)?;
        match &self.history.begun {
            Some(begun) if begun.model != model => {
                let (is, wanted) = (begun.model.name(), model.name());
                let way = if wanted == "congruent" {
                    "'gdo converge' goes on; a new installation makes it congruent"
                } else {
                    "'gdo adopt' makes it convergent"
                };
                Err(Error::new(Kind::Refused, format!("this host is {is}, and that is for {wanted} ones; {way}")))
            }
            // An image that was made where there is no machine-id yet is bound at its first start.
            Some(begun) if begun.machine != machine && !begun.machine.is_empty() => {
                let message = "this is not the machine whose history this is (machine-id differs): a cloned disk? Reinstall it, or take it over with 'gdo adopt'";
                Err(Error::new(Kind::Refused, message))
            }
            Some(begun) if begun.kind == kind && begun.machine == machine => Ok(()),
            None if self.has_entries()? => {
                let message = "HEAD has commands, and the log that says which of them ran here is missing: install this host anew, or let it follow \
                               by 'gdo adopt --begin'";
                Err(Error::new(Kind::Corrupt, message))
            }
            _ => {
                let by = self.call.by.clone();
                self.note("begin", &[("model", model.name()), ("type", &kind), ("machine", &machine), ("by", &by)])?;
                Ok(())
            }
        }
    }

    /// Says whether HEAD has entries.
    fn has_entries(&self) -> Result<bool> {
        let Some(head) = self.repo.head()? else { return Ok(false) };
        Ok(!plan::journal_of(self.repo, self.repo.objects.commit(&head)?.tree)?.is_empty())
    }

    /// Returns where the files of this host's log and commands lie.
    fn state(&self) -> PathBuf {
        self.repo.places.state.clone()
    }
}

/// Returns what the log in the state directory `state` says; takes no lock.
pub fn history(state: &Path) -> Result<History> {
    History::of(HostLog::open(state)?.lines())
}

/// As much is read of a machine-id, which has 33 bytes.
const MAX_MACHINE_ID: u64 = 4096;

/// Returns what tells this machine from others: 16 digits out of its machine-id, or nothing.
fn machine(places: &Places) -> Result<String> {
    if !places.is_system() {
        return Ok(String::new());
    }
    let what = || format!("cannot read '{}'", places.work_tree.join("etc/machine-id").display());
    let mut id = Vec::new();
    if let Some(file) = Dir::open(&places.work_tree).and_then(|root| root.follow_to_file(b"etc/machine-id")).context(what)? {
        file.take(MAX_MACHINE_ID).read_to_end(&mut id).context(what)?;
    }
    let id = id.trim_ascii();
    // systemd writes that word where the first start is to make one.
    Ok(if id.is_empty() || id == b"uninitialized" { String::new() } else { blake3::hash(id).to_hex()[..16].to_owned() })
}

/// Runs what decodes the files of this host, and is not public, on `data`.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    dpkg::fuzz(data);
    let _ = rendered::decode(data);
    let _ = crate::process::parse(&String::from_utf8_lossy(data));
}
