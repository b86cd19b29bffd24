//! A system that is thrown away: it looks like the one that lies below it, and what changes there goes to memory.
//!
//! It is made of overlays in a mount namespace of the thread that makes it, so that nobody else sees it, and nothing of it is left when the thread ends,
//! however it ends. Each filesystem gets an overlay of its own, because an overlay shows no mounts that lie within what it covers.

use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, StatVfsMountFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::Dir;

/// Whoever runs within it cannot use these: what they change is no file, and would stay. Who may mount could take what covers a filesystem away.
pub(super) const FORBIDDEN: &str =
    "-audit_control,-net_admin,-sys_admin,-sys_boot,-sys_module,-sys_pacct,-sys_rawio,-sys_time,-syslog,-wake_alarm";
/// Directories at the top that are not covered but made anew: what lies there belongs to the kernel and to what runs.
const MADE_ANEW: [&str; 4] = ["dev", "proc", "run", "sys"];
/// Devices that hold nothing.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Such a system.
#[derive(Debug)]
pub(super) struct Overlay {
    /// Its root.
    pub root: PathBuf,
    /// Whether a process that enters it finds an empty `proc`, which its own is to be mounted on.
    pub wants_proc: bool,
    /// The filesystems that it is made of, the root first.
    pub layers: Vec<Layer>,
    /// Where it can only be read in there, since nothing can cover what is mounted; each begins with `/`, the top of the root.
    pub read_only: Vec<Vec<u8>>,
}

/// One filesystem, and what covers it.
#[derive(Debug)]
pub(super) struct Layer {
    /// Where it is, from the top of the root; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is like without the changes.
    pub below: PathBuf,
    /// The changes: what differs has an entry there.
    pub upper: PathBuf,
    /// What it is like with them.
    pub merged: PathBuf,
}

impl Overlay {
    /// Covers the system in `base` for this thread, and for what it starts from now on; `top` is an empty directory to build it on.
    ///
    /// Its first child is to be [`super::run::Init`].
    /// Fails with [`Kind::Unsupported`] where the kernel cannot, or does not let us. The thread is to end soon: its view of the filesystems is its own.
    pub fn make(base: &Path, top: &Path) -> Result<Self> {
        let refused = |errno: Errno| {
            let hint = if errno == Errno::PERM { "; only root can" } else { "" };
            Error::new(
                Kind::Unsupported,
                format!("no preview here: the kernel makes no overlay of '{}': {errno}{hint}", base.display()),
            )
        };
        leave_the_others().map_err(refused)?;
        // Before the stage is mounted: it is no part of what it shows.
        let points = points_below(base)?;
        mount_new("tmpfs", top, MountFlags::NODEV, "mode=0700").map_err(refused)?;
        let (root, below) = (top.join("root"), Dir::open(base)?);
        let mut made = Self { root, wants_proc: false, layers: Vec::new(), read_only: Vec::new() };
        made.cover(&Dir::open(top)?, base, b"").context(|| format!("no preview here: '{}' cannot be covered", base.display()))?;
        for point in points {
            let first = point.split(|&b| b == b'/').next().unwrap_or_default();
            if !MADE_ANEW.iter().any(|name| name.as_bytes() == first) {
                let below = base.join(as_path(&point));
                let what = || format!("no preview here: cannot show what is mounted at '{}'", below.display());
                made.cover_or_show(&Dir::open(top)?, &below, &point).context(what)?;
            }
        }
        for name in MADE_ANEW {
            if durable::is_dir(&base.join(name)) {
                let is_mounted = below.is_mount_point(name.as_bytes())?;
                made.make_anew(name, is_mounted, base).context(|| format!("no preview here: cannot make '/{name}'"))?;
            }
        }
        Ok(made)
    }

