//! What a host makes of stored bytes that are not the file itself: a template is filled, a secret decrypted.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::env::{DIR, Env, MAX_ALL, MAX_FILE, MAX_FILES, Template, Use};
use super::facts;
use crate::error::{Context, Error, Kind, Result};
use crate::git::{Index, ObjectKind, Oid};
use crate::repo::attributes::Ownership;
use crate::repo::restore::Laying;
use crate::repo::scan::shown;
use crate::repo::{Places, Repo};
use crate::safepath::Dir;
use crate::trust::gpg;

/// Where this host has the key that decrypts its secrets, in the state directory.
pub const KEYRING: &str = "gnupg";

/// What a host needs to render and decrypt.
pub struct Rendering {
    places: Places,
    /// The machine type, as far as there is one.
    kind: Option<String>,
    /// The files of the environment, by name.
    files: BTreeMap<String, Vec<u8>>,
    /// Read when the first template asks: most runs see none.
    env: OnceLock<Env>,
    decrypting: Mutex<()>,
}

impl Rendering {
    /// Returns what counts where the environment is the one that is staged.
    pub fn of_index(repo: &Repo, index: &Index) -> Result<Self> {
        let mut files = Vec::new();
        for position in index.range(DIR) {
            let entry = index.entry(position);
            files.push((entry.path[DIR.len() + 1..].to_vec(), entry.oid));
        }
        Self::new(repo, files)
    }

    /// Returns what counts where a host is to have the tree `newest`: also for the trees of older commits that are replayed on the way there.
    pub fn of_tree(repo: &Repo, newest: &Oid) -> Result<Self> {
        let mut dir = Some(*newest);
        for component in DIR.split(|&b| b == b'/') {
            let entries = dir.map_or(Ok(Vec::new()), |dir| repo.objects.tree(&dir))?;
            dir = entries.into_iter().find(|entry| entry.name == component && entry.is_dir()).map(|entry| entry.oid);
        }
        let entries = dir.map_or(Ok(Vec::new()), |dir| repo.objects.tree(&dir))?;
        Self::new(repo, entries.into_iter().filter(|entry| !entry.is_dir()).map(|entry| (entry.name, entry.oid)).collect())
    }

    fn new(repo: &Repo, files: Vec<(Vec<u8>, Oid)>) -> Result<Self> {
        let kind = repo.git.head_ref()?.and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned));
        let n_files = files.len();
        if n_files > MAX_FILES {
            return Err(Error::new(
                Kind::Refused,
                format!("there are {n_files} environment files; at most {MAX_FILES} are read"),
            ));
        }
        let mut n_left = MAX_ALL as u64;
        let mut read = |(name, oid): (Vec<u8>, Oid)| {
            let what = || format!("cannot read environment file '{}'", shown(&name));
            let text = repo.objects.short(&oid, ObjectKind::Blob, n_left.min(MAX_FILE as u64)).context(what)?;
            n_left -= text.len() as u64;
            Ok((String::from_utf8_lossy(&name).into_owned(), text))
        };
        let files = files.into_iter().map(&mut read).collect::<Result<_>>()?;
        Ok(Self { places: repo.places.clone(), kind, files, env: OnceLock::new(), decrypting: Mutex::new(()) })
    }

    /// Returns the keys that this host has.
    pub fn env(&self) -> Result<&Env> {
        if let Some(env) = self.env.get() {
            return Ok(env);
        }
        let env = Env::new(&self.files, &facts::gather(&self.places, self.kind.as_deref())?)?;
        Ok(self.env.get_or_init(|| env))
    }

    /// Returns how many files the environment has.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Returns every place of the template `stored` that names a key, in order.
    pub fn uses(&self, path: &[u8], stored: &[u8]) -> Result<Vec<Use>> {
        Ok(Template::decode(stored).context(|| template_at(path))?.uses().cloned().collect())
    }
}

impl Laying for Rendering {
    fn content(&self, path: &[u8], ownership: Ownership, stored: &[u8]) -> Result<Option<Vec<u8>>> {
        match ownership {
            Ownership::Own | Ownership::Seed | Ownership::Local => Ok(None),
            Ownership::Env => {
                let template = Template::decode(stored).context(|| template_at(path))?;
                template.render(self.env()?).context(|| template_at(path)).map(Some)
            }
            Ownership::Secret => {
                // One at a time: each stops the agent when it is done.
                let _one = self.decrypting.lock().unwrap_or_else(PoisonError::into_inner);
                gpg::decrypt(&self.places.state.join(KEYRING), stored).map(Some)
            }
        }
    }

    fn validate(&self, _path: &[u8], _command: &str, _dir: &Dir, _temp: &[u8]) -> Result<()> {
        Ok(())
    }
}

fn template_at(path: &[u8]) -> String {
    format!("cannot fill template '{}'", shown(path))
}
