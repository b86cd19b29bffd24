//! Files of our own (repository, store, state) that are whole or absent after a power cut, and locks that die with their holder.
//!
//! All paths to such files go through here: whoever else hands a path to the kernel is stopped by `clippy.toml`. What is read must be a regular file,
//! so that nothing planted in its place makes us wait. What is written never goes through a symlink.
#![allow(clippy::disallowed_methods)]

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::id::FileHash;

/// Publishes `bytes` at `path` with mode `mode`, whole or not at all, and returns once they would survive a power cut.
///
/// A reader sees the old file or the new one, never a part.
pub fn publish(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut temp = Temp::beside(path, mode)?;
    temp.file.write_all(bytes).context(|| format!("cannot write '{}'", temp.path.display()))?;
    temp.publish(path)
}

/// A file being written under a temporary name; removed when dropped unless it was published.
#[derive(Debug)]
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
        Self::at(path.with_file_name(format!("{}{number:016x}", String::from_utf8_lossy(crate::safepath::TEMP_PREFIX))), mode)
    }

    /// Creates the empty file `lock` itself with mode `mode`: git's protocol, by which whoever made it may replace what it locks.
    ///
    /// One that is there already is an error of the kind [`Kind::Locked`].
    pub fn as_lock(lock: &Path, mode: u32) -> Result<Self> {
        Self::at(lock.to_owned(), mode)
    }

    fn at(path: PathBuf, mode: u32) -> Result<Self> {
        let file = match File::options().read(true).write(true).create_new(true).mode(mode).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::new(Kind::Locked, format!("'{}' is there already", path.display())));
            }
            other => other.context(|| format!("cannot create '{}'", path.display()))?,
        };
        let temp = Self { file, path, is_published: false };
        // The mode counts as asked for, whatever the umask is.
        temp.file
            .set_permissions(fs::Permissions::from_mode(mode))
            .context(|| format!("cannot set the mode of '{}'", temp.path.display()))?;
        Ok(temp)
    }

    /// Returns where the file is, for a program that is to change it there.
    pub fn path(&self) -> &Path {
        &self.path
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

/// Opens the regular file `path` for reading; anything else in its place is refused, and does not make us wait.
///
/// Neither this nor what follows names the path in its errors: the caller says what it wanted there. What is missing is of the kind
/// [`Kind::NotFound`].
pub fn open(path: &Path) -> Result<File> {
    check_regular(open_any(path)?)
}

fn open_any(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32).open(path)
}

fn check_regular(file: File) -> Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(Kind::Refused, "not a regular file")),
    }
}

/// Reads the regular file `path`.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_all(open_any(path)?)
}

/// Reads the regular file `path`; one that is missing, also because there is a file in the place of a directory, is `None`.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match open_any(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => read_all(other?).map(Some),
    }
}

fn read_all(file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    check_regular(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the hash of all bytes of a regular file, which is read once and not held.
pub fn hash_file(path: &Path) -> Result<FileHash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(open(path)?)?;
    Ok(FileHash::from_bytes(*hasher.finalize().as_bytes()))
}

/// Says whether the disk does not give back what was written to it. All else that can go wrong says nothing of the file.
pub fn is_rot(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Returns what the kernel tells of the file or directory `path`.
pub fn look(path: &Path) -> Result<Metadata> {
    Ok(fs::metadata(path)?)
}

/// Tells one state of a file from another: who replaces a file, or writes to it, leaves another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    inode: (u64, u64),
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileStamp {
    /// Returns how long the file is.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Returns the stamp of what is at `path`, if anything is.
pub fn stamp(path: &Path) -> Option<FileStamp> {
    let found = path.symlink_metadata().ok()?;
    Some(FileStamp {
        inode: (found.dev(), found.ino()),
        size: found.size(),
        mtime: (found.mtime(), found.mtime_nsec()),
        ctime: (found.ctime(), found.ctime_nsec()),
    })
}

/// Says whether there is anything at `path`, be it a symlink that leads nowhere.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Says whether `path` is a regular file.
pub fn is_file(path: &Path) -> bool {
    path.is_file()
}

/// Says whether `path` is a directory.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// Says whether `path` is a directory, and fails where nobody can say.
pub fn find_dir(path: &Path) -> Result<bool> {
    match path.metadata() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        looked => Ok(looked?.is_dir()),
    }
}

/// What lies in a directory of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path.
    pub path: PathBuf,
    /// Whether it is a directory itself; a symlink is none, wherever it leads.
    pub is_dir: bool,
}

/// Lists the directory `path`, in no order; what goes while it is listed is not there.
pub fn list(path: &Path) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type() {
            Err(error) if error.kind() == ErrorKind::NotFound => (),
            kind => all.push(Listed { is_dir: kind?.is_dir(), path: entry.path() }),
        }
    }
    Ok(all)
}

