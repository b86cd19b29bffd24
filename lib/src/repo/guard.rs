//! What a source may not do to a target. All that is to be restored is looked at before the first write; nothing here writes.

use std::sync::{Arc, Mutex, PoisonError};

use super::Repo;
use super::jobs::Jobs;
use super::pathset::PathSet;
use super::restore::RestoreOptions;
use super::scan::join;
use super::tree::StoredDir;
use crate::error::{Error, Kind, Reason, Result};
use crate::git::Oid;
use crate::safepath::{Dir, FileKind};

/// Deeper directories are neither stored nor restored: stock git goes no deeper than 2048, and we add a few above.
pub(super) const MAX_DEPTH: usize = 2000;

/// Refuses what `options` select of `tree` if any of it has no place in `target`.
///
/// An object that cannot be read is none of this: the restore itself names it, and does the rest. Without a target there is nothing in the way.
pub(super) fn admit(repo: &Repo, tree: Oid, target: Option<&Dir>, options: &RestoreOptions) -> Result<()> {
    admit_selected(repo, tree, target, options, &options.selected())
}

/// The same for the paths that are `selected`.
pub(super) fn admit_selected(
    repo: &Repo,
    tree: Oid,
    target: Option<&Dir>,
    options: &RestoreOptions,
    selected: &PathSet,
) -> Result<()> {
    let guard = Guard::new(repo, target, options)?;
    let dir = target.map(Dir::try_clone).transpose()?.map(Arc::new);
    let jobs = Jobs::default();
    jobs.push(Job { node: StoredDir::root(repo, tree)?, dir, name: None, above: (0, 0) });
    // Whoever comes to it first: what is told is the first in the order of paths.
    let refused: Mutex<Option<(Vec<u8>, Error)>> = Mutex::default();
    let looked = jobs.run(repo.settings.n_threads, |job| {
        let path = job.node.path.clone();
        let Err(error) = guard.directory(job, selected, &jobs) else { return Ok(()) };
        if error.reason().is_none() {
            return Err(error);
        }
        let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref().is_none_or(|(first, _)| path < *first) {
            *refused = Some((path, error));
        }
        Ok(())
    });
    match refused.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error.wrap("nothing was written")),
        None => looked,
    }
}

/// A directory of the source, and what is there in the target.
struct Job {
    node: StoredDir,
    dir: Option<Arc<Dir>>,
    /// The name in `dir` if that is not yet the directory itself.
    name: Option<Vec<u8>>,
    /// The device of the directory above.
    above: (u32, u32),
}

struct Guard<'a> {
    repo: &'a Repo,
    /// Paths in the target below which nothing may be written.
    denied: Vec<Vec<u8>>,
    ours: Vec<((u32, u32), u64)>,
    protects_types: bool,
}

impl<'a> Guard<'a> {
    fn new(repo: &'a Repo, target: Option<&Dir>, options: &RestoreOptions) -> Result<Self> {
        let identity = |dir: &Dir| dir.stat_self().map(|stat| (stat.dev, stat.ino));
        let here = target.map(identity).transpose()?;
        let is = |path: &std::path::Path| Dir::open(path).and_then(|dir| identity(&dir)).is_ok_and(|there| here == Some(there));
        let (is_work_tree, is_running_system) = (is(&repo.places.work_tree), is(std::path::Path::new("/")));
        let mut denied = if is_work_tree { repo.places.own_paths() } else { Vec::new() };
        if is_running_system {
            denied.extend(KERNELS.map(|name| name.to_vec()));
        }
        let protects_types = !options.allow_type_change && (is_running_system || is_work_tree && repo.places.is_system());
        Ok(Self { repo, denied, ours: repo.places.identities(), protects_types })
    }

