//! Which repository, work tree and store a call means; what a path on the command line is called in the work tree.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use git_devops::error::{Context, Error, Kind, Result};
use git_devops::host::rendering::Rendering;
use git_devops::placement::inquiry::Moment;
use git_devops::repo::witness::{self, Witnessed};
use git_devops::repo::{Places, Repo};

use crate::ui::{shown, usage};

/// Options of every verb.
#[derive(Clone, clap::Args)]
pub struct GlobalArgs {
    /// Run as if started in DIR
    #[arg(short = 'C', value_name = "DIR", global = true)]
    pub directory: Option<PathBuf>,
    /// The repository [env: GIT_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    pub git_dir: Option<PathBuf>,
    /// The directory under control [env: GIT_WORK_TREE]
    #[arg(long, value_name = "DIR", global = true)]
    pub work_tree: Option<PathBuf>,
    /// The chunk store [env: GIT_DEVOPS_STORE]
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// Use the system instance below DIR ('/' is the running system); absolute paths then begin at DIR
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only what was asked for: no progress, no summary
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Let nothing but options say what is meant: somebody else may have had a hand in the environment.
    #[arg(skip)]
    pub ignores_environment: bool,
}

impl GlobalArgs {
    /// Opens the repository that the call means.
    pub fn repo(&self) -> Result<Repo> {
        let repo = Repo::open(self.places()?)?;
        tell_healed(&repo.witnessed);
        Ok(repo)
    }

    /// Opens the repository that the call means, to compare or write its work tree: knowing what templates and secrets become here.
    pub fn repo_of_host(&self) -> Result<Repo> {
        let mut repo = self.repo()?;
        render(&mut repo)?;
        Ok(repo)
    }

    /// Returns the directory that relative paths start from.
    pub fn cwd(&self) -> Result<PathBuf> {
        let cwd = std::env::current_dir().context(|| "cannot tell the current directory")?;
        let cwd = match &self.directory {
            Some(directory) => cwd.join(directory),
            None => cwd,
        };
        cwd.canonicalize().context(|| format!("cannot enter '{}'", cwd.display()))
    }

    /// Returns the places that the call means: those named by options, then by the environment, then those found from the current directory.
    pub fn places(&self) -> Result<Places> {
        let cwd = self.cwd()?;
        let named = self.named_places(&cwd)?;
        let found = named.or_else(|| Places::discover(&cwd)).or_else(|| {
            let system = Places::system(Path::new("/"));
            system.state.is_dir().then_some(system)
        });
        found.ok_or_else(|| {
            let message = format!("no repository in '{}' or above it; make one with 'gdo init'", cwd.display());
            Error::new(Kind::NotFound, message)
        })
    }

    /// Returns the places that options or the environment name, if they do.
    pub fn named_places(&self, cwd: &Path) -> Result<Option<Places>> {
        if let Some(root) = &self.root {
            if self.git_dir.is_some() || self.work_tree.is_some() {
                return Err(usage("--root names all places; it does not go with --git-dir or --work-tree"));
            }
            return Ok(Some(self.with_store(Places::system(&existing(&cwd.join(root))?), cwd)));
        }
        let git_dir = self.git_dir.clone().or_else(|| self.environment("GIT_DIR"));
        let work_tree = self.work_tree.clone().or_else(|| self.environment("GIT_WORK_TREE"));
        let (git_dir, work_tree) = match (git_dir, work_tree) {
            (None, None) => {
                return Ok(match self.store.is_some() || self.environment("GIT_DEVOPS_STORE").is_some() {
                    true => Places::discover(cwd).map(|places| self.with_store(places, cwd)),
                    false => None,
                });
            }
            (Some(git_dir), Some(work_tree)) => (cwd.join(git_dir), existing(&cwd.join(work_tree))?),
            (None, Some(work_tree)) => {
                let work_tree = existing(&cwd.join(work_tree))?;
                (work_tree.join(".git"), work_tree)
            }
            (Some(git_dir), None) => {
                let git_dir = cwd.join(git_dir);
                let around = git_dir.ends_with(".git").then(|| git_dir.parent().map(Path::to_owned)).flatten();
                let system =
                    git_dir.ends_with("etc/git-devops/repo").then(|| git_dir.ancestors().nth(3).map(Path::to_owned)).flatten();
                if let Some(root) = system {
                    return Ok(Some(self.with_store(Places::system(&root), cwd)));
                }
                (git_dir, around.unwrap_or_else(|| cwd.to_owned()))
            }
        };
        Ok(Some(self.with_store(Places::apart(&git_dir, &work_tree), cwd)))
    }

    fn environment(&self, name: &str) -> Option<PathBuf> {
        let value = std::env::var_os(name).filter(|value| !value.is_empty() && !self.ignores_environment);
        value.map(PathBuf::from)
    }

    /// Puts the named store, if there is one, in the place of the default.
    pub fn with_store(&self, mut places: Places, cwd: &Path) -> Places {
        if let Some(store) = self.store.clone().or_else(|| self.environment("GIT_DEVOPS_STORE")) {
            places.store = cwd.join(store);
            places.is_store_named = true;
        }
        places
    }