/// Returns the absolute path of `path` without symlinks, which tells whether two paths are one.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    Ok(path.canonicalize()?)
}

/// Removes the file `path`; one that is not there is no error. Its name is gone for good only after [`sync_dir`].
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(|| format!("cannot remove '{}'", path.display())),
        _ => Ok(()),
    }
}

/// Moves the file `path` into the directory `dir`, where it keeps its name, and returns once that would survive a power cut.
pub fn move_into(path: &Path, dir: &Path) -> Result<()> {
    let target = dir.join(path.file_name().unwrap_or_default());
    fs::rename(path, &target).context(|| format!("cannot move '{}' to '{}'", path.display(), target.display()))?;
    sync_dir(dir)?;
    sync_dir(parent(path))
}

/// Moves the file `path` to `target`, and returns once that would survive a power cut; one that is not there is no error.
pub fn move_to(path: &Path, target: &Path) -> Result<()> {
    match fs::rename(path, target) {
        Err(error) if error.kind() == ErrorKind::NotFound && is_dir(parent(target)) => return Ok(()),
        other => other.context(|| format!("cannot move '{}' to '{}'", path.display(), target.display()))?,
    }
    sync_dir(parent(target))?;
    sync_dir(parent(path))
}

/// Opens the file `path`, which is there, to write at its end; nothing is synced.
pub fn open_to_append(path: &Path) -> Result<File> {
    File::options().append(true).custom_flags(NO_SYMLINK).open(path).context(|| format!("cannot write '{}'", path.display()))
}

/// Appends `bytes` to the file `path`, which is made if it is missing; nothing is synced, as it matters only while the machine runs.
pub fn append_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = || format!("cannot write '{}'", path.display());
    let mut file = File::options().append(true).create(true).mode(0o600).custom_flags(NO_SYMLINK).open(path).context(what)?;
    file.write_all(bytes).context(what)
}

/// Appends `bytes` to the file `path`, which is there, with one write, and returns once they would survive a power cut.
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = || format!("cannot write '{}'", path.display());
    let mut file = File::options().append(true).custom_flags(NO_SYMLINK).open(path).context(what)?;
    file.write_all(bytes).context(what)?;
    file.sync_all().context(what)
}

/// Cuts the file `path` off after `len` bytes; nothing is synced.
pub fn truncate_unsynced(path: &Path, len: u64) -> Result<()> {
    let what = || format!("cannot cut off '{}'", path.display());
    let file = File::options().write(true).custom_flags(NO_SYMLINK).open(path).context(what)?;
    file.set_len(len).context(what)
}

/// Gives the file `path` the present time as that of its last change; nothing is synced.
pub fn touch_unsynced(path: &Path) -> Result<()> {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes the file `path` empty, and makes it if it is missing; nothing is synced.
pub fn empty_unsynced(path: &Path) -> Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(NO_SYMLINK);
    options.open(path).map(drop).context(|| format!("cannot write '{}'", path.display()))
}

/// Gives the file or directory `path` to another user and group; nothing is synced.
pub fn give(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let what = || format!("cannot change the owner of '{}'", path.display());
    let file = File::options().read(true).custom_flags(NO_SYMLINK).open(path).context(what)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::fchown(&file, Some(uid), Some(gid)).context(what)
}

/// Lets nobody but the owner into the directory `path`.
pub fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .context(|| format!("cannot set the mode of '{}'", path.display()))
}

const NO_SYMLINK: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;

