//! `gdo status`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::git::Oid;
use git_devops::host::dpkg::{self, Finding};
use git_devops::host::{self, History, Model};
use git_devops::repo::scan::{Change, What};
use git_devops::repo::status::status;
use git_devops::repo::{Repo, releases};
use serde_json::{Value, json};

use super::changes::{found_to_json, letter, to_json};
use super::scan_args::{ScanArgs, scope};
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, json_path, shown, shown_path};

/// Show what differs from the last commit, in content and metadata
///
/// One line for each path: first what is staged, then what is not. A: new, M: content, m: only metadata, D: gone.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Look only at these files and directories
    paths: Vec<PathBuf>,
    /// End names with NUL instead of line ends, and escape nothing
    #[arg(short = 'z')]
    nul: bool,
    /// End with code 1 if anything differs, or is accepted, owed or on trial and not done yet; with 12 where this host halted, with 13 where it must start
    /// anew
    #[arg(long)]
    exit_code: bool,
    /// Tell instead which holders there are, what they promise, and which files have too few copies
    #[arg(long, conflicts_with_all = ["nul", "paths"])]
    holders: bool,
    #[command(flatten)]
    scan: ScanArgs,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &StatusArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    if args.holders {
        return super::whereis::run_holders(ui, &repo, args.exit_code);
    }
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let options = args.scan.options(&repo, scope(paths))?;
    let progress = ui.progress();
    progress.stage("status", 0, 0);
    let status = status(&repo, &options, &progress)?;
    let warnings = ui.warnings();
    let standing = standing(&repo)?;
    let head = status.head.map(|head| repo.objects.commit(&head)).transpose()?;
    let packages = head.map(|head| dpkg::findings(&repo, head.tree)).transpose()?.unwrap_or_default();
    ui.json(|| {
        json!({
            "packages": packages.iter().map(|found| json!({"what": found.what, "of": json_path(&found.of), "told": found.told})).collect::<Value>(),
            "host": standing.as_ref().map_or(Value::Null, Standing::to_json),
            "branch": status.branch,
            "commit": status.head.map(|head| head.to_string()),
            "staged": to_json(&status.staged),
            "changes": found_to_json(&status.found.changes),
            "files_seen": status.found.n_seen,
            "partial": status.found.is_partial,
            "warnings": warnings,
        })
    })?;
    if args.nul {
        print_nul(ui, status.staged.iter().map(Change::parts), b"S")?;
        print_nul(ui, status.found.changes.iter(), b" ")?;
    } else {
        let branch = status.branch.as_deref().unwrap_or("(no branch)");
        match status.head {
            Some(head) => ui.note(format_args!("on {branch} at {}", head.to_hex_with_len(12)))?,
            None => ui.note(format_args!("on {branch}, no commit yet"))?,
        }
        if let Some(standing) = &standing {
            ui.note(standing.told())?;
            if let Some(way) = standing.way_on() {
                ui.note(way)?;
            }
        }
        print(ui, "staged for the next commit:", status.staged.iter().map(Change::parts))?;
        print(ui, "not staged ('gdo snapshot' takes all of it):", status.found.changes.iter())?;
        for Finding { what, of, told } in &packages {
            ui.note(format_args!("packages: {what}: '{}': {}", shown_path(of), shown(told.as_bytes())))?;
        }
        if status.staged.is_empty() && status.found.changes.is_empty() {
            ui.note(format_args!("nothing differs in {} files and directories", status.found.n_seen))?;
        }
    }
    let differs = !(status.staged.is_empty() && status.found.changes.is_empty());
    let halted = standing.as_ref().and_then(Standing::halted).filter(|_| args.exit_code);
    if let Some(code) = halted {
        ui.exit_with(code);
    } else if status.found.is_partial {
        ui.exit_with(exit::PARTIAL);
    } else if args.exit_code && (differs || standing.is_some_and(|standing| standing.is_behind())) {
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}

fn print<'a>(ui: &mut Ui, title: &str, mut changes: impl ExactSizeIterator<Item = (&'a [u8], What)>) -> Result<()> {
    if changes.len() > 0 {
        ui.note(title)?;
    }
    changes.try_for_each(|(path, what)| ui.line(format_args!("  {} {}", letter(what), shown_path(path))))
}

fn print_nul<'a>(ui: &mut Ui, changes: impl Iterator<Item = (&'a [u8], What)>, stage: &[u8]) -> Result<()> {
    use std::io::Write;
    for (path, what) in changes {
        ui.raw().write_all(&[stage, &[letter(what) as u8, b' '], path, b"\0"].concat())?;
    }
    Ok(())
}

