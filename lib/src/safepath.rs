//! Paths in a managed tree: held directory handles, one component at a time, no symlink followed.
//!
//! Only this module and `durable` hand a path to the kernel (`clippy.toml` keeps it so), and only this one a name of a managed tree. Every call takes an open
//! directory and one component, so that nobody who renames directories or plants symlinks while we run can
//! lead us elsewhere, and the length of a path does not matter (reliability study 1.4).
//!
//! Names are bytes. Each is checked when it comes in: not empty, not `.` or `..`, no `/`, no NUL, at most 255 bytes.
#![allow(clippy::disallowed_methods)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, StatxFlags, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Reason, Result};

/// What starts the name of every temporary file of ours; see [`is_temp_name`].
pub const TEMP_PREFIX: &[u8] = b".gdo-tmp-";

/// Says whether `name` is one that a temporary file of ours has; such files are never stored, and removed when met. Directories are none.
pub fn is_temp_name(name: &[u8]) -> bool {
    let number = name.strip_prefix(TEMP_PREFIX);
    number.is_some_and(|number| number.len() == 16 && number.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket; kept as a node, nobody listens on it.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// A moment in nanoseconds, also before 1970: `nanos` always counts forward from `secs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds after `secs`, below 1,000,000,000.
    pub nanos: u32,
}

/// What `statx` tells about one entry, without following a symlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type of the entry.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `07777` at most.
    pub mode: u16,
    /// Owner, as a number.
    pub uid: u32,
    /// Group, as a number.
    pub gid: u32,
    /// Length of the content, in bytes.
    pub size: u64,
    /// Blocks of 512 bytes that the content takes on the disk.
    pub blocks: u64,
    /// When the content was last changed.
    pub mtime: Time,
    /// When content or metadata was last changed.
    pub ctime: Time,
    /// Device that the entry lies on: major and minor number.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
    /// Number of names that this inode has.
    pub nlink: u32,
    /// Device number of a device node: major and minor number.
    pub rdev: (u32, u32),
}

/// What a filesystem has left for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that can be written.
    pub bytes: u64,
    /// Bytes that it has in all.
    pub size: u64,
    /// Files that can be made.
    pub inodes: u64,
    /// Whether nothing can be written at all.
    pub is_read_only: bool,
}

/// One entry as a directory lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its type, where the filesystem tells it in the listing.
    pub kind: Option<FileKind>,
}

/// An open directory of a managed tree.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// Says whether `name` can be one component of a path.
pub fn check_name(name: &[u8]) -> Result<()> {
    let problem = match name {
        b"" => "is empty",
        b"." | b".." => "leads out of its directory",
        _ if name.len() > 255 => "is longer than 255 bytes",
        _ if name.contains(&b'/') => "contains a slash",
        _ if name.contains(&0) => "contains a NUL byte",
        _ => return Ok(()),
    };
    let reason = if name.len() > 255 { Reason::NameTooLong } else { Reason::TreeName };
    Err(Error::refused(reason, format!("name '{}' {problem}", name[..name.len().min(300)].escape_ascii())))
}

/// Says whether `path` is relative, made of valid names: what may be looked up below a managed root.
pub fn check_path(path: &[u8]) -> Result<()> {
    path.split(|&b| b == b'/').try_for_each(check_name)
}