/// Returns once the content of `file` would survive a power cut.
pub fn sync_file(file: &File) -> Result<()> {
    Ok(file.sync_all()?)
}

/// Returns once the names in the directory `path` would survive a power cut.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).context(|| format!("cannot sync directory '{}'", path.display()))
}

/// Returns how many bytes the filesystem that holds `path` has left for us.
pub fn filesystem_free(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).context(|| format!("cannot tell what is free on the filesystem of '{}'", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns how many bytes the filesystem of `path` has in all.
pub fn filesystem_size(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).context(|| format!("cannot tell the size of the filesystem of '{}'", path.display()))?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Keeps the disk at work while a file is written, so that its sync, which this does not replace, has less left to do.
#[derive(Debug, Default)]
pub struct Writeback(AtomicU64);

impl Writeback {
    /// Tells that `count` more bytes were written to `file`. Every few MiB of them the kernel begins to bring to the disk what it holds of the file.
    pub fn wrote(&self, file: &File, count: u64) -> std::io::Result<()> {
        let before = self.0.fetch_add(count, Ordering::Relaxed);
        if before / STRIDE == (before + count) / STRIDE { Ok(()) } else { begin_writeback(file) }
    }
}

/// Has the kernel begin to bring to the disk what it holds of `file`; it waits for no more than that the disk takes the work.
///
/// A failure is one of what was written before: no later sync tells of it again.
pub fn begin_writeback(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is open, and no memory of ours is touched.
    #[allow(unsafe_code)]
    let failed = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) } != 0;
    if !failed {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.kind() {
        // It is not to be had here, or not now: the sync does all of it.
        ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::PermissionDenied | ErrorKind::NotSeekable => Ok(()),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::OutOfMemory => Ok(()),
        _ => Err(error),
    }
}

/// Smaller pieces would make a disk seek, and fragments of a file.
const STRIDE: u64 = 4 << 20;

/// Returns once everything written to the filesystem that holds `path` would survive a power cut.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let what = || format!("cannot sync the filesystem of '{}'", path.display());
    rustix::fs::syncfs(File::open(path).context(what)?).context(what)
}

/// Returns once all that was written to any filesystem would survive a power cut: what others wrote, nobody can name.
pub fn sync_all() {
    rustix::fs::sync();
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

/// A directory for our eyes only, not durable, that is gone when dropped; [`Scratch::clear`] removes what a killed owner left.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Tells others that somebody is in there.
    lock: Lock,
}

/// The lock in a scratch directory.
const SCRATCH_LOCK: &str = "lock";
/// What follows the prefix in the name of one that does not have its lock yet.
const UNBORN: &str = "new-";
/// So old one of that name must be before it counts as dead.
const SCRATCH_YOUTH: std::time::Duration = std::time::Duration::from_secs(10);

impl Scratch {
    /// Makes one of a new name that begins with `prefix` in `above`.
    pub fn make(above: &Path, prefix: &str) -> Result<Self> {
        use std::hash::{BuildHasher, RandomState};
        let name = format!("{:016x}", RandomState::new().hash_one(above));
        let (unborn, path) = (above.join(format!("{prefix}{UNBORN}{name}")), above.join(format!("{prefix}{name}")));
        let what = || format!("cannot create directory '{}'", path.display());
        fs::DirBuilder::new().mode(0o700).create(&unborn).context(what)?;
        // Under its own name nobody meets it without its lock.
        let lock = Lock::exclusive(&unborn.join(SCRATCH_LOCK));
        match lock.and_then(|lock| fs::rename(&unborn, &path).map(|()| lock).context(what)) {
            Ok(lock) => Ok(Self { path, lock }),
            Err(error) => remove_dir_all(&unborn).and(Err(error)),
        }
    }

