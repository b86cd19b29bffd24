//! `gdo promise`

use std::path::PathBuf;

use git_devops::error::{Context, Error, Kind, Result};
use git_devops::host::Host;
use git_devops::host::promise::{Promise, promises};
use serde_json::json;

use super::host::call;
use crate::places::GlobalArgs;
use crate::ui::Ui;

/// Say what must hold on every host that converges: programs that check it, and make it so
///
/// Called with 'check', a promise ends with 0 if it is kept, with 1 if not; with 'apply', it is to make it so. They have their turn in the order of
/// their names; a comment '# needs: NN-NAME' at the beginning lets one wait for others.
#[derive(clap::Args)]
pub struct PromiseArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Add a promise, or another version of it, to the work in progress
    Add {
        /// Two digits, '-' and a name
        #[arg(value_name = "NN-NAME")]
        name: String,
        /// The program
        file: PathBuf,
    },
    /// List the promises
    List,
    /// Take a promise away, in the work in progress
    Rm {
        /// Its name
        #[arg(value_name = "NN-NAME")]
        name: String,
    },
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &PromiseArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let commit = match &args.what {
        What::List => {
            let all = promises(&repo, repo.source_tree(None)?)?;
            ui.json(|| all.iter().map(|promise| json!({"name": promise.name, "needs": promise.needs})).collect())?;
            for Promise { name, needs, .. } in &all {
                let needs = if needs.is_empty() { String::new() } else { format!(" needs {}", needs.join(", ")) };
                ui.line(format_args!("{name}{needs}"))?;
            }
            return match all.is_empty() {
                true => Err(Error::new(Kind::NotFound, "there are no promises; 'gdo promise add NN-NAME FILE' makes one")),
                false => Ok(()),
            };
        }
        What::Add { name, file } => {
            let path = global.cwd()?.join(file);
            let program = std::fs::read(&path).context(|| format!("cannot read '{}'", path.display()))?;
            let promise = Promise::new(name, program)?;
            let progress = ui.progress();
            Host::open(&repo, call(&repo))?.set_promise(&promise, &progress)?
        }
        What::Rm { name } => Host::open(&repo, call(&repo))?.remove_promise(name)?,
    };
    ui.json(|| json!({"commit": commit.map(|commit| commit.to_string())}))?;
    match commit {
        Some(_) => ui.note("it is in the work in progress; 'gdo ci' checks it in"),
        None => ui.note("it is so already"),
    }
}
