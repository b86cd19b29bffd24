//! What dpkg has in the root of this host, and when it works there: `docs/dpkg.md`.
//!
//! Its database is read here and never written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;
use crate::progress::Progress;
use crate::repo::Repo;
use crate::repo::scan::{join, shown, split};
use crate::repo::tree::StoredDir;
use crate::safepath::{Dir, check_path};

/// Where the database is.
const DATABASE: &[u8] = b"var/lib/dpkg";
/// So large a file of it may be, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// The locks, in the order in which dpkg takes them.
const LOCKS: [&[u8]; 2] = [b"lock-frontend", b"lock"];
/// So long dpkg is waited for, in seconds, unless `devops.dpkgwait` says otherwise.
const WAIT: u64 = 300;
/// What dpkg and ucf lay beside a file that was changed here.
const LEFTOVERS: [&str; 9] =
    [".dpkg-dist", ".dpkg-new", ".dpkg-old", ".dpkg-tmp", ".dpkg-bak", ".dpkg-remove", ".ucf-dist", ".ucf-new", ".ucf-old"];
/// What every command finds in its environment, so that dpkg and ucf ask nothing and keep what was changed here. The first two flags are dpkg's own.
pub(super) const ENVIRONMENT: [(&str, &str); 3] = [
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DPKG_FORCE", "security-mac,downgrade,confdef,confold"),
    ("UCF_FORCE_CONFFOLD", "1"),
];

/// What dpkg says of the files of a root. Paths are those of a work tree: without a leading `/`, and below `usr` where `/bin` leads there.
#[derive(Debug, Default)]
pub struct Packages {
    /// Packages that are not installed in full, or whose removal was not ended, each with its state.
    pub unsettled: BTreeMap<String, String>,
    conffiles: BTreeMap<Vec<u8>, String>,
    diversions: Vec<Diversion>,
    overrides: Vec<Override>,
    /// Symlinks at the top that lead into `usr`.
    merged: BTreeSet<Vec<u8>>,
}

/// A file that packages lay down under another name.
#[derive(Debug, PartialEq, Eq)]
struct Diversion {
    from: Vec<u8>,
    to: Vec<u8>,
    /// By the administrator, against all packages.
    is_local: bool,
}

/// Owner and mode that packages must not change.
#[derive(Debug, PartialEq, Eq)]
struct Override {
    path: Vec<u8>,
    user: Vec<u8>,
    group: Vec<u8>,
    mode: u16,
}

/// Whose a path is, as far as dpkg knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A conffile of this package: a change of it stays.
    Conffile(String),
    /// Another file of this package: an upgrade replaces it.
    Packaged(String),
    /// The administrator's: packages lay theirs elsewhere.
    Diverted,
    /// A package's, under the name that a diversion gives it.
    DivertedTo,
}

/// Something about packages that an administrator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is, by a name that does not change: `unsettled`, `leftover`, `diverted`, `statoverride` or `database`.
    pub what: &'static str,
    /// Of which file or package.
    pub of: Vec<u8>,
    /// In one sentence.
    pub told: String,
}

impl Packages {
    /// Reads what dpkg knows; `None` where there is no dpkg.
    pub fn of(repo: &Repo) -> Result<Option<Self>> {
        let Some(dir) = database(repo)? else { return Ok(None) };
        let what = || "cannot read the database of dpkg".to_owned();
        let Some(status) = read(&dir, b"status").context(what)? else { return Ok(None) };
        let mut packages = Self { merged: merged(&Dir::open(&repo.places.work_tree)?)?, ..Self::default() };
        packages.take_status(&status);
        let updates = dir.open_path_if_there(b"updates")?.map(|updates| updates.entries()).transpose()?.unwrap_or_default();
        if updates.iter().any(|entry| entry.name.iter().all(u8::is_ascii_digit)) {
            packages.unsettled.insert("dpkg".to_owned(), "was interrupted".to_owned());
        }
        packages.take_diversions(&read(&dir, b"diversions").context(what)?.unwrap_or_default());
        packages.take_overrides(&read(&dir, b"statoverride").context(what)?.unwrap_or_default());
        Ok(Some(packages))
    }

