//! A commit's tree as the work tree it stands for: files, escaped files and metadata put together, one directory at a time.

use std::collections::BTreeMap;

use super::Repo;
use super::scan::{join, shown};
use crate::error::{Context, Error, Reason, Result};
use crate::git::object::{DIR, EXECUTABLE, FILE, GITLINK, SYMLINK};
use crate::git::{Oid, TreeEntry, name};
use crate::metadata::{DirMetadata, GitKind, Metadata};
use crate::safepath;

/// One directory of a stored tree: up to three git trees that mirror each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredDir {
    /// The path, relative to the work tree; empty for the root.
    pub path: Vec<u8>,
    plain: Option<Oid>,
    alt: Option<Oid>,
    meta: Option<Oid>,
}

/// What a directory of a stored tree holds.
pub struct Listing {
    /// The directory itself and all entries that are not directories, with what is recorded about them.
    pub metadata: DirMetadata,
    /// Whether anything is recorded about the directory: one from a plain clone has no metadata.
    pub is_recorded: bool,
    /// Entries that are not directories, by name.
    pub files: BTreeMap<Vec<u8>, Item>,
    /// Directories, by name.
    pub dirs: BTreeMap<Vec<u8>, StoredDir>,
    /// Names of submodules, which have no content here.
    pub submodules: Vec<Vec<u8>>,
}

/// An entry that is not a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its content; `None` for a node, which has none.
    pub content: Option<Oid>,
    /// What is recorded about it.
    pub metadata: Metadata,
}

impl StoredDir {
    /// Returns the root directory of what the git tree `tree` stands for.
    pub fn root(repo: &Repo, tree: Oid) -> Result<Self> {
        let below = |tree: Option<Oid>, name: &[u8]| -> Result<Option<Oid>> {
            let Some(tree) = tree else { return Ok(None) };
            let entries = repo.objects.tree(&tree)?;
            Ok(entries.into_iter().find(|entry| entry.name == name && entry.is_dir()).map(|entry| entry.oid))
        };
        let ours = below(Some(tree), name::OURS)?;
        Ok(Self { path: Vec::new(), plain: Some(tree), alt: below(ours, b"alt")?, meta: below(ours, b"meta")? })
    }

    /// Returns the directory at `path` below this one, if there is one.
    pub fn descend(self, repo: &Repo, path: &[u8]) -> Result<Option<Self>> {
        let mut node = self;
        for component in path.split(|&b| b == b'/').filter(|_| !path.is_empty()) {
            match node.list(repo)?.dirs.remove(component) {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Reads what the directory holds; refuses names that no work tree can have.
    pub fn list(&self, repo: &Repo) -> Result<Listing> {
        self.list_unchecked(repo).context(|| format!("cannot read stored directory '{}'", shown(&self.path)))
    }

    fn list_unchecked(&self, repo: &Repo) -> Result<Listing> {
        let read = |tree: Option<Oid>| tree.map_or(Ok(Vec::new()), |tree| repo.objects.tree(&tree));
        let mut contents: BTreeMap<Vec<u8>, (Oid, GitKind)> = BTreeMap::new();
        let mut dirs: BTreeMap<Vec<u8>, Self> = BTreeMap::new();
        let mut submodules = Vec::new();
        let mut add = |entry: TreeEntry, entry_name: Vec<u8>, slot: fn(&mut Self) -> &mut Option<Oid>| -> Result<()> {
            safepath::check_name(&entry_name)?;
            let git = match entry.mode {
                FILE => GitKind::File,
                EXECUTABLE => GitKind::Executable,
                SYMLINK => GitKind::Symlink,
                DIR => {
                    let child = dirs.entry(entry_name.clone()).or_default();
                    child.path = join(&self.path, &entry_name);
                    *slot(child) = Some(entry.oid);
                    return Ok(());
                }
                GITLINK => {
                    submodules.push(entry_name);
                    return Ok(());
                }
                mode => return Err(Error::refused(Reason::Mode, format!("'{}' has mode {mode:o}", entry_name.escape_ascii()))),
            };
            if contents.insert(entry_name.clone(), (entry.oid, git)).is_some() {
                return Err(Error::refused(Reason::TreeOrder, format!("'{}' is stored twice", entry_name.escape_ascii())));
            }
            Ok(())
        };
        for entry in read(self.plain)? {
            if !(self.path.is_empty() && entry.name == name::OURS) {
                let entry_name = entry.name.clone();
                add(entry, entry_name, |node| &mut node.plain)?;
            }
        }
        for entry in read(self.alt)? {
            let entry_name = name::unescape(&entry.name)?;
            add(entry, entry_name, |node| &mut node.alt)?;
        }
        let mut recorded = None;
        for entry in read(self.meta)? {
            if entry.name == name::META_LEAF {
                recorded = Some(repo.read_dir_metadata(&entry.oid, &self.path)?);
            } else {
                let entry_name = name::unescape(&entry.name)?;
                if !entry.is_dir() {
                    let what = format!("'{}' stands where only metadata may", entry.name.escape_ascii());
                    return Err(Error::refused(Reason::TreeName, what));
                }
                add(entry, entry_name, |node| &mut node.meta)?;
            }
        }
        let is_recorded = recorded.is_some();
        let metadata = recorded.unwrap_or_default();
        let files = items(&metadata, contents)?;
        // A directory of which only metadata of deeper ones is left is not there.
        if let Some(both) = files.keys().find(|entry_name| dirs.contains_key(*entry_name)) {
            return Err(Error::refused(Reason::TreeOrder, format!("'{}' is both a file and a directory", both.escape_ascii())));
        }
        Ok(Listing { metadata, is_recorded, files, dirs, submodules })
    }
}

fn items(metadata: &DirMetadata, contents: BTreeMap<Vec<u8>, (Oid, GitKind)>) -> Result<BTreeMap<Vec<u8>, Item>> {
    let mut files = BTreeMap::new();
    for (entry_name, found) in &metadata.entries {
        if found.is_node() {
            files.insert(entry_name.clone(), Item { content: None, metadata: found.clone() });
        }
    }
    for (entry_name, (oid, git)) in contents {
        let item = Item { content: Some(oid), metadata: metadata.lookup(&entry_name, git)? };
        files.insert(entry_name, item);
    }
    Ok(files)
}