impl Dir {
    /// Opens the directory that a person named.
    ///
    /// Symlinks on the way are followed, as the person expects, but only those that no other user can have put there: anything else is refused
    /// as [`Reason::SymlinkUntrusted`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::walk(path, false)
    }

    /// Opens the directory that a person named, as [`Dir::open`] does, and makes what is missing of it.
    pub fn open_or_make(path: &Path) -> Result<Self> {
        Self::walk(path, true)
    }

    fn walk(path: &Path, makes: bool) -> Result<Self> {
        let mut at = open_handle_of(if path.is_absolute() { "/" } else { "." })?;
        let mut rest: Vec<Vec<u8>> = reversed(path.as_os_str().as_bytes());
        let mut n_links = 0;
        while let Some(name) = rest.pop() {
            match rustix::fs::openat(&at, &name, OFlags::PATH | DIR_FLAGS, Mode::empty()) {
                Ok(below) => at = below,
                Err(Errno::NOENT) if makes => match rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o777)) {
                    Err(error) if error != Errno::EXIST => return Err(error.into()),
                    _ => rest.push(name),
                },
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    n_links += 1;
                    let target = read_trusted_link(&at, &name, path)?;
                    if n_links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        at = open_handle_of("/")?;
                    }
                    rest.extend(reversed(&target));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(rustix::fs::openat(&at, c".", DIR_FLAGS, Mode::empty())?))
    }

    /// Opens the directory `name` in this one; fails with `NOTDIR` or `LOOP` if it is anything else.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self> {
        check_name(name)?;
        Ok(Self(self.openat(name, DIR_FLAGS)?))
    }

    /// Opens the directory at the relative `path` below this one, one component after the other; empty means this one.
    pub fn open_path(&self, path: &[u8]) -> Result<Self> {
        let mut dir = self.try_clone()?;
        for name in path.split(|&b| b == b'/').filter(|_| !path.is_empty()) {
            dir = dir.open_dir(name)?;
        }
        Ok(dir)
    }

    /// Opens the directory that `path` leads to below this one, as if this one were `/`: an absolute symlink begins here, and `..` leads nowhere above.
    ///
    /// Symlinks are followed if no other user can have put them there, as by [`Dir::open`]. `None` if nothing is there, or no directory.
    pub fn follow(&self, path: &[u8]) -> Result<Option<Self>> {
        Ok(self.walk_within(path, Way::Within)?.map(|(dir, _)| dir))
    }

    /// Opens the regular file that `path` leads to below this directory, like [`Self::follow`], for reading; `None` if nothing is there.
    pub fn follow_to_file(&self, path: &[u8]) -> Result<Option<File>> {
        match self.walk_within(path, Way::ToFile)? {
            Some((dir, Some(name))) => dir.open_file(&name).map(Some),
            _ => Ok(None),
        }
    }

    /// Fails if the kernel, which knows nothing of this directory being `/`, would be led out of it on the way to `path`, as far as that is there.
    pub fn must_contain(&self, path: &[u8]) -> Result<()> {
        self.walk_within(path, Way::Strict).map(drop)
    }

    /// Goes along `path` within this directory; returns where that leads, and the name of what it ends with there, if that is no directory and one was not
    /// asked for.
    fn walk_within(&self, path: &[u8], way: Way) -> Result<Option<(Self, Option<Vec<u8>>)>> {
        let shown = |name: &[u8]| name.escape_ascii().to_string();
        let told = || format!("cannot follow '{}'", shown(path));
        let mut rest = reversed(path);
        // Where we are, as names that are no symlinks, so that '..' needs no trust in what lies above.
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut dir = self.try_clone()?;
        let mut n_links = 0;
        while let Some(name) = rest.pop() {
            if name == b"." {
                continue;
            }
            if name == b".." {
                if at.pop().is_none() && way == Way::Strict {
                    return Err(leads_out(path));
                }
                dir = self.open_path(&at.join(&b'/'))?;
                continue;
            }
            check_name(&name).context(told)?;
            let Some(stat) = dir.stat(&name)? else { return Ok(None) };
            match stat.kind {
                FileKind::Dir => {
                    dir = dir.open_dir(&name).context(told)?;
                    at.push(name);
                }
                FileKind::Symlink => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        let message = format!(
                            "'{}' on the way to '/{}' leads through too many symlinks; mend them",
                            shown(&name),
                            shown(path)
                        );
                        return Err(Error::new(Kind::Refused, message));
                    }
                    let target =
                        read_trusted_link(&dir.0, &name, Path::new(std::ffi::OsStr::from_bytes(&[b"/", path].concat())))?;
                    if target.starts_with(b"/") {
                        if way == Way::Strict {
                            return Err(leads_out(path));
                        }
                        at.clear();
                        dir = self.try_clone()?;
                    }
                    rest.extend(reversed(&target));
                }
                _ if way == Way::ToFile && rest.is_empty() => return Ok(Some((dir, Some(name)))),
                _ => return Ok(None),
            }
        }
        Ok(Some((dir, None)))
    }

    /// Opens the directory at `path` like [`Self::open_path`]; `None` if there is none.
    pub fn open_path_if_there(&self, path: &[u8]) -> Result<Option<Self>> {
        match self.open_path(path) {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Returns a second handle of the same directory.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Lists the entries, in no order, without `.` and `..`.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Start(0))?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        let mut raw = RawDir::new(&self.0, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push(Entry { name: name.to_vec(), kind: kind_of(entry.file_type()) });
            }
        }
        Ok(entries)
    }

    /// Returns what the kernel tells about the entry `name`, or `None` if there is none.
    pub fn stat(&self, name: &[u8]) -> Result<Option<Stat>> {
        check_name(name)?;
        match rustix::fs::statx(&self.0, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS) {
            Ok(raw) => Stat::from_statx(&raw).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns what the kernel tells about this directory.
    pub fn stat_self(&self) -> Result<Stat> {
        stat_fd(&self.0)
    }

    /// Opens a regular file for reading; a fifo or a device at that name does not block and is refused.
    ///
    /// The access time stays as it is where the kernel lets us.
    pub fn open_file(&self, name: &[u8]) -> Result<File> {
        self.open_regular(name, OFlags::RDONLY).map(|(file, _)| file)
    }

    /// Does what [`Self::open_file`] does; also returns what the file looked like just then.
    pub fn open_file_with_stat(&self, name: &[u8]) -> Result<(File, Stat)> {
        self.open_regular(name, OFlags::RDONLY)
    }

    /// Opens an existing regular file for reading and writing in place: only for files that nobody else can see.
    pub fn open_file_rw(&self, name: &[u8]) -> Result<File> {
        self.open_regular(name, OFlags::RDWR).map(|(file, _)| file)
    }

    /// Takes the lock on the file `name` that other programs take by `fcntl`, and holds it until the file is closed; `None` if there is no such file.
    ///
    /// Fails as [`Kind::Locked`] while another process has it. A child does not inherit it, and closing any other handle of the file gives it up.
    pub fn lock_record(&self, name: &[u8]) -> Result<Option<File>> {
        if self.stat(name)?.is_none() {
            return Ok(None);
        }
        let file = self.open_file_rw(name)?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN | Errno::ACCESS) => {
                Err(Error::new(Kind::Locked, format!("'{}' is locked by another process", name.escape_ascii())))
            }
            other => other.map(|()| Some(file)).map_err(Error::from),
        }
    }

    fn open_regular(&self, name: &[u8], access: OFlags) -> Result<(File, Stat)> {
        check_name(name)?;
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match self.openat(name, flags | OFlags::NOATIME) {
            Err(Errno::PERM) => self.openat(name, flags)?,
            other => other?,
        };
        let stat = stat_fd(&fd)?;
        if stat.kind != FileKind::File {
            return Err(Error::new(Kind::Refused, "not a regular file (it changed while it was looked at)"));
        }
        Ok((fd.into(), stat))
    }

    /// Opens the entry `name` itself, whatever it is, without any access to its content: a handle for metadata.
    pub fn open_handle(&self, name: &[u8]) -> Result<OwnedFd> {
        check_name(name)?;
        Ok(self.openat(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?)
    }

    /// Reads where the symlink `name` points to.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes())
    }

    /// Creates an empty regular file, mode 0600, under a temporary name; fails never because of what others planted.
    pub fn create_temp(&self) -> Result<(Vec<u8>, File)> {
        self.with_temp_name(|name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
        })
    }

    /// Creates a node (fifo, socket or device; `rdev` counts for devices), mode 0600, under a temporary name.
    pub fn create_temp_node(&self, kind: FileKind, rdev: (u32, u32)) -> Result<Vec<u8>> {
        let file_type = match kind {
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::Char => FileType::CharacterDevice,
            FileKind::Block => FileType::BlockDevice,
            FileKind::File | FileKind::Dir | FileKind::Symlink => return Err(Error::new(Kind::Bug, "BUG: not a node")),
        };
        let dev = rustix::fs::makedev(rdev.0, rdev.1);
        Ok(self.with_temp_name(|name| rustix::fs::mknodat(&self.0, name, file_type, Mode::RUSR | Mode::WUSR, dev))?.0)
    }

    /// Creates a symlink to `target` under a temporary name.
    pub fn create_temp_symlink(&self, target: &[u8]) -> Result<Vec<u8>> {
        Ok(self.with_temp_name(|name| rustix::fs::symlinkat(target, &self.0, name))?.0)
    }

    /// Gives the entry `name` of `from` a second, temporary name in this directory (a hard link).
    pub fn create_temp_link(&self, from: &Self, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        Ok(self.with_temp_name(|temp| rustix::fs::linkat(&from.0, name, &self.0, temp, AtFlags::empty()))?.0)
    }

    fn with_temp_name<T>(&self, create: impl Fn(&[u8]) -> rustix::io::Result<T>) -> Result<(Vec<u8>, T)> {
        loop {
            let name = temp_name();
            match create(&name) {
                Err(Errno::EXIST) => (),
                Ok(made) => return Ok((name, made)),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Says whether nobody but root and ourselves can change the names in this directory.
    ///
    /// Where somebody else can, a name may stand for another file at the next call, and a file may have another name elsewhere: nothing there is
    /// changed in place, and nothing by its name.
    pub fn is_ours_alone(&self) -> Result<bool> {
        Ok(is_ours_alone(&self.stat_self()?))
    }

    /// Says whether this directory lies on a filesystem that the kernel makes up: there a write is a command.
    pub fn is_kernels(&self) -> Result<bool> {
        Ok(KERNEL_FILESYSTEMS.contains(&(rustix::fs::fstatfs(&self.0)?.f_type as u32)))
    }

    /// Returns how much can still be written to the filesystem of this directory.
    pub fn room(&self) -> Result<Room> {
        let stat = rustix::fs::fstatvfs(&self.0)?;
        Ok(Room {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            // Some filesystems make inodes as they go, and say that they have none at all.
            inodes: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
            is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    /// Says whether something is mounted on the entry `name`, so that it cannot be replaced.
    pub fn is_mount_point(&self, name: &[u8]) -> Result<bool> {
        check_name(name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match rustix::fs::statx(&self.0, name, flags, StatxFlags::BASIC_STATS) {
            Ok(raw) => Ok(raw.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes a directory that only we can enter, under a temporary name, and returns both.
    pub fn make_private(&self) -> Result<(Vec<u8>, Self)> {
        let (name, ()) = self.with_temp_name(|name| rustix::fs::mkdirat(&self.0, name, Mode::RWXU))?;
        let dir = self.open_dir(&name)?;
        match dir.is_private() {
            Ok(true) => Ok((name, dir)),
            other => other.and(Err(Error::new(Kind::Refused, "somebody else put another directory in the place of ours"))),
        }
    }

    /// Says whether this is a directory as [`Self::make_private`] makes it.
    pub fn is_private(&self) -> Result<bool> {
        let stat = self.stat_self()?;
        Ok(stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o777 == 0o700)
    }

    /// Moves the entry `name` of `from` into this directory under a temporary name, which it returns.
    pub fn adopt(&self, from: &Self, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        Ok(self.with_temp_name(|temp| rustix::fs::renameat_with(&from.0, name, &self.0, temp, RenameFlags::NOREPLACE))?.0)
    }

    /// Moves the entry `name` of `from` into this directory, where nothing may have that name: else it fails with [`Kind::Conflict`], and both stay.
    pub fn take(&self, from: &Self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        match rustix::fs::renameat_with(&from.0, name, &self.0, name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => Err(Error::new(Kind::Conflict, "something has that name there")),
            // The filesystem has no such call.
            Err(Errno::INVAL) if self.stat(name)?.is_none() => Ok(rustix::fs::renameat(&from.0, name, &self.0, name)?),
            other => Ok(other?),
        }
    }

    /// Opens the directory `name` in this one, and makes it, mode 0700, if it is missing.
    pub fn open_or_make_dir(&self, name: &[u8]) -> Result<Self> {
        check_name(name)?;
        match rustix::fs::mkdirat(&self.0, name, Mode::RWXU) {
            Err(error) if error != Errno::EXIST => Err(error.into()),
            _ => self.open_dir(name),
        }
    }

    /// Creates the directory `name`, mode 0700; an existing one is an error.
    pub fn make_dir(&self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?)
    }

    /// Gives the entry `from` the name `to`, replacing what is there (a non-directory) in one step.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        check_name(from)?;
        check_name(to)?;
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Gives the entry `from` the name `to`, which must not be there: else it fails with [`Kind::Conflict`], and changes nothing.
    pub fn rename_new(&self, from: &[u8], to: &[u8]) -> Result<()> {
        check_name(from)?;
        check_name(to)?;
        match rustix::fs::renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => Err(Error::new(Kind::Conflict, "somebody made it just now; it stays as it is")),
            // The filesystem has no such call.
            Err(Errno::INVAL) if self.stat(to)?.is_none() => self.rename(from, to),
            other => Ok(other?),
        }
    }

    /// Removes a name that is not a directory; one that is not there is no error.
    pub fn remove_file(&self, name: &[u8]) -> Result<()> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes an empty directory; one that is not there is no error.
    pub fn remove_dir(&self, name: &[u8]) -> Result<()> {
        self.remove(name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, name: &[u8], flags: AtFlags) -> Result<()> {
        check_name(name)?;
        match rustix::fs::unlinkat(&self.0, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns once every change of this directory's names would survive a power cut.
    pub fn sync(&self) -> Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Returns once everything written to the filesystem of this directory would survive a power cut.
    pub fn sync_filesystem(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }

    fn openat(&self, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        // openat2 refuses what plain openat would still follow: the magic links of /proc.
        match rustix::fs::openat2(&self.0, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::NOSYS) => rustix::fs::openat(&self.0, name, flags, Mode::empty()),
            // With NO_SYMLINKS a handle of a symlink itself is refused too; O_NOFOLLOW alone gives just that.
            Err(Errno::LOOP) if flags.contains(OFlags::PATH) => rustix::fs::openat(&self.0, name, flags, Mode::empty()),
            other => other,
        }
    }
}

/// Returns device and inode of what a path leads to, by whatever symlinks: only to compare with.
pub fn identity(path: &Path) -> Option<((u32, u32), u64)> {
    let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    stat_fd(handle).ok().map(|stat| (stat.dev, stat.ino))
}

/// Symlinks that are followed on the way to one directory, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// How a path is followed within a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To a directory, as if the one that it begins in were `/`.
    Within,
    /// The same, to whatever there is.
    ToFile,
    /// As the kernel does, and not out of it.
    Strict,
}

fn leads_out(path: &[u8]) -> Error {
    let message = format!(
        "a symlink on the way to '{}' leads out of it; make it a relative one that stays within, or a directory",
        path.escape_ascii()
    );
    Error::new(Kind::Refused, message)
}

fn open_handle_of(path: &str) -> Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | DIR_FLAGS, Mode::empty())?)
}

/// Returns the components of a path, the last one first.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Returns where a symlink on the way to `path` leads, if nobody but root or us can have put it there.
///
/// Whoever owns or may write the directory can: not only with links of their own, they can move one there that root made elsewhere.
fn read_trusted_link(dir: &OwnedFd, name: &[u8], path: &Path) -> Result<Vec<u8>> {
    let link = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = stat_fd(&link)?;
    if stat.kind != FileKind::Symlink {
        return Err(Errno::NOTDIR.into());
    }
    let us = rustix::process::geteuid().as_raw();
    let is_trusted = |uid| uid == 0 || uid == us;
    let above = stat_fd(dir)?;
    let is_closed = above.mode & 0o022 == 0 || above.mode & STICKY != 0;
    if !(is_trusted(stat.uid) && is_trusted(above.uid) && is_closed) {
        let message = format!(
            "'{}' on the way to '{}' is a symlink that another user can have put there; name the directory itself",
            name.escape_ascii(),
            path.as_os_str().as_bytes().escape_ascii()
        );
        return Err(Error::refused(Reason::SymlinkUntrusted, message));
    }
    Ok(rustix::fs::readlinkat(&link, c"", Vec::new())?.into_bytes())
}

/// In a directory with this bit, only the owner of an entry can move it.
const STICKY: u16 = 0o1000;

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stat {
    fn from_statx(raw: &rustix::fs::Statx) -> Result<Self> {
        let time = |t: &rustix::fs::StatxTimestamp| Time { secs: t.tv_sec, nanos: t.tv_nsec };
        let kind = kind_of(FileType::from_raw_mode(raw.stx_mode.into()))
            .ok_or_else(|| Error::new(Kind::Unsupported, "unknown file type"))?;
        Ok(Self {
            kind,
            mode: raw.stx_mode & 0o7777,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            mtime: time(&raw.stx_mtime),
            ctime: time(&raw.stx_ctime),
            dev: (raw.stx_dev_major, raw.stx_dev_minor),
            ino: raw.stx_ino,
            nlink: raw.stx_nlink,
            rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
        })
    }
}

/// Returns what the kernel tells about an open file.
pub fn stat_fd(fd: impl AsFd) -> Result<Stat> {
    Stat::from_statx(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?)
}

/// Sets the modification time of an open file or directory; the access time stays.
pub fn set_mtime_fd(fd: impl AsFd, mtime: Time) -> Result<()> {
    Ok(rustix::fs::futimens(fd, &timestamps(mtime))?)
}

// A handle opened for metadata only (`Dir::open_handle`) refuses the calls that take a file descriptor. These reach
// the one inode that it holds, whatever it is now called; they return the plain error number for the caller to judge.

/// Sets owner and group of what `handle` holds, also of a symlink.
pub fn chown_handle(handle: impl AsFd, uid: Uid, gid: Gid) -> rustix::io::Result<()> {
    rustix::fs::chownat(handle, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the permission bits of what `handle` holds, which must not be a symlink.
pub fn chmod_handle(handle: impl AsFd, mode: Mode) -> rustix::io::Result<()> {
    rustix::fs::chmod(proc_path(handle.as_fd()), mode)
}

/// Sets the modification time of what `handle` holds, also of a symlink; the access time stays.
pub fn set_mtime_handle(handle: impl AsFd, mtime: Time) -> rustix::io::Result<()> {
    rustix::fs::utimensat(handle, c"", &timestamps(mtime), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

/// Lists the extended attributes of what `handle` holds into `list`, and returns the length.
pub fn list_xattrs_handle(handle: impl AsFd, list: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::fs::listxattr(proc_path(handle.as_fd()), list)
}

/// Reads an extended attribute of what `handle` holds into `value`, and returns the length.
pub fn get_xattr_handle(handle: impl AsFd, attribute: &CStr, value: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::fs::getxattr(proc_path(handle.as_fd()), attribute, value)
}

/// Creates or replaces an extended attribute of what `handle` holds.
pub fn set_xattr_handle(handle: impl AsFd, attribute: &CStr, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::setxattr(proc_path(handle.as_fd()), attribute, value, XattrFlags::empty())
}

/// Removes an extended attribute of what `handle` holds.
pub fn remove_xattr_handle(handle: impl AsFd, attribute: &CStr) -> rustix::io::Result<()> {
    rustix::fs::removexattr(proc_path(handle.as_fd()), attribute)
}

/// Opens the regular file that `file` is once more, only to read it.
pub fn reopen_to_read(file: &File) -> Result<File> {
    let opened = rustix::fs::open(proc_path(file.as_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(opened.into())
}

/// Says whether only root and ourselves can write into the directory that `stat` is of; a group counts as its user if it has that number.
fn is_ours_alone(stat: &Stat) -> bool {
    let is_known = |uid: u32| uid == 0 || uid == rustix::process::geteuid().as_raw();
    let others = if stat.gid == 0 || stat.gid == stat.uid { 0o002 } else { 0o022 };
    is_known(stat.uid) && stat.mode & others == 0
}

fn timestamps(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() },
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// By the magic numbers of `statfs(2)`: proc, sysfs, devpts, both cgroups, securityfs, debugfs, tracefs, bpf, configfs, efivarfs, pstore, selinuxfs, mqueue,
/// fusectl, binfmt_misc.
const KERNEL_FILESYSTEMS: [u32; 16] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x6367_7270,
    0x0027_e0eb,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
    0x6265_6570,
    0xde5e_81e4,
    0x6165_676c,
    0xf97c_ff8c,
    0x1980_0202,
    0x6573_5543,
    0x4249_4e4d,
];

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

fn kind_of(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::Char,
        FileType::BlockDevice => FileKind::Block,
        FileType::Unknown => return None,
    })
}

/// Returns a name that no other call and hardly any other process picks; `O_EXCL` does the rest.
fn temp_name() -> Vec<u8> {
    use std::hash::{BuildHasher, RandomState};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
    let mut name = TEMP_PREFIX.to_vec();
    name.extend_from_slice(format!("{number:016x}").as_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Refused, "{}", bad.escape_ascii());
        }
        for good in [&b"a"[..], b"...", b"-rf", b"\xff\n\x1b", &[b'x'; 255]] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn our_temporary_names_are_told_from_those_that_look_alike() {
        for ours in [temp_name(), b".gdo-tmp-0123456789abcdef".to_vec()] {
            assert!(is_temp_name(&ours), "{}", ours.escape_ascii());
        }
        for foreign in [&b".gdo-tmp-"[..], b".gdo-tmp-notes", b".gdo-tmp-0123456789abcdef0", b".gdo-tmp-0123456789ABCDEF", b"a"] {
            assert!(!is_temp_name(foreign), "{}", foreign.escape_ascii());
        }
    }

    #[test]
    fn no_symlink_is_followed_on_the_way_or_at_the_end() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("real")).unwrap();
        std::fs::write(temp.path().join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", temp.path().join("link")).unwrap();
        std::os::unix::fs::symlink("real/file", temp.path().join("filelink")).unwrap();
        let root = Dir::open(temp.path()).unwrap();
        assert!(root.open_path(b"real").unwrap().open_file(b"file").is_ok());
        assert!(root.open_path(b"link").is_err());
        assert!(root.open_file(b"filelink").is_err());
        assert_eq!(root.stat(b"filelink").unwrap().unwrap().kind, FileKind::Symlink);
        assert!(root.open_handle(b"filelink").is_ok());
    }

    #[test]
    fn a_directory_is_reached_by_any_path_whose_symlinks_nobody_else_can_have_put_there() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        std::fs::create_dir_all(at("real/deep")).unwrap();
        std::fs::create_dir(at("links")).unwrap();
        let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link(Path::new("../real"), "links/relative");
        link(&at("real"), "links/absolute");
        link(Path::new("relative/deep/../deep/./"), "links/further");
        link(Path::new("round"), "links/round");
        std::fs::write(at("links/file"), "x").unwrap();
        let inode = |dir: Result<Dir>| dir.unwrap().stat_self().unwrap().ino;
        let deep = inode(Dir::open(&at("real/deep")));
        let ways = ["links/relative/deep", "links/absolute/deep/", "links//./further", "links/../real/deep", "real/deep/../deep"];
        for way in ways {
            assert_eq!(inode(Dir::open(&at(way))), deep, "{way}");
        }
        for new in ["links/relative/new", "links/new/../new/deeper"] {
            Dir::open(&at(new)).unwrap_err();
            assert_eq!(inode(Dir::open_or_make(&at(new))), inode(Dir::open(&at(new))), "{new}");
        }
        Dir::open_or_make(&at("links/file/new")).unwrap_err();
        assert_eq!(inode(Dir::open(Path::new("/"))), inode(Dir::open(Path::new("/usr/.."))));
        inode(Dir::open(Path::new(".")));
        for wrong in ["links/round", "links/file", "links/none", "links/none/.."] {
            Dir::open(&at(wrong)).unwrap_err();
        }
        let set_mode = |mode| std::fs::set_permissions(at("links"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        for (mode, is_good) in [(0o755, true), (0o775, false), (0o757, false), (0o1777, true), (0o777, false)] {
            set_mode(mode);
            let opened = Dir::open(&at("links/absolute"));
            assert_eq!(opened.is_ok(), is_good, "{mode:o}");
            assert!(opened.is_ok() || opened.unwrap_err().reason() == Some(Reason::SymlinkUntrusted), "{mode:o}");
            Dir::open(&at("links")).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            set_mode(0o1777);
            std::os::unix::fs::lchown(at("links/absolute"), Some(65534), Some(65534)).unwrap();
            assert_eq!(Dir::open(&at("links/absolute")).unwrap_err().reason(), Some(Reason::SymlinkUntrusted));
            set_mode(0o755);
            std::os::unix::fs::chown(at("links"), Some(65534), None).unwrap();
            assert_eq!(Dir::open(&at("links/relative")).unwrap_err().reason(), Some(Reason::SymlinkUntrusted));
            assert_eq!(inode(Dir::open(&at("links/../real/deep"))), deep, "a directory of another user is no symlink");
        }
    }

    #[test]
    fn a_path_is_followed_as_if_its_beginning_were_the_root() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        for dir in ["root/etc/app", "root/run", "root/srv/deep", "outside"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        for (file, text) in [("root/run/id", "inner"), ("outside/id", "outer"), ("root/etc/plain", "plain")] {
            std::fs::write(at(file), text).unwrap();
        }
        let outside = at("outside");
        for (link, target) in [
            ("etc/id", "/run/id"),
            ("etc/up", "../../../../run/id"),
            ("etc/out", outside.to_str().unwrap()),
            ("etc/round", "round"),
            ("etc/srv", "/etc/../srv/./"),
            ("etc/further", "srv/deep/.."),
            ("etc/gone", "/nowhere"),
            ("within", "srv"),
            ("srv/back", "../etc/app"),
        ] {
            std::os::unix::fs::symlink(target, at("root").join(link)).unwrap();
        }
        let root = Dir::open(&at("root")).unwrap();
        let inode = |dir: Option<Dir>| dir.map(|dir| dir.stat_self().unwrap().ino);
        let srv = inode(Some(root.open_path(b"srv").unwrap()));
        for (path, want) in [
            ("srv", srv),
            ("/etc/srv", srv),
            ("etc/further", srv),
            ("within/", srv),
            ("..//srv/../../srv", srv),
            ("etc/plain", None),
            ("etc/plain/x", None),
            ("etc/out", None),
            ("etc/gone/x", None),
            ("none/x", None),
        ] {
            assert_eq!(inode(root.follow(path.as_bytes()).unwrap()), want, "{path}");
        }
        let text = |path: &str| {
            let file = root.follow_to_file(path.as_bytes()).unwrap();
            file.map(|file| std::io::read_to_string(file).unwrap())
        };
        for (path, want) in
            [("etc/id", Some("inner")), ("etc/up", Some("inner")), ("etc/plain", Some("plain")), ("etc/gone", None)]
        {
            assert_eq!(text(path).as_deref(), want, "{path}");
        }
        for (path, is_within) in [
            ("etc/app", true),
            ("none/whatever", true),
            ("within/deep", true),
            ("within/back/x", true),
            ("etc/id", false),
            ("etc/up", false),
            ("etc/out/x", false),
            ("etc/gone/x", false),
        ] {
            assert_eq!(root.must_contain(path.as_bytes()).is_ok(), is_within, "{path}");
        }
        let round = root.follow(b"etc/round").unwrap_err();
        assert!(round.kind() == Kind::Refused && round.to_string().contains("'/etc/round'"), "{round}");
        std::fs::set_permissions(at("root/etc"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        for refused in
            [root.follow(b"etc/srv").map(drop), root.follow_to_file(b"etc/id").map(drop), root.must_contain(b"etc/srv")]
        {
            assert_eq!(refused.unwrap_err().reason(), Some(Reason::SymlinkUntrusted));
        }
        root.must_contain(b"etc/app").unwrap();
    }

    #[test]
    fn a_fifo_planted_at_a_files_name_does_not_block() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open(temp.path()).unwrap();
        let fifo = root.create_temp_node(FileKind::Fifo, (0, 0)).unwrap();
        root.rename(&fifo, b"fifo").unwrap();
        assert!(root.open_file(b"fifo").is_err());
    }
}
