//! The strict oracle: every difference that Linux can tell between two trees.
//!
//! It shares no code with the library. Everything is read relative to held directories, so a path may have any length and
//! any bytes. Of a sparse file only the data is read. Not compared, because nobody can restore them: inode numbers, ctime,
//! atime, birth time, the size of directories, and link counts (the *groups* of hard links inside the tree are compared).

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use crate::command::{Context, Failure, Result};
use crate::ensure;

/// What to leave out.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Entries of the two top directories that are not looked at.
    pub ignore: Vec<OsString>,
}

/// One thing in which an entry differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// The second tree has no such entry.
    OnlyInFirst,
    /// The first tree has no such entry.
    OnlyInSecond,
    /// File, directory, symlink, device, ...
    Type,
    /// Permission bits with setuid, setgid and sticky.
    Mode,
    /// Numeric owner.
    Uid,
    /// Numeric group.
    Gid,
    /// Size in bytes of a file.
    Size,
    /// The bytes of a file.
    Content,
    /// The target of a symlink.
    Target,
    /// The number of a device.
    Device,
    /// A name or value among the extended attributes, which hold ACLs, capabilities and labels.
    Xattr,
    /// The other names of the same inode in the tree.
    Links,
    /// Where a file has data and where holes.
    Holes,
    /// Modification time, to the nanosecond.
    Mtime,
    /// Inode flags that a user can set (`lsattr`).
    Flags,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The entry, relative to the tops; `.` is the top itself.
    pub path: Vec<u8>,
    /// In what it differs.
    pub what: What,
    /// First tree's value, then the second's.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.escape_ascii().to_string();
        match path.char_indices().nth(300) {
            None => write!(f, "'{path}': ")?,
            Some((end, _)) => write!(f, "'{}...' ({} bytes): ", &path[..end], self.path.len())?,
        }
        write!(f, "{:?}: {}", self.what, self.detail)
    }
}

/// Runs `cargo xtask compare`.
pub fn main(args: Vec<OsString>) -> Result<ExitCode> {
    let mut options = Options::default();
    let mut trees = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--ignore") => options.ignore.push(args.next().ok_or("--ignore needs a name")?),
            _ => trees.push(arg),
        }
    }
    ensure!(trees.len() == 2, "usage: cargo xtask compare [--ignore NAME]... A B");
    let differences = compare(Path::new(&trees[0]), Path::new(&trees[1]), &options)?;
    for difference in &differences {
        println!("{difference}");
    }
    Ok(ExitCode::from(u8::from(!differences.is_empty())))
}

/// Compares two trees and returns every difference, in the order of the paths.
pub fn compare(first: &Path, second: &Path, options: &Options) -> Result<Vec<Difference>> {
    hold_many_directories();
    let open = |path: &Path| {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        fs::open(path, flags, Mode::empty()).context(|| format!("cannot open '{}'", path.display()))
    };
    let (first, second) = (open(first)?, open(second)?);
    let (kind_a, kind_b) = (fs::fstatfs(&first)?, fs::fstatfs(&second)?);
    let mut walk = Walk {
        options,
        differences: Vec::new(),
        links: [HashMap::new(), HashMap::new()],
        // Block sizes decide where a hole can begin.
        same_filesystem: kind_a.f_type == kind_b.f_type && kind_a.f_bsize == kind_b.f_bsize,
    };
    walk.entry(first.as_fd(), second.as_fd(), c".", b".")?;
    Ok(walk.differences)
}

/// Fails with the differences, if there are any.
pub fn must_be_equal(first: &Path, second: &Path, options: &Options) -> Result {
    must_be_none(&compare(first, second, options)?)
}

/// Fails with the differences in the list, if there are any.
pub fn must_be_none(differences: &[Difference]) -> Result {
    let shown: Vec<String> = differences.iter().take(20).map(ToString::to_string).collect();
    ensure!(differences.is_empty(), "{} differences:\n  {}", differences.len(), shown.join("\n  "));
    Ok(())
}

struct Walk<'o> {
    options: &'o Options,
    differences: Vec<Difference>,
    /// For each tree: the inodes with several names, and the first of the names.
    links: [HashMap<(u64, u64), Vec<u8>>; 2],
    same_filesystem: bool,
}