    fn take_status(&mut self, status: &[u8]) {
        let (mut package, mut in_conffiles) = (String::new(), false);
        for line in status.split(|&b| b == b'\n') {
            if let (true, Some(line)) = (in_conffiles, line.strip_prefix(b" ")) {
                // A path may have spaces in it; what follows it has none.
                let line = line.strip_suffix(b" obsolete").unwrap_or(line);
                let path = line.iter().rposition(|&b| b == b' ').map(|at| self.path(&line[..at]));
                self.conffiles.extend(path.flatten().map(|path| (path, package.clone())));
                continue;
            }
            in_conffiles = line == b"Conffiles:";
            if let Some(name) = line.strip_prefix(b"Package: ") {
                package = crate::child::told(&String::from_utf8_lossy(name));
            } else if let Some(state) = line.strip_prefix(b"Status: ") {
                let state = crate::child::told(&String::from_utf8_lossy(state));
                let words: Vec<&str> = state.split(' ').collect();
                let is_settled = matches!(words[..], [_, "ok", "installed" | "config-files" | "not-installed"]);
                if !is_settled {
                    let state = words.get(1..).unwrap_or_default().join(" ");
                    self.unsettled.insert(package.clone(), state.strip_prefix("ok ").unwrap_or(&state).to_owned());
                }
            }
        }
    }

    /// Takes groups of three lines: the name, the one in its place, and the package, or ':'.
    fn take_diversions(&mut self, text: &[u8]) {
        let lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
        for group in lines.chunks_exact(3) {
            if let (Some(from), Some(to)) = (self.path(group[0]), self.path(group[1])) {
                self.diversions.push(Diversion { from, to, is_local: group[2] == b":" });
            }
        }
    }

    /// Takes lines of user, group, mode and path.
    fn take_overrides(&mut self, text: &[u8]) {
        for line in text.split(|&b| b == b'\n') {
            let mut fields = line.splitn(4, |&b| b == b' ');
            let mut next = || fields.next().unwrap_or_default();
            let (user, group, mode, path) = (next(), next(), next(), next());
            let mode = std::str::from_utf8(mode).ok().and_then(|mode| u16::from_str_radix(mode, 8).ok());
            if let (Some(mode), Some(path)) = (mode.filter(|mode| *mode <= 0o7777), self.path(path)) {
                self.overrides.push(Override { path, user: user.to_vec(), group: group.to_vec(), mode });
            }
        }
    }

    /// Returns how the work tree names what dpkg calls `path`; `None` if that is no path.
    fn path(&self, path: &[u8]) -> Option<Vec<u8>> {
        let path = path.strip_prefix(b"/")?;
        check_path(path).ok()?;
        let first = path.split(|&b| b == b'/').next().unwrap_or_default();
        Some(if first != path && self.merged.contains(first) { join(b"usr", path) } else { path.to_vec() })
    }

    /// Says whether a package's file lies at `path` because a diversion leads there.
    pub fn is_diverted_to(&self, path: &[u8]) -> bool {
        self.diversions.iter().any(|diversion| diversion.to == path)
    }

    /// Returns whose each of `paths` is; those that dpkg does not know are left out.
    pub fn owners(&self, repo: &Repo, paths: &BTreeSet<&[u8]>) -> Result<BTreeMap<Vec<u8>, Owner>> {
        let mut owners = BTreeMap::new();
        let info = database(repo)?.map(|dir| dir.open_path_if_there(b"info")).transpose()?.flatten();
        for entry in info.iter().map(Dir::entries).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            let Some(package) = entry.name.strip_suffix(b".list") else { continue };
            let package = crate::child::told(&String::from_utf8_lossy(package));
            let list = info.as_ref().map(|info| read(info, &entry.name)).transpose()?.flatten().unwrap_or_default();
            for path in list.split(|&b| b == b'\n').filter_map(|line| self.path(line)) {
                if paths.contains(&*path) {
                    owners.insert(path, Owner::Packaged(package.clone()));
                }
            }
        }
        let conffiles = self.conffiles.iter().map(|(path, package)| (path, Owner::Conffile(package.clone())));
        let from =
            self.diversions.iter().filter(|diversion| diversion.is_local).map(|diversion| (&diversion.from, Owner::Diverted));
        let to = self.diversions.iter().map(|diversion| (&diversion.to, Owner::DivertedTo));
        let known = conffiles.chain(from).chain(to).filter(|(path, _)| paths.contains(&***path));
        owners.extend(known.map(|(path, owner)| (path.clone(), owner)));
        Ok(owners)
    }

    /// Returns what is not installed in full and is not among `before`, as a person would say it.
    pub fn unsettled_since(&self, before: &BTreeSet<String>) -> Vec<String> {
        let fresh = self.unsettled.iter().filter(|(name, _)| !before.contains(*name));
        fresh.map(|(name, state)| format!("{name}: {state}")).collect()
    }
}