/// How this host stands to its type.
struct Standing {
    history: History,
    accepted: Option<Accepted>,
    n_owned: usize,
}

/// The release that this host is to have, or more than that.
struct Accepted {
    seq: u64,
    commit: Oid,
    is_applied: bool,
}

/// Returns that of a host that has a log.
fn standing(repo: &Repo) -> Result<Option<Standing>> {
    let history = host::history(&repo.places.state)?;
    let Some(begun) = &history.begun else { return Ok(None) };
    let accepted = releases::accepted(repo, &begun.kind.parse()?)?;
    let accepted = accepted.map(|accepted| -> Result<_> {
        let (seq, commit) = (accepted.seq, accepted.commit);
        // An origin has what it did not release yet.
        let is_applied = match history.applied {
            Some(at) => at == commit || repo.git.is_ancestor(commit, at)?,
            None => false,
        };
        Ok(Accepted { seq, commit, is_applied })
    });
    let accepted = accepted.transpose()?;
    Ok(Some(Standing { n_owned: host::adopt::n_owned(&*repo.index()?), history, accepted }))
}

impl Standing {
    fn told(&self) -> String {
        let History { begun, applied, owed, hold, stopped, n_skipped, .. } = &self.history;
        let (model, kind) = begun.as_ref().map_or(("", ""), |begun| (begun.model.name(), &begun.kind));
        let mut told = vec![format!("{model} host of type {kind}")];
        told.push(applied.map_or_else(|| "nothing applied".to_owned(), |at| format!("applied {}", at.to_hex_with_len(12))));
        if let Some(Accepted { seq, commit, is_applied }) = &self.accepted {
            let more = match (is_applied, *applied == Some(*commit)) {
                (true, true) => " and applied",
                (true, false) => " and applied, and more than that",
                (false, _) => ", not applied yet",
            };
            told.push(format!("release {seq} accepted{more}"));
        }
        told.extend(stopped.as_ref().map(|stopped| format!("halted: {}: {}", stopped.why, shown(stopped.what.as_bytes()))));
        if !owed.is_empty() {
            told.push(format!("handlers owed: {}", owed.iter().map(String::as_str).collect::<Vec<_>>().join(", ")));
        }
        told.extend(hold.as_ref().map(|_| "held".to_owned()));
        told.extend(self.history.trial.map(|_| "on trial, not confirmed".to_owned()));
        if *n_skipped > 0 {
            told.push(format!("{n_skipped} entries skipped: no more like the others"));
        }
        told.push(format!("covers {} files and directories", self.n_owned));
        told.join("; ")
    }

    /// Returns how the program ends that is asked about a host that halted.
    fn halted(&self) -> Option<u8> {
        let stopped = self.history.stopped.as_ref()?;
        Some(if stopped.why == "reboot" { exit::REBOOT } else { exit::HALTED })
    }

    /// Returns what says in full why it halted, and what goes on from there.
    fn way_on(&self) -> Option<&'static str> {
        let stopped = self.history.stopped.as_ref()?;
        let is_convergent = self.history.begun.as_ref().is_some_and(|begun| begun.model == Model::Convergent);
        Some(match (&*stopped.why, is_convergent) {
            ("reboot", _) => "'gdo up -r' starts this machine anew",
            (_, true) => "'gdo converge -n' says what is in the way, and what goes on from there",
            _ => "'gdo up -n' says what is in the way, and what goes on from there",
        })
    }

    /// Says whether something is not done that is to be.
    fn is_behind(&self) -> bool {
        let is_released = self.accepted.as_ref().is_none_or(|accepted| accepted.is_applied);
        !is_released || !self.history.owed.is_empty() || self.history.trial.is_some()
    }

    fn to_json(&self) -> Value {
        let History { begun, applied, owed, hold, stopped, n_skipped, .. } = &self.history;
        json!({
            "model": begun.as_ref().map(|begun| begun.model.name()),
            "type": begun.as_ref().map(|begun| &begun.kind),
            "applied": applied.map(|at| at.to_string()),
            "accepted": self.accepted.as_ref().map(|accepted| accepted.commit.to_string()),
            "behind": self.is_behind(),
            "halted": stopped.as_ref().map(|stopped| json!({"why": stopped.why, "what": stopped.what, "time": stopped.time})),
            "handlers_owed": owed,
            "hold": hold,
            "trial": self.history.trial.map(|trial| json!({"back_to": trial.to.to_string(), "until": trial.until})),
            "skipped": n_skipped,
            "covered": self.n_owned,
        })
    }
}