impl Walk<'_> {
    fn report(&mut self, path: &[u8], what: What, detail: String) {
        self.differences.push(Difference { path: path.to_vec(), what, detail });
    }

    fn report_unless_equal<T: PartialEq + fmt::Display>(&mut self, path: &[u8], what: What, a: T, b: T) {
        if a != b {
            self.report(path, what, format!("{a} in the first, {b} in the second"));
        }
    }

    /// Compares the entry `name` of two directories, and all that is below.
    fn entry(&mut self, a: BorrowedFd, b: BorrowedFd, name: &CStr, path: &[u8]) -> Result {
        let what = || format!("cannot compare '{}'", path.escape_ascii());
        let stat_a = fs::statat(a, name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        let stat_b = fs::statat(b, name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        let kind = FileType::from_raw_mode(stat_a.st_mode);
        let other = FileType::from_raw_mode(stat_b.st_mode);
        if kind != other {
            self.report(path, What::Type, format!("{kind:?} in the first, {other:?} in the second"));
            return Ok(());
        }
        self.stats(path, kind, &stat_a, &stat_b);
        self.xattrs(path, &xattrs(a, name).context(what)?, &xattrs(b, name).context(what)?);
        if kind != FileType::Directory {
            self.links(path, &stat_a, &stat_b);
        }
        match kind {
            FileType::Symlink => self.target(path, a, b, name).context(what),
            FileType::RegularFile => {
                let (file_a, file_b) = (open(a, name).context(what)?, open(b, name).context(what)?);
                self.flags(path, &file_a, &file_b).context(what)?;
                if stat_a.st_size == stat_b.st_size {
                    self.content(path, &file_a, &file_b, stat_a.st_size as u64).context(what)?;
                }
                Ok(())
            }
            FileType::Directory => {
                let (dir_a, dir_b) = (open(a, name).context(what)?, open(b, name).context(what)?);
                self.flags(path, &dir_a, &dir_b).context(what)?;
                self.directory(path, dir_a.as_fd(), dir_b.as_fd())
            }
            _ => Ok(()),
        }
    }

    fn stats(&mut self, path: &[u8], kind: FileType, a: &Stat, b: &Stat) {
        let mode = |stat: &Stat| format!("{:04o}", stat.st_mode & 0o7777);
        let mtime = |stat: &Stat| format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        let device = |stat: &Stat| format!("{}:{}", fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        self.report_unless_equal(path, What::Mode, mode(a), mode(b));
        self.report_unless_equal(path, What::Uid, a.st_uid, b.st_uid);
        self.report_unless_equal(path, What::Gid, a.st_gid, b.st_gid);
        self.report_unless_equal(path, What::Mtime, mtime(a), mtime(b));
        match kind {
            FileType::RegularFile => self.report_unless_equal(path, What::Size, a.st_size, b.st_size),
            FileType::CharacterDevice | FileType::BlockDevice => {
                self.report_unless_equal(path, What::Device, device(a), device(b));
            }
            _ => {}
        }
    }

    fn xattrs(&mut self, path: &[u8], a: &Xattrs, b: &Xattrs) {
        let shown = |value: Option<&Vec<u8>>| match value {
            None => "nothing".to_owned(),
            Some(value) => format!("'{}'", value[..value.len().min(100)].escape_ascii()),
        };
        let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for name in names {
            if a.get(name) != b.get(name) {
                let detail = format!(
                    "{} is {} in the first, {} in the second",
                    name.escape_ascii(),
                    shown(a.get(name)),
                    shown(b.get(name))
                );
                self.report(path, What::Xattr, detail);
            }
        }
    }

    /// Both walks meet the names in the same order, so equal groups have equal first names.
    fn links(&mut self, path: &[u8], a: &Stat, b: &Stat) {
        let leaders: Vec<Vec<u8>> = [a, b]
            .into_iter()
            .zip(&mut self.links)
            .map(|(stat, known)| match stat.st_nlink {
                1 => path.to_vec(),
                _ => known.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec()).clone(),
            })
            .collect();
        if leaders[0] != leaders[1] {
            let shown = |leader: &Vec<u8>| match leader == path {
                true => "a file of its own".to_owned(),
                false => format!("the same as '{}'", leader.escape_ascii()),
            };
            let detail = format!("{} in the first, {} in the second", shown(&leaders[0]), shown(&leaders[1]));
            self.report(path, What::Links, detail);
        }
    }

    fn target(&mut self, path: &[u8], a: BorrowedFd, b: BorrowedFd, name: &CStr) -> Result {
        let shown = |target: &CString| target.to_bytes().escape_ascii().to_string();
        let (a, b) = (fs::readlinkat(a, name, Vec::new())?, fs::readlinkat(b, name, Vec::new())?);
        self.report_unless_equal(path, What::Target, shown(&a), shown(&b));
        Ok(())
    }

    fn flags(&mut self, path: &[u8], a: &OwnedFd, b: &OwnedFd) -> Result {
        let (a, b) = (flags(a)?, flags(b)?);
        self.report_unless_equal(path, What::Flags, format!("{a:#x}"), format!("{b:#x}"));
        Ok(())
    }

    fn content(&mut self, path: &[u8], a: &OwnedFd, b: &OwnedFd, size: u64) -> Result {
        let (data_a, data_b) = (data(a, size)?, data(b, size)?);
        if self.same_filesystem && data_a != data_b {
            self.report(path, What::Holes, format!("data at {} in the first, {} in the second", shown(&data_a), shown(&data_b)));
        }
        if let Some(at) = first_difference(a, b, &union(data_a, data_b))? {
            self.report(path, What::Content, format!("differs at byte {at}"));
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], a: BorrowedFd, b: BorrowedFd) -> Result {
        let what = || format!("cannot list '{}'", path.escape_ascii());
        let is_top = path == b".";
        let (names_a, names_b) = (names(a).context(what)?, names(b).context(what)?);
        let mut all: Vec<&CString> = names_a.iter().chain(&names_b).collect();
        all.sort_unstable();
        all.dedup();
        for name in all {
            let bytes = name.to_bytes();
            if is_top && self.options.ignore.iter().any(|ignored| ignored.as_bytes() == bytes) {
                continue;
            }
            let below = if is_top { bytes.to_vec() } else { [path, b"/", bytes].concat() };
            match (names_a.binary_search(name), names_b.binary_search(name)) {
                (Ok(_), Ok(_)) => self.entry(a, b, name, &below)?,
                (Ok(_), Err(_)) => self.report(&below, What::OnlyInFirst, "missing in the second".into()),
                _ => self.report(&below, What::OnlyInSecond, "missing in the first".into()),
            }
        }
        Ok(())
    }
}

/// Two directories are held for each level of the trees.
fn hold_many_directories() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused means only that very deep trees will fail, with an error that says so.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

fn open(dir: BorrowedFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(fs::openat(dir, name, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// Returns the sorted names in a directory.
fn names(dir: BorrowedFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Returns all attributes of an entry of any type, without opening it.
fn xattrs(dir: BorrowedFd, name: &CStr) -> Result<Xattrs> {
    // The l-calls have no directory handle; the kernel's link to the held directory stands in for it.
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let path = OsStr::from_bytes(&path);
    let list = match read_grown(|buffer| fs::llistxattr(path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        other => other?,
    };
    let mut found = Xattrs::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let value = read_grown(|buffer| fs::lgetxattr(path, OsStr::from_bytes(name), buffer))?;
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// Calls with the largest buffer that the kernel can fill.
fn read_grown(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The flags that `chattr` can change: FS_{SECRM,UNRM,COMPR,SYNC,IMMUTABLE,APPEND,NODUMP,NOATIME}_FL, NOCOMP, JOURNAL_DATA,
/// NOTAIL, DIRSYNC, TOPDIR, NOCOW, DAX, PROJINHERIT and CASEFOLD.
const SETTABLE_FLAGS: u32 = 0x6283_c4ff;

fn flags(file: &OwnedFd) -> Result<u32> {
    match fs::ioctl_getflags(file) {
        Ok(flags) => Ok(flags.bits() & SETTABLE_FLAGS),
        Err(Errno::NOTTY | Errno::NOTSUP | Errno::INVAL) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Returns where a file has data.
fn data(file: &OwnedFd, size: u64) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = fs::seek(file, SeekFrom::Hole(start))?;
        found.push(start..at);
    }
    Ok(found)
}

fn shown(ranges: &[Range<u64>]) -> String {
    let list: Vec<String> = ranges.iter().take(6).map(|range| format!("{}..{}", range.start, range.end)).collect();
    format!("[{}{}]", list.join(" "), if ranges.len() > 6 { " ..." } else { "" })
}

fn union(a: Vec<Range<u64>>, b: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = [a, b].concat();
    all.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Returns the first byte in the ranges at which two files differ.
fn first_difference(a: &OwnedFd, b: &OwnedFd, ranges: &[Range<u64>]) -> Result<Option<u64>> {
    let (mut buffer_a, mut buffer_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(1 << 20) as usize;
            read_at(a, &mut buffer_a[..len], at)?;
            read_at(b, &mut buffer_b[..len], at)?;
            if buffer_a[..len] != buffer_b[..len] {
                let offset = buffer_a.iter().zip(&buffer_b).position(|(a, b)| a != b);
                return Ok(offset.map(|offset| at + offset as u64));
            }
            at += len as u64;
        }
    }
    Ok(None)
}

fn read_at(file: &OwnedFd, mut buffer: &mut [u8], mut at: u64) -> Result {
    while !buffer.is_empty() {
        let len = rustix::io::pread(file, &mut *buffer, at)?;
        if len == 0 {
            return Err(Failure("the file became shorter while it was compared".into()));
        }
        buffer = &mut buffer[len..];
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::What::*;
    use super::*;
    use crate::command::{succeed, target_dir};
    use crate::packages::is_root;

    const TREE: &str = "
        mkdir -p A/sub/deep; cd A
        echo content >plain; echo x >hard1; cp -p hard1 sub/deep/file; ln hard1 sub/hard2; ln -s plain link; mkfifo fifo
        truncate -s 1M sparse; printf data | dd of=sparse bs=4096 seek=100 conv=notrunc status=none
        setfattr -n user.colour -v green plain; setfattr -n user.colour -v red sub
        printf odd >\"$(printf 'new\\nline \\377')\"
        touch -d '1960-01-01 00:00:00.123456789' plain; touch -h -d '2100-01-01 00:00:00.000000001' link
        [ $(id -u) != 0 ] || { mknod dev c 1 3; ln dev dev2; setfattr -h -n trusted.t -v 1 link; setfattr -n trusted.t -v 1 dev; }";

    /// What is planted into the copy, and what must be found; the times are put right afterwards unless they are the point.
    const PLANTS: &[(&str, &[(&str, What)])] = &[
        ("true", &[]),
        ("rm plain", &[("plain", OnlyInFirst)]),
        ("rm -r sub/deep", &[("sub/deep", OnlyInFirst)]),
        ("echo >sub/new", &[("sub/new", OnlyInSecond)]),
        ("rm plain; mkdir plain", &[("plain", Type)]),
        ("rm fifo; echo >fifo", &[("fifo", Type)]),
        ("chmod 600 plain", &[("plain", Mode)]),
        ("chmod u+s sub", &[("sub", Mode)]),
        ("chmod 700 .", &[(".", Mode)]),
        ("echo CONTENT >plain", &[("plain", Content)]),
        ("echo more >>plain", &[("plain", Size)]),
        ("ln -sfn PLAIN link; setfattr -h -n trusted.t -v 1 link || true", &[("link", Target)]),
        ("setfattr -n user.colour -v blue plain", &[("plain", Xattr)]),
        ("setfattr -x user.colour sub", &[("sub", Xattr)]),
        ("setfattr -n user.more -v x sub/deep/file", &[("sub/deep/file", Xattr)]),
        ("cp -a hard1 h; mv h hard1", &[("sub/hard2", Links)]),
        ("ln -f hard1 sub/deep/file", &[("sub/deep/file", Links)]),
        ("dd if=/dev/zero of=sparse bs=4096 count=1 conv=notrunc status=none", &[("sparse", Holes)]),
        ("printf DATA | dd of=sparse bs=4096 seek=100 conv=notrunc status=none", &[("sparse", Content)]),
        ("chattr +d plain", &[("plain", Flags)]),
        ("chattr +d sub", &[("sub", Flags)]),
        ("touch -d '1960-01-01 00:00:00.123456788' plain #times", &[("plain", Mtime)]),
        ("touch -h -d '2100-01-01 00:00:00.000000002' link #times", &[("link", Mtime)]),
        ("touch -d '2000-01-01' sub #times", &[("sub", Mtime)]),
        ("touch -d '2000-01-01' fifo #times", &[("fifo", Mtime)]),
    ];

    const PLANTS_AS_ROOT: &[(&str, &[(&str, What)])] = &[
        ("chown 1 plain", &[("plain", Uid)]),
        ("chown -h 1 link", &[("link", Uid)]),
        ("chgrp 1 fifo", &[("fifo", Gid)]),
        ("rm dev dev2; mknod dev c 1 5; ln dev dev2; setfattr -n trusted.t -v 1 dev", &[("dev", Device), ("dev2", Device)]),
        ("rm dev2; mknod dev2 c 1 3; setfattr -n trusted.t -v 1 dev2", &[("dev2", Links)]),
        ("setfattr -h -n trusted.t -v 2 link", &[("link", Xattr)]),
        ("setfattr -n trusted.t -v 2 dev", &[("dev", Xattr), ("dev2", Xattr)]),
    ];

    fn sh(dir: &Path, script: &str) {
        succeed(Command::new("sh").args(["-ec", script]).current_dir(dir)).unwrap();
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = target_dir().join("xtask-tests").join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn found(dir: &Path) -> Vec<(String, What)> {
        let differences = compare(&dir.join("A"), &dir.join("B"), &Options::default()).unwrap();
        differences.into_iter().map(|found| (found.path.escape_ascii().to_string(), found.what)).collect()
    }

    #[test]
    fn each_kind_of_difference_is_found_and_nothing_else() {
        let dir = scratch("plants");
        sh(&dir, TREE);
        let plants = PLANTS.iter().chain(if is_root() { PLANTS_AS_ROOT } else { &[] });
        for (plant, expected) in plants {
            sh(&dir, "rm -rf B; cp -a A B");
            sh(&dir.join("B"), plant);
            if !plant.ends_with("#times") {
                // Depth first, so that a directory's time is set after its entries'.
                sh(&dir.join("A"), "find . -depth -exec touch -c -h -r '{}' '../B/{}' ';' 2>/dev/null || true");
            }
            let expected: Vec<_> = expected.iter().map(|(path, what)| (path.to_string(), *what)).collect();
            assert_eq!(found(&dir), expected, "after '{plant}'");
        }
    }

    #[test]
    fn a_copy_by_tar_without_options_loses_what_it_is_known_to_lose() {
        let dir = scratch("tar");
        sh(&dir, TREE);
        sh(&dir, "mkdir B; tar -C A -cf - . | tar -C B -xpf -");
        let lost: std::collections::BTreeSet<What> = found(&dir).into_iter().map(|(_, what)| what).collect();
        assert!(lost.contains(&Xattr) && lost.contains(&Mtime) && lost.contains(&Holes), "{lost:?}");
        assert!(!lost.contains(&Content) && !lost.contains(&OnlyInFirst), "{lost:?}");
    }

    #[test]
    fn ignored_names_are_ignored_at_the_top_only() {
        let dir = scratch("ignored");
        sh(&dir, "mkdir -p A/.git A/sub/.git B/sub; touch -r A A/sub B B/sub");
        let options = Options { ignore: vec![".git".into()] };
        let differences = compare(&dir.join("A"), &dir.join("B"), &options).unwrap();
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert_eq!((differences[0].path.as_slice(), differences[0].what), (b"sub/.git".as_slice(), OnlyInFirst));
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_compared_to_its_end() {
        let dir = scratch("long");
        let nest = "for top in A B; do (mkdir $top; cd $top; n=$(printf '%0250d' 0)
            for i in $(seq 20); do mkdir $n; cd -P $n; done; echo $top >end); done";
        // The shell follows by relative names; its own idea of the directory may be cut short.
        succeed(Command::new("bash").args(["-c", nest]).current_dir(&dir)).unwrap();
        let differences = compare(&dir.join("A"), &dir.join("B"), &Options::default()).unwrap();
        let at_end = differences.iter().find(|found| found.what == Content).expect("the difference at the end");
        assert!(at_end.path.len() > 4096 && at_end.path.ends_with(b"/end"), "{at_end}");
    }
}