impl Owner {
    /// Returns the name by which programs know it.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Conffile(_) => "conffile",
            Self::Packaged(_) => "packaged",
            Self::Diverted => "diverted",
            Self::DivertedTo => "diverted-to",
        }
    }

    /// Returns the package, where it is one's.
    pub fn package(&self) -> Option<&str> {
        match self {
            Self::Conffile(package) | Self::Packaged(package) => Some(package),
            Self::Diverted | Self::DivertedTo => None,
        }
    }
}

/// Returns what an administrator should know of packages and the files of `tree`; nothing, where there is no dpkg.
pub fn findings(repo: &Repo, tree: Oid) -> Result<Vec<Finding>> {
    let Some(packages) = Packages::of(repo)? else { return Ok(Vec::new()) };
    let mut found: Vec<Finding> = Vec::new();
    let mut add = |what, of: &[u8], told: String| found.push(Finding { what, of: of.to_vec(), told });
    for (name, state) in &packages.unsettled {
        add("unsettled", name.as_bytes(), format!("{name} {state}; 'dpkg --configure -a' goes on with it"));
    }
    let top = StoredDir::root(repo, tree)?;
    let stored = |path: &[u8]| -> Result<_> {
        let (parent, name) = split(path);
        let listing = top.clone().descend(repo, parent)?.map(|dir| dir.list(repo)).transpose()?;
        Ok(listing.and_then(|listing| listing.files.get(name).map(|item| item.metadata.clone())))
    };
    if top.clone().descend(repo, DATABASE)?.is_some() {
        add("database", DATABASE, "is owned, and is dpkg's own: 'gdo rm --cached' leaves it to dpkg".to_owned());
    }
    for Diversion { to, .. } in &packages.diversions {
        if stored(to)?.is_some() {
            add("diverted", to, "is owned, and a diversion puts a package's file there".to_owned());
        }
    }
    for Override { path, user, group, mode } in &packages.overrides {
        let Some(metadata) = stored(path)? else { continue };
        let is = |name: &Option<Vec<u8>>, id: u32, wanted: &[u8]| {
            name.as_deref() == Some(wanted) || wanted.strip_prefix(b"#") == Some(id.to_string().as_bytes())
        };
        let is_same =
            is(&metadata.user, metadata.uid, user) && is(&metadata.group, metadata.gid, group) && metadata.mode == *mode;
        if !is_same {
            let told =
                format!("dpkg-statoverride says {}:{} {mode:04o}, and the commit something else", shown(user), shown(group));
            add("statoverride", path, told);
        }
    }
    leftovers(repo, &top, &mut add)?;
    Ok(found)
}

/// Looks what dpkg and ucf left beside files that are owned. Both only do so below `etc`, but for what conffiles lie elsewhere.
fn leftovers(repo: &Repo, top: &StoredDir, add: &mut dyn FnMut(&'static str, &[u8], String)) -> Result<()> {
    let root = Dir::open(&repo.places.work_tree)?;
    let mut dirs = vec![b"etc".to_vec()];
    while let Some(path) = dirs.pop() {
        let Some(stored) = top.clone().descend(repo, &path)? else { continue };
        let listing = stored.list(repo)?;
        dirs.extend(listing.dirs.keys().map(|name| join(&path, name)));
        // One that is a symlink or something else now has nothing for us.
        let Ok(Some(dir)) = root.open_path_if_there(&path) else { continue };
        let mut names: Vec<Vec<u8>> = dir.entries()?.into_iter().map(|entry| entry.name.to_vec()).collect();
        names.sort();
        for name in names {
            let of = LEFTOVERS.iter().find_map(|end| name.strip_suffix(end.as_bytes()));
            if let Some(of) = of.filter(|of| listing.files.contains_key(*of)) {
                add("leftover", &join(&path, &name), format!("lies beside '{}': another version of it", shown(of)));
            }
        }
    }
    Ok(())
}

/// The locks of dpkg: while they are held, it changes nothing here.
pub struct Held {
    _files: Vec<File>,
}

/// Takes the locks of dpkg, and waits for whoever has them.
pub fn hold(repo: &Repo, progress: &Progress) -> Result<Held> {
    let Some(dir) = database(repo)? else { return Ok(Held { _files: Vec::new() }) };
    let seconds = repo.config.get("devops.dpkgwait").map_or(Ok(WAIT), |text| {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).filter(|n| *n <= 86_400);
        number.ok_or_else(|| Error::new(Kind::Usage, "'devops.dpkgwait' is a number of seconds, at most 86400"))
    })?;
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let taken = LOCKS.iter().filter_map(|name| dir.lock_record(name).transpose()).collect::<Result<Vec<_>>>();
        match taken {
            Ok(_files) => return Ok(Held { _files }),
            Err(error) if error.kind() == Kind::Locked && Instant::now() < end => {
                progress.stage("waiting for dpkg", 0, 0);
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(error) => {
                return Err(error.wrap(format!("dpkg or apt is at work here, also after {seconds} s; try again when it is done")));
            }
        }
    }
}