    fn directory(&self, job: Job, selected: &PathSet, jobs: &Jobs<Job>) -> Result<()> {
        let path = job.node.path.clone();
        if path.split(|&b| b == b'/').count() > MAX_DEPTH {
            return Err(Error::refused(Reason::TreeDepth, format!("directories are nested more than {MAX_DEPTH} deep")));
        }
        let listing = match job.node.list(self.repo) {
            Err(error) if error.kind() != Kind::Refused => return Ok(()),
            other => other?,
        };
        if let Some(name) = listing.submodules.iter().find(|name| selected.covers(&join(&path, name))) {
            let what = format!("'{}' is a submodule, whose content is in another repository", join(&path, name).escape_ascii());
            return Err(Error::refused(Reason::Mode, what + "; restore the rest by naming it"));
        }
        let dir = match (job.dir, job.name) {
            // Somebody may be exchanging it just now, which must not stop the restore of all else.
            (Some(parent), Some(name)) => parent.open_dir(&name).ok().map(Arc::new),
            (dir, _) => dir,
        };
        let device = match &dir {
            Some(dir) => self.check_place(dir, &path, job.above, !(listing.files.is_empty() && listing.dirs.is_empty()))?,
            None => job.above,
        };
        for name in listing.files.keys().filter(|name| selected.covers(&join(&path, name))) {
            let path = join(&path, name);
            self.check_denied(&path)?;
            self.check_type(dir.as_deref(), name, &path, FileKind::File)?;
        }
        for (name, node) in listing.dirs {
            if selected.covers(&node.path) || selected.leads_to(&node.path) {
                self.check_denied(&node.path)?;
                self.check_type(dir.as_deref(), &name, &node.path, FileKind::Dir)?;
                jobs.push(Job { node, dir: dir.clone(), name: Some(name), above: device });
            }
        }
        Ok(())
    }

    /// Refuses a directory that is one of ours, or on a filesystem that the kernel makes up, if the source has anything to put there.
    fn check_place(&self, dir: &Dir, path: &[u8], above: (u32, u32), has_entries: bool) -> Result<(u32, u32)> {
        let stat = dir.stat_self()?;
        let is_ours = self.ours.contains(&(stat.dev, stat.ino));
        if is_ours || has_entries && stat.dev != above && dir.is_kernels()? {
            let whose = if is_ours { "is our own" } else { "belongs to the kernel" };
            return Err(denied(path, whose));
        }
        Ok(stat.dev)
    }

    fn check_denied(&self, path: &[u8]) -> Result<()> {
        let is_in = |denied: &Vec<u8>| path.strip_prefix(&denied[..]).is_some_and(|rest| rest.first() == Some(&b'/'));
        match self.denied.iter().any(is_in) {
            true => Err(denied(path, "lies in a directory that is our own or the kernel's")),
            false => Ok(()),
        }
    }

    /// Refuses a directory in the place of a symlink, and anything else in the place of a top-level directory, on a system.
    fn check_type(&self, dir: Option<&Dir>, name: &[u8], path: &[u8], wanted: FileKind) -> Result<()> {
        let is_top = !path.contains(&b'/');
        let Some(dir) = dir.filter(|_| self.protects_types && (is_top || wanted == FileKind::Dir)) else { return Ok(()) };
        let change = match dir.stat(name)?.map(|stat| stat.kind) {
            Some(FileKind::Symlink) if wanted == FileKind::Dir => "a directory would take the place of a symlink",
            Some(FileKind::Dir) if wanted != FileKind::Dir => "something else would take the place of a directory",
            _ => return Ok(()),
        };
        let message =
            format!("'{}': {change}, which can stop a system; if it must be, say '--allow-type-change'", path.escape_ascii());
        Err(Error::refused(Reason::TypeChangeProtected, message))
    }
}

/// What the kernel has on a running system, whatever is mounted there.
const KERNELS: [&[u8]; 4] = [b"proc", b"sys", b"dev", b"run"];

fn denied(path: &[u8], whose: &str) -> Error {
    Error::refused(Reason::PathDenied, format!("'{}' {whose}", path.escape_ascii()))
}
