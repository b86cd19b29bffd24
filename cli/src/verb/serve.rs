//! `gdo serve`

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use git_devops::error::{Error, Result};
use git_devops::git::Git;
use git_devops::remote::{serve, wire};
use git_devops::store::Local;

use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, complain};

/// Answer another host that pulls from this repository; started by sshd
///
/// What the other host wants is in SSH_ORIGINAL_COMMAND. It can read what the repository holds, and change nothing. 'gdo remote authorize' prints
/// the line for authorized_keys by which sshd starts this.
#[derive(clap::Args)]
pub struct ServeArgs {}

pub fn run(ui: &mut Ui, global: &GlobalArgs, _: &ServeArgs) -> Result<()> {
    let command = std::env::var_os("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    let is = |known: &str| command.as_bytes() == known.as_bytes();
    if !is(wire::CHUNKS_COMMAND) && !is(wire::GIT_COMMAND) {
        ui.exit_with(exit::NOT_SERVED);
        complain("error: refused: this key may only be used to pull, by 'gdo fetch' and its like; nothing was done");
        return Ok(());
    }
    // Not the whole repository: whoever asks must not make us mend it.
    let mut places = GlobalArgs { ignores_environment: true, ..global.clone() }.places()?;
    places.must_be_within()?;
    let (git, config) = Git::open(&places.git_dir)?;
    if is(wire::GIT_COMMAND) {
        return upload_pack(ui, &git);
    }
    places.store = places.configured_store(&config);
    let local = Local::open_to_read(&places.store)?;
    let served = serve::Served::new(&local, &|| moment().wall);
    serve::serve(&served, std::io::stdin().as_fd(), std::io::stdout().as_fd())
}

/// Refs that nobody gets to see.
const HIDDEN: [&str; 3] =
    ["uploadpack.hideRefs=refs/devops/undo", "uploadpack.hideRefs=refs/devops/wip", "uploadpack.hideRefs=refs/devops/next"];

/// Lets git answer, on our own streams.
fn upload_pack(ui: &mut Ui, git: &Git) -> Result<()> {
    let dir = git.git_dir().as_os_str().to_owned();
    // The account that sshd lets in may read the repository, and need not own it.
    let safe = format!("safe.directory={}", git.git_dir().display());
    let mut args = vec!["-c", &safe, "-c", "pack.threads=1", "-c", "pack.windowMemory=16m"];
    // What is this host's alone is not told to others: what lay somewhere before, and what is not checked in yet.
    args.extend(HIDDEN.iter().flat_map(|hidden| ["-c", *hidden]));
    args.extend(["upload-pack", "--strict", "--timeout=30"]);
    let mut command = git.command(&args.iter().map(std::ffi::OsString::from).chain([dir]).collect::<Vec<_>>());
    command.env("GIT_PROTOCOL", "version=2").current_dir("/");
    let status = command.status().map_err(|error| Error::from(error).wrap("cannot run git; is it installed?"))?;
    ui.exit_with(status.code().map_or(exit::BUG, |code| code as u8));
    Ok(())
}
