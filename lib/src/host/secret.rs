//! Secrets: files that stand in a commit encrypted to the hosts that may read them.

use std::path::{Path, PathBuf};

use super::facts;
use super::rendering::KEYRING;
use crate::durable::Scratch;
use crate::error::{Error, Kind, Result};
use crate::git::name;
use crate::repo::attributes::Ownership;
use crate::repo::scan::shown;
use crate::repo::{Repo, stage};
use crate::trust::gpg;

/// The mode that a secret gets that is stored for the first time.
const MODE: u16 = 0o600;

/// Encrypts `text` to the keys in the files `keys` and stages it for `path`, which must have the attribute.
pub fn add(repo: &Repo, path: &[u8], keys: &[PathBuf], text: &[u8]) -> Result<()> {
    if repo.attributes(&*repo.index()?)?.policy(path).ownership != Ownership::Secret {
        let path = shown(path);
        return Err(Error::new(Kind::Usage, format!("'{path}' is no secret; say so first: gdo attributes '/{path}' secret")));
    }
    let scratch = Scratch::make(&repo.places.state, SCRATCH)?;
    let message = gpg::encrypt(scratch.path(), keys, text)?;
    stage::put_private(repo, path, &message, MODE)
}

/// Returns the public part of this host's key, which is made if there is none.
pub fn key(repo: &Repo) -> Result<Vec<u8>> {
    let _lock = repo.lock()?;
    let facts = facts::gather(&repo.places, None)?;
    let host = facts.get("fqdn").map_or("host", String::as_str);
    gpg::host_key(&home(repo), &format!("git-devops host {host}"))
}

/// Returns the secret at `path` as it is stored, decrypted with this host's key.
pub fn show(repo: &Repo, path: &[u8]) -> Result<Vec<u8>> {
    let index = repo.index()?;
    let Some(position) = index.lookup(&name::stored_path(path)) else {
        return Err(Error::new(Kind::NotFound, format!("'{}' is not stored", shown(path))));
    };
    gpg::decrypt(&home(repo), &repo.objects.blob(&index.entry(position).oid)?)
}

/// One that a killed run left is cleared with those of its name.
const SCRATCH: &str = "incoming-";

fn home(repo: &Repo) -> PathBuf {
    Path::new(&repo.places.state).join(KEYRING)
}
