//! `gdo remote`

use std::path::{Path, PathBuf};

use git_devops::child::shell_quoted;
use git_devops::error::{Context, Error, Kind, Result};
use git_devops::remote::ssh::Remote;
use git_devops::repo::remotes;
use serde_json::json;

use crate::places::GlobalArgs;
use crate::ui::{Ui, usage};

/// Say which other hosts this repository pulls from, and who may pull from it
#[derive(clap::Args)]
pub struct RemoteArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Add a host to pull from, or change it
    Add {
        /// What to call it
        name: String,
        /// Where it is: 'ssh://[user@]host[:port]', or '[user@]host'
        address: String,
        /// Its host key: a line of /etc/ssh/ssh_host_ed25519_key.pub there, or a file with such lines ('-': standard input)
        #[arg(long, value_name = "KEY|FILE")]
        host_key: String,
        /// The private key to show there, instead of ssh's usual ones
        #[arg(short, long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// List the hosts
    List,
    /// Forget a host, and where its branches were
    Remove {
        /// What it is called
        name: String,
    },
    /// Print the line for authorized_keys that lets a key pull from this repository, and do nothing else
    Authorize {
        /// The other host's public key: a line of its id_ed25519.pub, or such a file ('-': standard input)
        #[arg(value_name = "KEY|FILE")]
        key: String,
    },
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &RemoteArgs) -> Result<()> {
    match &args.what {
        What::Add { name, address, host_key, identity } => {
            let repo = global.repo()?;
            let identity = identity.as_ref().map(|path| global.cwd().map(|cwd| cwd.join(path))).transpose()?;
            let remote = Remote { name: name.clone(), address: address.parse()?, identity };
            remotes::add(&repo, &remote, &text_or_file(global, host_key)?)?;
            ui.note(format_args!("'{name}' is at {}; 'gdo fetch {name}' asks it for its branches", remote.address))
        }
        What::List => {
            let all = remotes::list(&global.repo()?)?;
            ui.json(|| {
                let one = |remote: &Remote| json!({"name": remote.name, "address": remote.address.to_string(), "identity": remote.identity});
                json!({"remotes": all.iter().map(one).collect::<Vec<_>>()})
            })?;
            all.iter().try_for_each(|remote| ui.line(format_args!("{}\t{}", remote.name, remote.address)))
        }
        What::Remove { name } => remotes::remove(&global.repo()?, name),
        What::Authorize { key } => {
            let line = authorized(global, &text_or_file(global, key)?)?;
            ui.json(|| json!({"line": line}))?;
            ui.line(line)
        }
    }
}

/// Returns what the argument says, or what the file of that name does.
pub fn text_or_file(global: &GlobalArgs, argument: &str) -> Result<String> {
    if argument == "-" {
        return std::io::read_to_string(std::io::stdin()).context(|| "cannot read standard input");
    }
    if argument.contains(' ') {
        return Ok(argument.to_owned());
    }
    let path = global.cwd()?.join(argument);
    std::fs::read_to_string(&path).context(|| format!("cannot read '{}'; give a key, or a file that has one", path.display()))
}

/// Returns the line of authorized_keys for a public key.
fn authorized(global: &GlobalArgs, key: &str) -> Result<String> {
    let mut lines = key.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (Some(key), None) = (lines.next(), lines.next()) else { return Err(usage("give one public key")) };
    let mut words = key.split(' ');
    let is_word = |word: &str| word.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    let is_key = words
        .next()
        .is_some_and(|kind| is_word(kind) && (kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-")))
        && words.next().is_some_and(|key| key.len() >= 40 && is_word(key))
        && words.all(|word| word.bytes().all(|b| b.is_ascii_graphic()));
    if !is_key {
        return Err(Error::new(
            Kind::Usage,
            format!("'{}' is no public key; give the line of its file 'id_….pub'", key.escape_debug()),
        ));
    }
    let program = std::env::current_exe().context(|| "cannot tell where this program is")?;
    let places = global.repo()?.places;
    // Not the work tree: with it, a system instance would not be known for one.
    Ok(format!("restrict,command=\"{} --git-dir {} serve\" {key}", word(&program)?, word(&places.git_dir)?))
}

/// Returns a path as one word for the shell by which sshd runs a command.
fn word(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\r', '\\', '"']));
    let text = text.ok_or_else(|| usage(format!("'{}' cannot stand in authorized_keys", path.display())))?;
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+".contains(&b));
    let quoted = || shell_quoted(text).into_string().unwrap_or_default();
    Ok(if is_plain { text.to_owned() } else { quoted() })
}
