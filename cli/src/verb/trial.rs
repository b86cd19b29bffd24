//! `gdo up --try` and `gdo confirm`: a change that goes by itself if nobody says that it may stay.
//!
//! The work is done by a process of its own, which outlives the session that began it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use git_devops::error::{Context, Error, Kind, Result};
use git_devops::git::Oid;
use git_devops::host::{self, Host, trial};
use git_devops::repo::Repo;
use serde_json::json;

use super::host::{call, report};
use super::rollback::newest;
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, complain};

/// The option that tells the process apart that does the work.
pub const DETACHED: &str = "--detached";
const TICK: Duration = Duration::from_millis(200);

/// Starts this same command line in a session of its own, passes on what it says, and ends as it ends.
pub fn attend(ui: &mut Ui, repo: &Repo) -> Result<()> {
    drop(trial::watch(repo)?);
    let what = || "cannot start the trial";
    let program = std::env::current_exe().context(what)?;
    let [out, err] = ["trial.out", "trial.err"].map(|name| repo.places.state.join(name));
    let [out_file, err_file] = [create(&out)?, create(&err)?];
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg(DETACHED);
    command.stdin(Stdio::null()).stdout(out_file).stderr(err_file);
    let mut child = command.spawn().context(what)?;
    let (mut out, mut err) = (Tail::of(&out)?, Tail::of(&err)?);
    loop {
        let ended = child.try_wait().context(what)?;
        out.pass_on(ui.raw())?;
        err.pass_on(&mut std::io::stderr())?;
        if let Some(status) = ended {
            ui.exit_with(status.code().map_or(exit::BUG, |code| code as u8));
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
}

fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).context(|| format!("cannot create '{}'", path.display()))
}

/// What a file gets, from its beginning.
struct Tail {
    file: File,
    at: u64,
}

impl Tail {
    fn of(path: &Path) -> Result<Self> {
        Ok(Self { file: File::open(path).context(|| format!("cannot open '{}'", path.display()))?, at: 0 })
    }

    fn pass_on(&mut self, out: &mut dyn Write) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.file.read_at(&mut buffer, self.at).context(|| "cannot read what the trial says")? {
                0 => return out.flush().context(|| "cannot write"),
                n => {
                    out.write_all(&buffer[..n]).context(|| "cannot write")?;
                    self.at += n as u64;
                }
            }
        }
    }
}

/// Does what `apply` does, and goes back unless that is confirmed within `seconds` after it.
pub fn run(
    ui: &mut Ui,
    global: &GlobalArgs,
    (target, seconds, content_only): (Oid, u64, bool),
    apply: impl FnOnce(&mut Ui) -> Result<()>,
) -> Result<()> {
    // Whoever closes the session that this was begun in does not end it.
    let _ = rustix::process::setsid();
    let repo = global.repo_of_host()?;
    let _watch = trial::watch(&repo)?;
    if repo.head()? == Some(target) {
        return apply(ui);
    }
    Host::open(&repo, call(&repo))?.begin_trial(target, content_only)?;
    // What failed is taken back as well: nobody knows whether this host can still be reached.
    let applied = apply(ui);
    if let Err(error) = &applied {
        complain(format_args!("error: {error:#}"));
    }
    Host::open(&repo, call(&repo))?.tried(seconds)?;
    complain(format_args!("on trial for {seconds} seconds: 'gdo confirm', from a new session, keeps it"));
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if host::history(&repo.places.state)?.trial.is_none() {
            return over(&repo, applied);
        }
        std::thread::sleep(TICK);
    }
    let mut host = patiently(|| Host::open(&repo, call(&repo)))?;
    if host.history().trial.is_none() {
        drop(host);
        return over(&repo, applied);
    }
    go_back(ui, &mut host)?;
    ui.exit_with(exit::HALTED);
    Ok(())
}

/// Somebody decided.
fn over(repo: &Repo, applied: Result<()>) -> Result<()> {
    match host::history(&repo.places.state)?.hold {
        Some(_) => Err(Error::new(Kind::Halted, "somebody went back meanwhile")),
        None => applied,
    }
}

/// Waits for another run to end.
fn patiently<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match act() {
            Err(error) if error.kind() == Kind::Locked => std::thread::sleep(TICK),
            other => return other,
        }
    }
}

/// Takes back what nobody confirmed.
fn go_back(ui: &mut Ui, host: &mut Host<'_>) -> Result<()> {
    let at = newest(host)?;
    let progress = ui.progress();
    if let Some(back) = host.end_trial(&at, &progress)? {
        report(ui, host);
        complain(format_args!(
            "nobody confirmed the trial: went back to commit {}; held there until a newer release, or 'gdo unhold'",
            back.to
        ));
    }
    Ok(())
}

/// Goes back from a trial whose process is no more; fails while one is running.
pub fn end_lost(ui: &mut Ui, repo: &Repo) -> Result<()> {
    if host::history(&repo.places.state)?.trial.is_none() {
        return Ok(());
    }
    let _watch = trial::watch(repo)?;
    complain("a trial was cut off before anybody confirmed it");
    go_back(ui, &mut Host::open(repo, call(repo))?)
}

/// Keep what 'gdo up --try' brought
///
/// Say so from a new session: that one can still be had is part of what is tried.
#[derive(clap::Args)]
pub struct ConfirmArgs {}

pub fn run_confirm(ui: &mut Ui, global: &GlobalArgs, _: &ConfirmArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let mut host = patiently(|| Host::open(&repo, call(&repo)))?;
    host.confirm()?;
    ui.json(|| json!({"confirmed": repo.head().ok().flatten().map(|head| head.to_string())}))?;
    ui.note("confirmed: it stays")
}
