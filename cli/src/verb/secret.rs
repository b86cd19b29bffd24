//! `gdo secret`

use std::path::PathBuf;

use git_devops::error::{Context, Result};
use git_devops::host::secret;
use serde_json::json;

use super::env::read;
use crate::places::{GlobalArgs, plain};
use crate::ui::{Ui, usage};

/// Files that only some hosts may read: in commits they are encrypted to the keys of these hosts
#[derive(clap::Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Encrypt a secret and stage it for the next commit; the path must have the attribute 'secret'
    Add {
        /// The path
        path: PathBuf,
        /// Where the secret is [default: standard input]
        file: Option<PathBuf>,
        /// Encrypt to the key in this file, as 'gdo secret key' on a host prints it; may be repeated
        #[arg(long, value_name = "KEYFILE", required = true)]
        to: Vec<PathBuf>,
    },
    /// Print the public part of this host's key, which is made if there is none
    Key,
    /// Print a secret that is encrypted to this host
    Show {
        /// The path
        path: PathBuf,
    },
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &SecretArgs) -> Result<()> {
    let repo = global.repo()?;
    let work_path =
        |path: &PathBuf| -> Result<Vec<u8>> { Ok(global.work_paths(&repo.places, std::slice::from_ref(path))?.remove(0)) };
    match &args.what {
        What::Add { path, file, to } => {
            // gpg is not started where the person stands.
            let cwd = std::env::current_dir().context(|| "cannot tell the current directory")?;
            let keys: Vec<PathBuf> = to.iter().map(|key| plain(&cwd.join(key))).collect();
            if let Some(key) = keys.iter().find(|key| !key.is_file()) {
                return Err(usage(format!("'{}' is no file with a key", key.display())));
            }
            secret::add(&repo, &work_path(path)?, &keys, &read(file.as_deref())?)
        }
        What::Key => {
            let key = String::from_utf8_lossy(&secret::key(&repo)?).into_owned();
            ui.json(|| json!({ "key": key }))?;
            ui.line(key.trim_end())
        }
        What::Show { path } => {
            use std::io::Write;
            let text = secret::show(&repo, &work_path(path)?)?;
            ui.raw().write_all(&text).context(|| "cannot write to standard output")
        }
    }
}