    /// Returns the `error` that came of the revisions `revs` to `command`; if a path was given for the last one, that says how it is given.
    pub fn or_path(&self, repo: &Repo, command: &str, revs: &[String], error: Error) -> Error {
        let Some((path, before)) = revs.split_last() else { return error };
        let is_path = || -> Result<bool> {
            let stored = self.work_paths(&repo.places, &[PathBuf::from(path)])?.remove(0);
            let is_on_disk = repo.places.work_tree.join(as_path(&stored)).symlink_metadata().is_ok();
            Ok(repo.git.resolve(path).is_err() && (is_on_disk || repo.is_stored(&*repo.index()?, &stored)))
        };
        if error.kind() != Kind::NotFound || !is_path().unwrap_or(false) {
            return error;
        }
        let form = [&[command.to_owned()], before, &["--".to_owned(), path.clone()]].concat().join(" ");
        usage(format!("'{path}' is a path, and a revision is meant here; write '{form}'"))
    }

    /// Returns what `paths` are called in the work tree of `places`.
    pub fn work_paths(&self, places: &Places, paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
        let cwd = self.cwd()?;
        paths.iter().map(|path| work_path(&places.work_tree, &cwd, path, self.root.is_some())).collect()
    }
}

/// Says on standard error what of HEAD, configuration and refs was damaged and was put back.
pub fn tell_healed(witnessed: &Witnessed) {
    for found in &witnessed.healed {
        eprintln!("warning: {}", shown(witness::told(found).as_bytes()));
    }
}

/// Lets `repo` know what templates and secrets become on this host.
pub fn render(repo: &mut Repo) -> Result<()> {
    repo.laying = Arc::new(Rendering::of_index(repo, &*repo.index()?)?);
    Ok(())
}

fn existing(dir: &Path) -> Result<PathBuf> {
    dir.canonicalize().context(|| format!("cannot use '{}'", dir.display()))
}

/// Returns what `path`, as a person named it in `cwd`, is called in the work tree; relative to the work tree itself if `cwd` is outside.
///
/// With `is_root` the work tree stands for a whole system, and an absolute path that does not lead into it begins at its top.
fn work_path(work_tree: &Path, cwd: &Path, path: &Path, is_root: bool) -> Result<Vec<u8>> {
    let root = existing(work_tree)?;
    let base = if cwd.starts_with(&root) { cwd } else { &root };
    let mut full = plain(&base.join(path));
    if is_root && path.is_absolute() && !full.starts_with(&root) {
        full = plain(&root.join(full.strip_prefix("/").expect("BUG: it is absolute")));
    }
    let outside = || usage(format!("'{}' is outside of the work tree '{}'", path.display(), work_tree.display()));
    let relative = match full.strip_prefix(&root) {
        Ok(relative) => relative.to_owned(),
        Err(_) => {
            // Perhaps a symlink leads there. The last component is the thing itself and not followed.
            let (parent, name) = (full.parent().ok_or_else(outside)?, full.file_name().ok_or_else(outside)?);
            let parent = parent.canonicalize().map_err(|_| outside())?;
            parent.join(name).strip_prefix(&root).map_err(|_| outside())?.to_owned()
        }
    };
    Ok(relative.as_os_str().as_bytes().to_vec())
}

/// Takes `.` and `..` out of an absolute path, by its letters alone.
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    plain
}

/// Returns a path of the work tree as the operating system knows it.
pub fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// Reads this host's clocks; GIT_DEVOPS_TIME stands in for the one that people set.
pub fn moment() -> Moment {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let faked = std::env::var("GIT_DEVOPS_TIME").ok().and_then(|time| time.parse().ok());
    let wall = faked.unwrap_or_else(|| jiff::Timestamp::now().as_second().try_into().unwrap_or(0));
    Moment { wall, boot: Duration::new(boot.tv_sec.try_into().unwrap_or(0), boot.tv_nsec.try_into().unwrap_or(0)) }
}

/// Returns what this host calls itself.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_from_where_the_person_stands() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
        for (path, want) in [("/", ""), ("/etc/hosts", "etc/hosts"), ("/..", ""), (root.join("etc").to_str().unwrap(), "etc")] {
            assert_eq!(work_path(&root, Path::new("/"), Path::new(path), true).unwrap(), want.as_bytes(), "{path}");
        }
        for (cwd, path, want) in [
            (root.join("etc"), "hosts", Some("etc/hosts")),
            (root.join("etc"), ".", Some("etc")),
            (root.join("etc"), "..", Some("")),
            (root.join("etc"), "../link", Some("link")),
            (root.join("etc"), "../..", None),
            (PathBuf::from("/"), "etc/hosts", Some("etc/hosts")),
            (PathBuf::from("/"), "/usr", None),
        ] {
            let found = work_path(&root, &cwd, Path::new(path), false).ok().map(|path| String::from_utf8(path).unwrap());
            assert_eq!(found.as_deref(), want, "{path}");
        }
    }
}
