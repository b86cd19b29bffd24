//! What a command would change: it runs in a system that is thrown away, and that is compared with the one below.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Host;
use super::command::last_lines;
use super::halt::{Halt, Why};
use super::overlay::{Layer, Overlay};
use super::replay::{guarded, is_ok, job};
use super::run::{Ground, Init};
use crate::durable;
use crate::error::{Context, Result};
use crate::journal::{Entry, EntryId, Name};
use crate::metadata::{self, Names};
use crate::repo::Repo;
use crate::repo::scan::{Change, What, shown};
use crate::safepath::{Dir, FileKind, Stat};

/// What a command would do.
#[derive(Debug)]
pub struct Preview {
    /// The guard that makes it needless here.
    pub spared: Option<&'static str>,
    /// Why it could not become part of the journal.
    pub failed: Option<Halt>,
    /// What it said, of much the beginning and the end.
    pub said: Vec<u8>,
    /// What it changed, owned or not, by path; each path begins with `/`, the top of the system.
    pub changes: Vec<Change>,
    /// Where it could only read, for example on filesystems that nothing can cover; each path begins with `/`, too.
    pub read_only: Vec<Vec<u8>>,
}

impl Host<'_> {
    /// Runs a command where all that it changes is thrown away, and says what that was; `inputs` are files on this host.
    ///
    /// Nothing is journalled. Fails with [`crate::error::Kind::Unsupported`] where no such place can be made.
    pub fn preview(&self, mut entry: Entry, inputs: &[(Name, PathBuf)]) -> Result<Preview> {
        entry.check()?;
        let id = self.new_id()?;
        entry.inputs = inputs.iter().map(|(name, _)| name.clone()).collect();
        let top = self.state().join("preview");
        durable::create_private_dir(&top)?;
        let found = self.copy_inputs(&id, &entry, inputs).and_then(|here| {
            // The thread's view of the filesystems ends with it, and with that all that was changed there.
            std::thread::scope(|scope| {
                scope.spawn(|| run(self.repo, &id, &entry, &here, &top)).join().expect("BUG: a preview panicked")
            })
        });
        self.remove_inputs(&id)?;
        found
    }
}

fn run(repo: &Repo, id: &EntryId, entry: &Entry, inputs: &Path, top: &Path) -> Result<Preview> {
    let base = if repo.places.is_system() { repo.places.work_tree.as_path() } else { Path::new("/") };
    let overlay = Overlay::make(base, top)?;
    let ground = Ground::of(&repo.places).within(&overlay)?;
    let init = Init::start(&overlay)?;
    let spared = guarded(repo, &ground, id, entry, inputs)?;
    let (ended, said) = match spared {
        Some(_) => (None, Vec::new()),
        None => {
            let (ended, said) = ground.run(&job(&ground, entry, &entry.run, id, inputs))?;
            (Some(ended), said)
        }
    };
    // What the command left running changes nothing any more while its changes are looked at.
    drop(init);
    let mut changes = Vec::new();
    for layer in &overlay.layers {
        compare_layer(layer, &mut changes)?;
    }
    changes.sort();
    let failed = ended.filter(|ended| !is_ok(entry, *ended)).map(|ended| {
        let what = format!("'{}' would fail: {}; nothing was changed here", entry.shown(), ended.told());
        let ways = [("gdo exec -n COMMAND", "tries another command"), ("gdo exec COMMAND", "runs one in earnest")];
        Halt::new(Why::Failed, what, &ways).with(last_lines(&said))
    });
    Ok(Preview { spared, failed, said, changes, read_only: overlay.read_only })
}

/// Adds what differs between a filesystem and what covers it.
fn compare_layer(layer: &Layer, changes: &mut Vec<Change>) -> Result<()> {
    let (below, upper, merged) = (Dir::open(&layer.below)?, Dir::open(&layer.upper)?, Dir::open(&layer.merged)?);
    let path = if layer.path.is_empty() { Vec::new() } else { [b"/", &*layer.path].concat() };
    let of_top = |dir: &Dir| dir.stat_self().map(|stat| (stat.mode, stat.uid, stat.gid));
    if of_top(&below)? != of_top(&merged)? {
        changes.push(Change { path: if path.is_empty() { b"/".to_vec() } else { path.clone() }, what: What::Metadata });
    }
    let mut later = vec![(Vec::new(), true)];
    while let Some((inner, is_below)) = later.pop() {
        let what = || format!("cannot look at what became of '{}'", shown(&inner));
        let below = is_below.then(|| below.open_path(&inner)).transpose().context(what)?;
        let (upper, merged) = (upper.open_path(&inner).context(what)?, merged.open_path(&inner).context(what)?);
        let mut walk = Walk { top: &path, later: &mut later, changes };
        walk.compare(&inner, &upper, below.as_ref(), &merged, MAX_HELD)?;
    }
    Ok(())
}

