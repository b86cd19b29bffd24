//! `gdo attributes`

use git_devops::error::Result;
use git_devops::repo::attributes;

use crate::places::GlobalArgs;
use crate::ui::{Ui, shown_message};

/// Show or set what is laid down for paths by pattern, such as whose they are or how they are checked
///
/// Without arguments: the lines in force. With: adds a line, staged for the next commit, for example
/// gdo attributes '/etc/ssh/sshd_config' protect 'validate=sshd -t -f %s' handler=ssh-reload
#[derive(clap::Args)]
pub struct AttributesArgs {
    /// Which paths, as in gitignore(5)
    pattern: Option<String>,
    /// What is laid down: own, seed, env, local, secret, volatile, derived, protect, exact, merge=3way, validate=CMD, handler=NAME,
    /// inplace=ok, times=no, chunker=SPEC; a '-' before it takes it back; none removes the pattern's line
    #[arg(allow_hyphen_values = true)]
    values: Vec<String>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &AttributesArgs) -> Result<()> {
    let repo = global.repo()?;
    let text = match &args.pattern {
        Some(pattern) => attributes::set(&repo, pattern, &args.values)?,
        None => repo.with_index(|index| attributes::text(&repo, index))?,
    };
    let text = String::from_utf8_lossy(&text);
    ui.json(|| text.lines().collect())?;
    text.lines().try_for_each(|line| ui.line(shown_message(line)))
}
