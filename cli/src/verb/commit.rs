//! `gdo commit`

use git_devops::error::{Context, Result};
use git_devops::git::command::Identity;
use git_devops::repo::Repo;
use git_devops::repo::stage::{self, CommitInfo};
use serde_json::json;

use crate::places::{GlobalArgs, hostname};
use crate::ui::Ui;

/// Commit what is staged
#[derive(clap::Args)]
pub struct CommitArgs {
    /// Message of the commit
    #[arg(short, long, required = true)]
    message: String,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &CommitArgs) -> Result<()> {
    let repo = global.repo()?;
    let commit = stage::commit(&repo, &commit_info(&repo, args.message.clone())?)?;
    ui.json(|| json!({"commit": commit.map(|commit| commit.to_string())}))?;
    match commit {
        Some(commit) => ui.note(format_args!("commit {commit}")),
        None => ui.note("nothing is staged: no commit"),
    }
}

/// Returns who commits, now.
pub fn commit_info(repo: &Repo, message: String) -> Result<CommitInfo> {
    let now = jiff::Zoned::now();
    let time = std::env::var("GIT_DEVOPS_TIME").ok().map(|time| time.parse()).transpose();
    let time = time.map_err(|_| crate::ui::usage("GIT_DEVOPS_TIME is not a number of seconds"))?;
    Ok(CommitInfo {
        identity: identity(repo),
        time: time.unwrap_or_else(|| now.timestamp().as_second()),
        offset: now.offset().seconds() / 60,
        message: tidy(message).context(|| "cannot use the message")?,
    })
}

/// Returns who commits: `user.name` and `user.email` of the repository, or else the user and the host.
pub fn identity(repo: &Repo) -> Identity {
    let setting = |key: &str| repo.config.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
    let host = hostname();
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "root".to_owned());
    Identity {
        name: setting("user.name").unwrap_or_else(|| user.clone()),
        email: setting("user.email").unwrap_or_else(|| format!("{user}@{host}")),
    }
}

/// Returns the message with one line end at its end; git takes none that is empty or has a NUL byte.
fn tidy(message: String) -> Result<String> {
    let message = message.trim_end();
    if message.is_empty() || message.contains('\0') {
        return Err(crate::ui::usage("it is empty or has a NUL byte"));
    }
    Ok(format!("{message}\n"))
}
