//! Files of our own (repository, store, state) that are whole or absent after a power cut, and locks that die with their holder.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Context, Error, Kind, Result};

/// Publishes `bytes` at `path` with mode `mode`, whole or not at all, and returns once they would survive a power cut.
///
/// A reader sees the old file or the new one, never a part.
pub fn publish(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut temp = Temp::beside(path, mode)?;
    temp.file.write_all(bytes).context(|| format!("cannot write '{}'", temp.path.display()))?;
    temp.publish(path)
}

/// A file being written under a temporary name; removed when dropped unless it was published.
pub struct Temp {
    /// The open file.
    pub file: File,
    path: PathBuf,
    is_published: bool,
}

impl Temp {
    /// Creates an empty file with mode `mode` in the directory of `path`, which must exist.
    pub fn beside(path: &Path, mode: u32) -> Result<Self> {
        use std::hash::{BuildHasher, RandomState};
        let number = RandomState::new().hash_one(path);
        let temp = path.with_file_name(format!("{}{number:016x}", String::from_utf8_lossy(crate::safepath::TEMP_PREFIX)));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temp)
            .context(|| format!("cannot create '{}'", temp.display()))?;
        // The mode counts as asked for, whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))
            .context(|| format!("cannot set the mode of '{}'", temp.display()))?;
        Ok(Self { file, path: temp, is_published: false })
    }

    /// Syncs the content, gives the file its name, and returns once both would survive a power cut.
    pub fn publish(self, path: &Path) -> Result<()> {
        self.publish_unsynced(path)?;
        sync_dir(parent(path))
    }

    /// Syncs the content and gives the file its name; the name itself is durable only after [`sync_dir`].
    pub fn publish_unsynced(mut self, path: &Path) -> Result<()> {
        self.file.sync_all().context(|| format!("cannot sync '{}'", self.path.display()))?;
        fs::rename(&self.path, path).context(|| format!("cannot rename '{}' to '{}'", self.path.display(), path.display()))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.is_published {
            // Nothing refers to it; whoever lists the directory next may remove it too.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns once the names in the directory `path` would survive a power cut.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).context(|| format!("cannot sync directory '{}'", path.display()))
}

/// Returns once everything written to the filesystem that holds `path` would survive a power cut.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let what = || format!("cannot sync the filesystem of '{}'", path.display());
    rustix::fs::syncfs(File::open(path).context(what)?).context(what)
}

/// Creates the directory `path` and its missing parents, each with mode `mode`, durably.
pub fn create_dir_all(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_dir_all(parent(path), mode)?;
    let what = || format!("cannot create directory '{}'", path.display());
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        other => other.context(what)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context(what)?;
    sync_dir(parent(path))
}

/// Creates the directory `path` for our eyes only, durably; missing parents are as other directories are.
pub fn create_private_dir(path: &Path) -> Result<()> {
    create_dir_all(parent(path), 0o755)?;
    create_dir_all(path, 0o700)
}

/// An exclusive or shared lock, held until dropped or until the process dies in any way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the exclusive lock on the file `path` (made if missing), or fails at once and says who holds it.
    pub fn exclusive(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes a shared lock on the file `path` (made if missing), or fails at once and says who holds it.
    pub fn shared(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self> {
        let what = || format!("cannot lock '{}'", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).context(what)?;
        match rustix::fs::flock(&file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(path).unwrap_or_default();
                let holder = holder.trim();
                let holder = if holder.is_empty() { "another run" } else { holder };
                Err(Error::new(Kind::Locked, format!("'{}' is locked by {holder}; try again when it is done", path.display())))
            }
            other => {
                other.context(what)?;
                if operation == FlockOperation::NonBlockingLockExclusive {
                    // For the loser's message only: the lock itself is the kernel's.
                    let note = format!("process {}", std::process::id());
                    let _ = file.set_len(0).and_then(|()| (&file).write_all(note.as_bytes()));
                }
                Ok(Self { _file: file })
            }
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_file_replaces_the_old_one_and_leaves_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        publish(&path, b"one", 0o600).unwrap();
        publish(&path, b"two", 0o444).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_loser_of_a_lock_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::exclusive(&path).unwrap();
        let error = Lock::shared(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Locked);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        Lock::shared(&path).unwrap();
    }
}
