//! The files that commands read: laid down in a directory of their own while the command runs.

use std::path::{Path, PathBuf};

use super::Host;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;
use crate::journal::{Entry, EntryId, Name};

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
        Ok(dir)
    }

    /// Copies files of this host to where the commands of an entry find them, and returns where that is.
    pub(super) fn copy_inputs(&self, id: &EntryId, inputs: &[(Name, PathBuf)]) -> Result<PathBuf> {
        let dir = self.empty_inputs(id, inputs.is_empty())?;
        for (name, path) in inputs {
            copy(path, &dir.join(name.as_str())).context(|| format!("cannot read input '{}'", path.display()))?;
        }
        Ok(dir)
    }

    /// Removes the inputs of an entry, if there are any.
    pub(super) fn remove_inputs(&self, id: &EntryId) -> Result<()> {
        durable::remove_dir_all(&self.inputs_of(id))
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
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut from = durable::open(from)?;
    durable::empty_unsynced(to)?;
    std::io::copy(&mut from, &mut durable::open_to_append(to)?)?;
    Ok(())
}