fn database(repo: &Repo) -> Result<Option<Dir>> {
    if !repo.places.is_system() {
        return Ok(None);
    }
    let root = Dir::open(&repo.places.work_tree)?;
    // Behind a symlink it is not looked for.
    Ok(root.open_path_if_there(DATABASE).ok().flatten())
}

fn read(dir: &Dir, name: &[u8]) -> Result<Option<Vec<u8>>> {
    if dir.stat(name)?.is_none() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    dir.open_file(name)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::new(Kind::Refused, format!("'{}' is larger than {MAX_FILE} bytes", shown(name))));
    }
    Ok(Some(bytes))
}

/// Returns the symlinks at the top that lead to the directory of their name in `usr`.
fn merged(root: &Dir) -> Result<BTreeSet<Vec<u8>>> {
    let names = [&b"bin"[..], b"sbin", b"lib", b"lib32", b"lib64", b"libx32"];
    let leads = |name: &&[u8]| root.read_link(name).is_ok_and(|to| to.strip_prefix(b"/").unwrap_or(&to) == join(b"usr", name));
    Ok(names.into_iter().filter(leads).map(<[u8]>::to_vec).collect())
}

/// Reads `data` as each file of dpkg's database.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let mut packages = Packages { merged: BTreeSet::from([b"bin".to_vec()]), ..Packages::default() };
    packages.take_status(data);
    packages.take_diversions(data);
    packages.take_overrides(data);
    let paths = packages.conffiles.keys().chain(packages.overrides.iter().map(|one| &one.path));
    paths.for_each(|path| check_path(path).expect("only what can be a path is taken"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_conffiles_are_read_and_nonsense_is_passed_over() {
        let mut packages = Packages::default();
        packages.take_status(
            b"Package: a\nStatus: install ok installed\nConffiles:\n /etc/a 00\n /etc/with space 11 obsolete\n /../up 22\n etc/x 33\n /etc/short\n\n\
              Package: b\nStatus: install ok half-configured\nDescription: x\n /etc/not 44\n\nPackage: c\nStatus: install reinstreq half-installed\n\n\
              Package: d\nStatus: deinstall ok config-files\n\nStatus: \xff\n",
        );
        let paths: Vec<&[u8]> = packages.conffiles.keys().map(Vec::as_slice).collect();
        assert_eq!(paths, [&b"etc/a"[..], b"etc/with space"]);
        assert_eq!(packages.unsettled["b"], "half-configured");
        assert_eq!(packages.unsettled["c"], "reinstreq half-installed");
        assert!(!packages.unsettled.contains_key("a"));
        assert_eq!(packages.unsettled_since(&BTreeSet::from(["c".into(), "d".into()])), ["b: half-configured"]);
    }

    #[test]
    fn diversions_and_overrides_are_those_of_the_work_tree() {
        let mut packages = Packages { merged: BTreeSet::from([b"bin".to_vec()]), ..Packages::default() };
        packages.take_diversions(b"/bin/sh\n/bin/sh.distrib\n:\n/etc/x\n/etc/y\ndash\n/cut\n");
        let is_local = |from: &str, to: &str, is_local| Diversion { from: from.into(), to: to.into(), is_local };
        assert_eq!(packages.diversions, [is_local("usr/bin/sh", "usr/bin/sh.distrib", true), is_local("etc/x", "etc/y", false)]);
        assert!(packages.is_diverted_to(b"usr/bin/sh.distrib") && !packages.is_diverted_to(b"usr/bin/sh"));
        packages.take_overrides(b"root adm 640 /etc/a b\nroot #4 99999 /etc/c\nroot\n\nroot root 0755 relative\n");
        assert_eq!(packages.overrides.len(), 1);
        assert_eq!((&*packages.overrides[0].path, packages.overrides[0].mode), (&b"etc/a b"[..], 0o640));
    }
}