/// So many directories on the way to one are held open, on each of three sides.
const MAX_HELD: usize = 64;

/// A comparison of the changes of an overlay with what lies below it.
struct Walk<'a> {
    /// What the paths of the overlay begin with.
    top: &'a [u8],
    /// Directories that lie too deep to be looked at from here, and whether they are below, too.
    later: &'a mut Vec<(Vec<u8>, bool)>,
    changes: &'a mut Vec<Change>,
}

impl Walk<'_> {
    /// Adds what differs in the directory at `inner`: it has an entry in `upper`, or is in one of the two others only.
    fn compare(&mut self, inner: &[u8], upper: &Dir, below: Option<&Dir>, merged: &Dir, n_left: usize) -> Result<()> {
        let names = |dir: &Dir| -> Result<BTreeSet<Vec<u8>>> { Ok(dir.entries()?.into_iter().map(|entry| entry.name).collect()) };
        let what = || format!("cannot look at what became of '{}'", shown(inner));
        let (touched, is_opaque) = (names(upper).context(what)?, is_opaque(upper).context(what)?);
        let all = below.map(names).transpose().context(what)?.unwrap_or_default().into_iter().chain(touched.iter().cloned());
        for name in all.collect::<BTreeSet<_>>() {
            let inner = if inner.is_empty() { name.clone() } else { [inner, b"/", &*name].concat() };
            let what = || format!("cannot look at what became of '{}'", shown(&inner));
            let before = below.map(|dir| dir.stat(&name)).transpose().context(what)?.flatten();
            let after = merged.stat(&name).context(what)?;
            let is_touched = touched.contains(&name);
            let found = match (&before, &after) {
                (None, None) => None,
                // Made below by somebody else meanwhile.
                (Some(_), None) if !is_touched && !is_opaque => None,
                (Some(_), None) => Some(What::Deleted),
                (None, Some(_)) => Some(What::Added),
                (Some(_), Some(_)) if !is_touched => None,
                (Some(before), Some(after)) => {
                    difference((below.unwrap_or(merged), before), (merged, after), &name).context(what)?
                }
            };
            self.changes.extend(found.map(|what| Change { path: [self.top, b"/", &*inner].concat(), what }));
            let is_dir = |stat: &Option<Stat>| stat.as_ref().is_some_and(|stat| stat.kind == FileKind::Dir);
            if !is_touched || !is_dir(&after) {
                continue;
            }
            let below = below.filter(|_| is_dir(&before));
            if n_left == 0 {
                self.later.push((inner, below.is_some()));
                continue;
            }
            let below = below.map(|dir| dir.open_dir(&name)).transpose().context(what)?;
            let (upper, merged) = (upper.open_dir(&name).context(what)?, merged.open_dir(&name).context(what)?);
            self.compare(&inner, &upper, below.as_ref(), &merged, n_left - 1)?;
        }
        Ok(())
    }
}

/// Says whether a directory of changes hides all that lies below it: it took the place of one that was removed.
///
/// See "whiteouts and opaque directories" in the kernel's documentation of overlayfs.
fn is_opaque(upper: &Dir) -> Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(upper, "trusted.overlay.opaque", &mut value) {
        Ok(n) => Ok(value[..n] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns in which way an entry differs from what it was; a directory by what it is, not by what is in it.
fn difference((below, before): (&Dir, &Stat), (merged, after): (&Dir, &Stat), name: &[u8]) -> Result<Option<What>> {
    let is_same = match (before.kind, after.kind) {
        (was, is) if was != is => false,
        (FileKind::Symlink, _) => below.read_link(name)? == merged.read_link(name)?,
        (FileKind::File, _) => before.size == after.size && has_same_content(below.open_file(name)?, merged.open_file(name)?)?,
        _ => before.rdev == after.rdev,
    };
    if !is_same {
        return Ok(Some(What::Content));
    }
    let names = Names::numeric();
    let metadata = |dir: &Dir, stat: &Stat| {
        let mut metadata = metadata::of_entry(dir, name, stat, &names)?;
        // The time of a directory tells that something in it differs, and that is told by itself.
        metadata.mtime = metadata.mtime.filter(|_| stat.kind != FileKind::Dir);
        Ok(metadata)
    };
    let (was, is): (Result<_>, Result<_>) = (metadata(below, before), metadata(merged, after));
    Ok((was? != is?).then_some(What::Metadata))
}

fn has_same_content(one: File, other: File) -> Result<bool> {
    let (mut one, mut other) = (BufReader::with_capacity(1 << 16, one), BufReader::with_capacity(1 << 16, other));
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let n = a.len().min(b.len());
        if a[..n] != b[..n] || (n == 0 && a.len() != b.len()) {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        one.consume(n);
        other.consume(n);
    }
}