    /// Removes those of `prefix` in `above` that are this user's, and whose owner is dead.
    pub fn clear(above: &Path, prefix: &str) -> Result<()> {
        for Listed { path, is_dir } in list(above).context(|| format!("cannot list '{}'", above.display()))? {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            let Some(rest) = name.strip_prefix(prefix.as_bytes()) else { continue };
            if is_dir && is_dead(&path, rest.starts_with(UNBORN.as_bytes())) {
                // What cannot be removed now, the next one meets.
                let _ = remove_dir_all(&path);
            }
        }
        Ok(())
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the programs that are started from now on keep it alive, too.
    pub fn share_with_children(&self) -> Result<()> {
        self.lock.share_with_children()
    }
}

/// Says whether a scratch directory is ours, and nobody is in there.
fn is_dead(path: &Path, is_unborn: bool) -> bool {
    let Ok(found) = path.symlink_metadata() else { return false };
    let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    let is_young = found.modified().ok().and_then(|made| made.elapsed().ok()).is_none_or(|age| age < SCRATCH_YOUTH);
    is_ours && !(is_unborn && is_young) && Lock::exclusive(&path.join(SCRATCH_LOCK)).is_ok()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next one who clears.
        let _ = remove_dir_all(&self.path);
    }
}

/// Removes a directory of ours with all below it; one that is not there is no error.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("cannot remove '{}'", path.display())),
    }
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

    /// Lets the programs that are started from now on hold the lock too: one that outlives this process keeps it until it has ended.
    pub fn share_with_children(&self) -> Result<()> {
        Ok(rustix::io::fcntl_setfd(&self._file, rustix::io::FdFlags::empty())?)
    }

    /// Takes that back: what is started from now on does not hold the lock.
    pub fn keep_from_children(&self) -> Result<()> {
        Ok(rustix::io::fcntl_setfd(&self._file, rustix::io::FdFlags::CLOEXEC)?)
    }

    /// Takes a shared lock on the file `path` (made if missing), or fails at once and says who holds it.
    pub fn shared(path: &Path) -> Result<Self> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self> {
        let what = || format!("cannot lock '{}'", path.display());
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(NO_SYMLINK);
        let file = options.open(path).context(what)?;
        match rustix::fs::flock(&file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&file).take(MAX_NOTE).read_to_string(&mut holder);
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

/// The longest note of a lock's holder that is read, in bytes.
const MAX_NOTE: u64 = 200;

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
    fn what_goes_while_it_is_listed_is_no_error() {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        let is_time = || std::time::Instant::now() < until;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while is_time() {
                        std::process::Command::new("true").status().unwrap();
                    }
                });
            }
            while is_time() {
                list(Path::new("/proc")).unwrap();
            }
        });
    }

    #[test]
    fn scratch_directories_go_when_their_owner_does_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Scratch::make(dir.path(), ".x-").unwrap();
        let gone = Scratch::make(dir.path(), ".x-").unwrap().path().to_owned();
        assert!(!gone.exists());
        let at = |name: &str| dir.path().join(name);
        for name in [".x-dead", ".x-new-1", ".x-new-2", ".x-new-old", ".y-dead", "target"] {
            fs::create_dir(at(name)).unwrap();
        }
        // The lock of a young one may be there, and not taken yet.
        for name in [".x-dead", ".x-new-1", ".y-dead", "target"] {
            fs::write(at(name).join("lock"), "").unwrap();
        }
        std::os::unix::fs::symlink("target", at(".x-link")).unwrap();
        fs::write(at(".x-file"), "").unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * SCRATCH_YOUTH;
        File::open(at(".x-new-old")).unwrap().set_modified(long_ago).unwrap();
        Scratch::clear(dir.path(), ".x-").unwrap();
        let mut left: Vec<_> = list(dir.path()).unwrap().into_iter().map(|listed| listed.path).collect();
        left.sort();
        let mut expected = [".x-new-1", ".x-new-2", ".y-dead", "target", ".x-link", ".x-file"].map(at).to_vec();
        expected.push(alive.path().to_owned());
        expected.sort();
        assert_eq!(left, expected);
        assert!(at("target/lock").exists());
    }

    #[test]
    fn a_child_that_outlives_us_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for is_shared in [false, true] {
            let held = Lock::exclusive(&path).unwrap();
            if is_shared {
                held.share_with_children().unwrap();
            }
            let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
            drop(held);
            // A child that another test starts just then has the lock too, until it is another program.
            let comes_free = || {
                (0..100).any(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    Lock::exclusive(&path).is_ok()
                })
            };
            assert_eq!(comes_free(), !is_shared);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(comes_free());
        }
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