    /// Covers the filesystem that is mounted at `below`, at `path` of our root.
    fn cover(&mut self, top: &Dir, below: &Path, path: &[u8]) -> Result<()> {
        let n = self.layers.len();
        let merged = self.root.join(as_path(path));
        if n == 0 {
            durable::create_private_dir(&merged)?;
        }
        let parts = self.root.with_file_name(n.to_string());
        let upper = parts.join("upper");
        durable::create_private_dir(&upper)?;
        durable::create_private_dir(&parts.join("work"))?;
        let lower = Dir::open(below)?;
        let (stat, covers) = (lower.stat_self()?, Dir::open(&upper)?);
        rustix::fs::fchown(&covers, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
        rustix::fs::fchmod(&covers, Mode::from_raw_mode(stat.mode.into()))?;
        // Handles, because a path may have the characters that part the options.
        let at = |dir: &Dir| format!("/proc/thread-self/fd/{}", rustix::fd::AsFd::as_fd(dir).as_raw_fd());
        let (lower_at, ours) = (at(&lower), format!("{}/{n}", at(top)));
        let options =
            format!("lowerdir={lower_at},upperdir={ours}/upper,workdir={ours}/work,redirect_dir=off,metacopy=off,index=off");
        mount_new("overlay", &merged, MountFlags::NODEV | flags_of(&lower)?, &options)?;
        self.layers.push(Layer { path: path.to_owned(), below: below.to_owned(), upper, merged });
        Ok(())
    }

    /// Covers what is mounted at `below`; what no overlay can cover is shown as it is, to be read only.
    fn cover_or_show(&mut self, top: &Dir, below: &Path, path: &[u8]) -> Result<()> {
        let is_dir = durable::is_dir(below);
        let target = self.root.join(as_path(path));
        // The kernel's filesystems hold no files, what is hidden by another mount nobody sees, and below what is not shown there is no place for more.
        if is_dir && Dir::open(below)?.is_kernels()? || !durable::is_there(below) || !durable::is_there(&target) {
            return Ok(());
        }
        if is_dir && self.cover(top, below, path).is_ok() {
            return Ok(());
        }
        // Not a socket or a device: who may only read it can talk through it all the same.
        if is_dir || durable::is_file(below) {
            show(below, &target)?;
        }
        self.read_only.push([b"/", path].concat());
        Ok(())
    }

    /// Makes one of [`MADE_ANEW`].
    fn make_anew(&mut self, name: &str, is_mounted: bool, base: &Path) -> Result<()> {
        let dir = self.root.join(name);
        match name {
            "dev" => make_devices(&dir, &base.join(name)),
            "run" if is_mounted => {
                mount_new("tmpfs", &dir, MountFlags::NODEV | MountFlags::NOSUID, "mode=0755,size=64m")?;
                durable::create_dir_all(&dir.join("lock"), 0o1777)?;
                let inputs = base.join("run/git-devops");
                if durable::is_dir(&inputs) {
                    durable::create_dir_all(&dir.join("git-devops"), 0o711)?;
                    show(&inputs, &dir.join("git-devops"))?;
                }
                // Names are looked up by a file that often lies there.
                let resolver = Path::new("/etc/resolv.conf");
                let real = if base == Path::new("/") { durable::real_path(resolver).ok() } else { None };
                let Some(real) = real.filter(|real| real.starts_with("/run")) else { return Ok(()) };
                let copy = self.root.join(real.strip_prefix("/").unwrap_or(&real));
                durable::create_dir_all(copy.parent().unwrap_or(&dir), 0o755)?;
                durable::publish(&copy, &durable::read(resolver)?, 0o644)
            }
            "sys" if is_mounted => show(&base.join(name), &dir),
            "proc" => {
                self.wants_proc = is_mounted;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Gives this thread a mount namespace of its own, where what is mounted reaches nobody else, and lets its next child be the first of other
/// processes than those of this system.
#[allow(unsafe_code)]
fn leave_the_others() -> rustix::io::Result<()> {
    // SAFETY: only CLONE_FILES is dangerous, since it takes file descriptors from what this thread shares them with.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC)? };
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
}

fn mount_new(kind: &str, target: &Path, flags: MountFlags, options: &str) -> rustix::io::Result<()> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("git-devops", target, kind, flags, &*options)
}

/// Shows what lies at `below` at `target` too, where it can only be read.
fn show(below: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(below, target)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    Ok(rustix::mount::mount_remount(target, flags, "")?)
}

/// Returns what is forbidden on the filesystem that a directory lies on.
fn flags_of(dir: &Dir) -> Result<MountFlags> {
    let flags = rustix::fs::fstatvfs(dir)?.f_flag;
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
    ];
    Ok(pairs.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, flag)| *flag).collect())
}

/// Makes a directory of devices that hold nothing.
fn make_devices(dir: &Path, below: &Path) -> Result<()> {
    mount_new("tmpfs", dir, MountFlags::NOSUID | MountFlags::NODEV, "mode=0755,size=64m")?;
    for name in DEVICES {
        let device = below.join(name);
        if durable::is_there(&device) {
            durable::publish(&dir.join(name), b"", 0o600)?;
            rustix::mount::mount_bind(&device, dir.join(name))?;
        }
    }
    let made = Dir::open(dir)?;
    for (name, target) in LINKS {
        let temp = made.create_temp_symlink(target.as_bytes())?;
        made.rename(&temp, name.as_bytes())?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777)] {
        durable::create_dir_all(&dir.join(name), mode)?;
    }
    Ok(mount_new("devpts", &dir.join("pts"), MountFlags::NOSUID | MountFlags::NOEXEC, "newinstance,ptmxmode=0666,mode=0620")?)
}

/// Returns where something is mounted below `base`, from there on, the outer ones first.
fn points_below(base: &Path) -> Result<Vec<Vec<u8>>> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = durable::read(path).context(|| format!("cannot read '{}'", path.display()))?;
    let base = durable::real_path(base)?;
    let mut points: Vec<Vec<u8>> = text
        .split(|&b| b == b'\n')
        .filter_map(|line| point_of(line)?.strip_prefix(&base).ok().map(|below| below.as_os_str().as_bytes().to_vec()))
        .filter(|point| !point.is_empty())
        .collect();
    points.sort_unstable();
    points.dedup();
    Ok(points)
}

/// Returns the mount point in a line of proc_pid_mountinfo(5), where some characters stand as three octal digits; none for what would only
/// be mounted when somebody looks.
fn point_of(line: &[u8]) -> Option<PathBuf> {
    let (fields, kind) = line.split_at(line.windows(3).position(|three| three == b" - ")?);
    if kind.starts_with(b" - autofs ") {
        return None;
    }
    let mut word = fields.split(|&b| b == b' ').nth(4)?;
    let mut path = Vec::new();
    while let Some((&first, rest)) = word.split_first() {
        let digits = rest.get(..3).filter(|digits| first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(byte.unwrap_or(first));
        word = if byte.is_some() { &rest[3..] } else { rest };
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_its_spaces() {
        let line = br"41 27 0:38 / /srv/a\040b\134c rw,relatime - tmpfs tmpfs rw";
        assert_eq!(point_of(line).unwrap(), Path::new(r"/srv/a b\c"));
        assert_eq!(point_of(b"41 27 0:38 / /net rw,relatime - autofs auto.net rw"), None);
        for odd in [&b""[..], b"41 27", br"41 27 0:38 / /srv/\04 - a b", br"41 27 0:38 / /srv/\999 - a b", b" - "] {
            let _ = point_of(odd);
        }
    }
}
