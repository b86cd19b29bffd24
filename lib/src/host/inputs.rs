//! The files that commands read: laid down in a directory of their own while the command runs.
//!
//! They lie in the state directory, which nobody else enters; for a command of another user, a copy lies where that user alone reaches it.

use std::path::{Path, PathBuf};

use super::Host;
use super::run::Ground;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;
use crate::journal::{Entry, EntryId, Name};
use crate::safepath::Dir;

impl Host<'_> {
    /// Lays the inputs of an entry into a directory of their own, and returns where its commands find them.
    pub(super) fn lay_inputs(&self, tree: Oid, id: &EntryId, entry: &Entry) -> Result<PathBuf> {
        let dir = self.empty_inputs(id, entry.inputs.is_empty())?;
        for input in &entry.inputs {
            let what = || format!("cannot lay down input '{}' of entry {id}", input.as_str());
            let oid = super::plan::blob_at(self.repo, tree, &id.input_path(input.as_str()))?;
            let oid = oid.ok_or_else(|| Error::new(Kind::NotFound, "it is not in the commit")).context(what)?;
            self.repo.write_blob(&oid, &dir.join(input.as_str())).context(what)?;
        }
        self.within_reach(dir, id, entry)
    }

    /// Copies files of this host to where the commands of an entry find them, and returns where that is.
    pub(super) fn copy_inputs(&self, id: &EntryId, entry: &Entry, inputs: &[(Name, PathBuf)]) -> Result<PathBuf> {
        let dir = self.empty_inputs(id, inputs.is_empty())?;
        for (name, path) in inputs {
            copy(path, &dir.join(name.as_str())).context(|| format!("cannot read input '{}'", path.display()))?;
        }
        self.within_reach(dir, id, entry)
    }

    /// Removes the inputs of an entry, wherever they lie.
    pub(super) fn remove_inputs(&self, id: &EntryId) -> Result<()> {
        durable::remove_dir_all(&self.inputs_of(id))?;
        durable::remove_dir_all(&self.outside().join(id.to_string()))
    }

    /// Removes those that a killed run left, but not what a command still reads: one of whose end nobody knows.
    pub(super) fn clear_inputs(&self) -> Result<()> {
        for above in [self.state().join("in"), self.outside()] {
            if !durable::is_dir(&above) {
                continue;
            }
            for listed in durable::list(&above).context(|| format!("cannot list '{}'", above.display()))? {
                let id = listed.path.file_name().and_then(|name| name.to_str()?.parse().ok());
                if !id.is_some_and(|id| self.history().is_open(&id)) {
                    durable::remove_dir_all(&listed.path)?;
                }
            }
        }
        Ok(())
    }

    /// Returns where the inputs of an entry lie in the state directory.
    pub(super) fn inputs_of(&self, id: &EntryId) -> PathBuf {
        self.state().join("in").join(id.to_string())
    }

    fn empty_inputs(&self, id: &EntryId, is_none: bool) -> Result<PathBuf> {
        self.remove_inputs(id)?;
        let dir = self.inputs_of(id);
        if !is_none {
            durable::create_private_dir(&dir)?;
        }
        Ok(dir)
    }

    /// Returns where copies for other users lie: each instance has a directory of its own, into which a name leads whoever knows it.
    fn outside(&self) -> PathBuf {
        let places = &self.repo.places;
        let root = if places.is_system() { &places.work_tree } else { Path::new("/") };
        let instance = blake3::hash(places.state.as_os_str().as_encoded_bytes()).to_hex();
        root.join("run/git-devops").join(&instance[..16])
    }

    /// Gives the user that an entry runs as a copy of its inputs, if there is such a user.
    fn within_reach(&self, dir: PathBuf, id: &EntryId, entry: &Entry) -> Result<PathBuf> {
        let Some(user) = entry.user.as_deref().filter(|_| !entry.inputs.is_empty()) else { return Ok(dir) };
        let what = || format!("cannot give the inputs of entry {id} to user '{user}'");
        let account = Ground::of(&self.repo.places).account(user).context(what)?;
        let account = account.ok_or_else(|| Error::new(Kind::NotFound, "there is no such user in 'etc/passwd'")).context(what)?;
        let (above, root) =
            (self.outside(), if self.repo.places.is_system() { &self.repo.places.work_tree } else { Path::new("/") });
        // Not through a symlink, which would lead out of the root.
        Dir::open(root).and_then(|root| root.open_path_if_there(b"run/git-devops")).context(what)?;
        let outside = above.join(id.to_string());
        durable::create_dir_all(&above, 0o711).context(what)?;
        durable::create_dir_all(&outside, 0o700).context(what)?;
        for input in &entry.inputs {
            let copied = outside.join(input.as_str());
            copy(&dir.join(input.as_str()), &copied).context(what)?;
            durable::give(&copied, account.uid, account.gid).context(what)?;
        }
        durable::give(&outside, account.uid, account.gid).context(what)?;
        Ok(outside)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut from = durable::open(from)?;
    durable::empty_unsynced(to)?;
    std::io::copy(&mut from, &mut durable::open_to_append(to)?)?;
    Ok(())
}
