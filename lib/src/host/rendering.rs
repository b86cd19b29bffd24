//! What a host makes of stored bytes that are not the file itself: a template is filled, a secret decrypted.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::env::{DIR, Env, Template, Use};
use super::facts;
use crate::error::{Context, Error, Kind, Result};
use crate::git::{Index, Oid};
use crate::repo::attributes::{Attributes, Ownership};
use crate::repo::restore::Laying;
use crate::repo::scan::shown;
use crate::repo::{Places, Repo};
use crate::safepath::Dir;

/// What a host needs to render and decrypt.
pub struct Rendering {
    places: Places,
    /// The machine type, as far as there is one.
    kind: Option<String>,
    attributes: Attributes,
    /// The files of the environment, by name.
    files: BTreeMap<String, Vec<u8>>,
    /// Read when the first template asks: most runs see none.
    env: OnceLock<Env>,
}

impl Rendering {
    /// Returns what counts for what is staged in `index`, which has the environment, too.
    pub fn of_index(repo: &Repo, index: &Index) -> Result<Self> {
        let mut files = Vec::new();
        for position in index.range(DIR) {
            let entry = index.entry(position);
            files.push((entry.path[DIR.len() + 1..].to_vec(), entry.oid));
        }
        Self::new(repo, repo.attributes(index)?, files)
    }

    /// Returns what counts for the tree `content`, with the environment of the tree `newest`, which may be another: environmental data is always that
    /// of the newest commit that a host is to have.
    pub fn of_trees(repo: &Repo, content: &Oid, newest: &Oid) -> Result<Self> {
        let mut dir = Some(*newest);
        for component in DIR.split(|&b| b == b'/') {
            let entries = dir.map_or(Ok(Vec::new()), |dir| repo.objects.tree(&dir))?;
            dir = entries.into_iter().find(|entry| entry.name == component && entry.is_dir()).map(|entry| entry.oid);
        }
        let entries = dir.map_or(Ok(Vec::new()), |dir| repo.objects.tree(&dir))?;
        let files = entries.into_iter().filter(|entry| !entry.is_dir()).map(|entry| (entry.name, entry.oid)).collect();
        Self::new(repo, repo.attributes_of(content)?, files)
    }

    fn new(repo: &Repo, attributes: Attributes, files: Vec<(Vec<u8>, Oid)>) -> Result<Self> {
        let kind = repo.git.head_ref()?.and_then(|name| name.strip_prefix("refs/heads/").map(str::to_owned));
        let read = |(name, oid): (Vec<u8>, Oid)| Ok((String::from_utf8_lossy(&name).into_owned(), repo.objects.blob(&oid)?));
        let files = files.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { places: repo.places.clone(), kind, attributes, files, env: OnceLock::new() })
    }

    /// Lets other attributes count, those of a tree that is about to be restored.
    pub fn with_attributes(self, attributes: Attributes) -> Self {
        Self { attributes, ..self }
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

    /// Says whether the file at `path` is a template.
    pub fn is_template(&self, path: &[u8]) -> bool {
        self.attributes.policy(path).ownership == Ownership::Env
    }

    /// Returns every place of the template `stored` that names a key, in order.
    pub fn uses(&self, path: &[u8], stored: &[u8]) -> Result<Vec<Use>> {
        Ok(Template::decode(stored).context(|| template_at(path))?.uses().cloned().collect())
    }
}

impl Laying for Rendering {
    fn content(&self, path: &[u8], stored: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.attributes.policy(path).ownership {
            Ownership::Own | Ownership::Seed | Ownership::Local => Ok(None),
            Ownership::Env => {
                let template = Template::decode(stored).context(|| template_at(path))?;
                template.render(self.env()?).context(|| template_at(path)).map(Some)
            }
            Ownership::Secret => Err(Error::new(Kind::Unsupported, "secrets cannot be decrypted yet")),
        }
    }

    fn validate(&self, _path: &[u8], _dir: &Dir, _temp: &[u8]) -> Result<()> {
        Ok(())
    }
}

fn template_at(path: &[u8]) -> String {
    format!("cannot fill template '{}'", shown(path))
}
