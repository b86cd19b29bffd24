//! `gdo sync`

use std::time::Duration;

use git_devops::error::{Kind, Result};
use git_devops::repo::remotes;
use git_devops::repo::sync::{Caller, Synced, sync};
use serde_json::json;

use super::fetch::{connect, fetch_all, hosts_json, tell_failure, tell_failures, tell_hosts};
use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, bytes, complain, time};

/// Hold this host's share of all large files, and promise to keep it
///
/// Fetches from all remotes, gets the chunks that are this host's share and not here yet, renews the promise to keep everything that is here, and tells
/// the others. How many hosts share a chunk is 'devops.copies'; how long the promise holds, 'devops.promise' (1d): run this more often than that.
#[derive(clap::Args)]
pub struct SyncArgs {
    /// Keep doing so until stopped
    #[arg(long)]
    follow: bool,
    /// Wait so many seconds in between
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "follow")]
    every: u64,
    /// Ask only this host; may be given several times
    #[arg(long, value_name = "NAME")]
    from: Vec<String>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &SyncArgs) -> Result<()> {
    loop {
        match once(ui, global, args) {
            Err(error) if args.follow && matches!(error.kind(), Kind::Io | Kind::Locked | Kind::NotFound) => {
                tell_failure(ui, &error)
            }
            other => other?,
        }
        if !args.follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(args.every));
    }
}

fn once(ui: &mut Ui, global: &GlobalArgs, args: &SyncArgs) -> Result<()> {
    let repo = global.repo()?;
    // A holder without remotes still promises: others pull from it.
    let remotes = match args.from.is_empty() {
        true => remotes::list(&repo)?,
        false => remotes::named(&repo, &args.from)?,
    };
    let mut hosts = connect(ui, &repo, &remotes);
    fetch_all(ui, &repo, &hosts);
    let name = super::host::name(&repo);
    let progress = ui.progress();
    progress.stage("getting this host's share", 0, 0);
    let synced = sync(&repo, Caller { name: &name, now: moment().wall }, &mut hosts, &progress)?;
    ui.warnings();
    tell(ui, &synced)
}

fn tell(ui: &mut Ui, synced: &Synced) -> Result<()> {
    let Synced { n_holders, n_share, n_surplus, got, until, .. } = synced;
    tell_failures(got);
    ui.json(|| {
        json!({
            "holder": synced.holder.map(|id| id.to_string()), "holders": n_holders, "share": n_share, "surplus": n_surplus,
            "promised_until": until, "chunks": got.n_chunks, "stored_bytes": got.n_stored, "missing": got.n_missing, "hosts": hosts_json(got),
        })
    })?;
    tell_hosts(ui, got)?;
    ui.note(format_args!("got {} chunks, {} stored; {n_holders} holders share all", got.n_chunks, bytes(got.n_stored)))?;
    ui.note(format_args!("{n_share} chunks of this host's share are here, promised until {}", time(*until)))?;
    if *n_surplus > 0 {
        ui.note(format_args!(
            "{n_surplus} chunks are beyond the share; 'gdo drop --surplus' gives them up when others hold enough copies"
        ))?;
    }
    if got.n_missing > 0 {
        ui.exit_with(exit::PARTIAL);
        complain(format_args!("warning: {} chunks of the share are with none of the hosts that were asked", got.n_missing));
    }
    Ok(())
}
